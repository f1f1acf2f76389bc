//! NEON with dot products: a tile's sixteen rows in four registers.
//!
//! The instruction for four products a lane takes both sides as signed: levels beyond 127 are taken as `level - 128`.
//! It and the prefetch are assembly, because the standard library has no stable name for them.

use std::arch::{aarch64::*, asm};

use super::{Simd, proven};

/// NEON and its dot products.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// The proof, where the CPU has it all.
    #[inline]
    pub(in crate::packed) fn detect() -> Option<Self> {
        crate::dispatch::has_neon_dotprod().then_some(Self(()))
    }
}

/// `f` of each of the four registers.
macro_rules! each {
    (|$i:ident| $body:expr) => {
        proven!({
            [
                {
                    let $i = 0_usize;
                    $body
                },
                {
                    let $i = 1_usize;
                    $body
                },
                {
                    let $i = 2_usize;
                    $body
                },
                {
                    let $i = 3_usize;
                    $body
                },
            ]
        })
    };
}

/// `sums + Σ levels · x` over the four bytes of each lane, all signed.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sums: int32x4_t, levels: uint8x16_t, x: uint8x16_t) -> int32x4_t {
    // SAFETY: the instruction is among the function's features, and touches these registers alone.
    #[allow(unsafe_code)]
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {levels:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums,
            levels = in(vreg) levels,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Four halves as f32. A cast of the registers alone would ask for arithmetic in half precision.
#[inline(always)]
fn widen(halves: uint16x4_t) -> float32x4_t {
    proven!(vcvt_f32_f16(std::mem::transmute::<uint16x4_t, float16x4_t>(halves)))
}

/// Sixteen bytes, signed, a lane each.
#[inline(always)]
fn widen_signed(from: &[u8; 16]) -> [int32x4_t; 4] {
    proven!({
        let bytes = vreinterpretq_s8_u8(vld1q_u8(from.as_ptr()));
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
        [
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ]
    })
}

impl Simd for Neon {
    type Bytes = [uint8x16_t; 4];
    type Ints = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];
    type Sums = [int32x4_t; 4];
    const CENTRES_WIDE: bool = true;
    const FEW_REGISTERS: bool = true;
    const SHORT_SUMS: bool = false;

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> Self::Bytes {
        each!(|i| vld1q_u8(from.as_ptr().add(16 * i)))
    }
    #[inline(always)]
    fn store_bytes(self, bytes: Self::Bytes, to: &mut [u8; 64]) {
        each!(|i| vst1q_u8(to.as_mut_ptr().add(16 * i), bytes[i]));
    }
    #[inline(always)]
    fn splat_bytes(self, bytes: [u8; 4]) -> Self::Bytes {
        [proven!(vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(bytes)))); 4]
    }
    #[inline(always)]
    fn nibbles(self, bytes: Self::Bytes) -> [Self::Bytes; 2] {
        let low = proven!(vdupq_n_u8(15));
        [each!(|i| vandq_u8(bytes[i], low)), each!(|i| vshrq_n_u8::<4>(bytes[i]))]
    }
    #[inline(always)]
    fn pairs(self, bytes: Self::Bytes) -> [Self::Bytes; 4] {
        let mask = proven!(vdupq_n_u8(0x30));
        [
            each!(|i| vandq_u8(vshlq_n_u8::<4>(bytes[i]), mask)),
            each!(|i| vandq_u8(vshlq_n_u8::<2>(bytes[i]), mask)),
            each!(|i| vandq_u8(bytes[i], mask)),
            each!(|i| vandq_u8(vshrq_n_u8::<2>(bytes[i]), mask)),
        ]
    }
    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        each!(|i| vorrq_u8(a[i], b[i]))
    }
    #[inline(always)]
    fn add_fifth(self, nibbles: Self::Bytes, bits: u64) -> Self::Bytes {
        /// Bit `i % 8` of byte `i / 8`, which [`SPREAD`] brings to byte `i`.
        const ONE: u64 = 0x8040_2010_0804_0201;
        const SPREAD: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];
        proven!({
            let (one, sixteen) = (vreinterpretq_u8_u64(vdupq_n_u64(ONE)), vdupq_n_u8(16));
            let spread = vld1q_u8(SPREAD.as_ptr());
            let bits = vreinterpretq_u8_u64(vdupq_n_u64(bits));
            each!(|i| {
                let bytes = vqtbl1q_u8(bits, vaddq_u8(spread, vdupq_n_u8(2 * i as u8)));
                vorrq_u8(nibbles[i], vandq_u8(vtstq_u8(bytes, one), sixteen))
            })
        })
    }
    #[inline(always)]
    fn lookup(self, indices: Self::Bytes, table: &[u8; 16]) -> Self::Bytes {
        let table = proven!(vld1q_u8(table.as_ptr()));
        each!(|i| vqtbl1q_u8(table, indices[i]))
    }
    #[inline(always)]
    fn centred(self, levels: Self::Bytes) -> Self::Bytes {
        let top = proven!(vdupq_n_u8(0x80));
        each!(|i| veorq_u8(levels[i], top))
    }
    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: Self::Ints, levels: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        self.accumulate(sums, if WIDE { self.centred(levels) } else { levels }, x)
    }

    #[inline(always)]
    fn begin(self, start: Self::Ints) -> Self::Sums {
        start
    }
    #[inline(always)]
    fn accumulate(self, sums: Self::Sums, levels: Self::Bytes, x: Self::Bytes) -> Self::Sums {
        each!(|i| sdot(sums[i], levels[i], x[i]))
    }
    #[inline(always)]
    fn finish(self, _start: Self::Ints, sums: Self::Sums) -> Self::Ints {
        sums
    }
    #[inline(always)]
    fn finish_16(self, start: Self::Ints, sums: Self::Sums) -> Self::Ints {
        each!(|i| vaddq_s32(start[i], vshlq_n_s32::<4>(sums[i])))
    }
    #[inline(always)]
    fn finish_half(self, start: Self::Ints, sums: Self::Sums, scale: Self::Ints) -> Self::Ints {
        each!(|i| vmlaq_s32(start[i], sums[i], scale[i]))
    }
    #[inline(always)]
    fn half_scales(self, first: &[u8; 16], second: &[u8; 16]) -> [Self::Ints; 3] {
        [widen_signed(first), widen_signed(second), self.splat_int(0)]
    }
    #[inline(always)]
    fn half_sums(self, minus: [i16; 2], scales: &[Self::Ints; 3]) -> Self::Ints {
        let [first, second] = minus.map(i32::from);
        each!(|i| vmlaq_n_s32(vmulq_n_s32(scales[0][i], first), scales[1][i], second))
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::Ints {
        [proven!(vdupq_n_s32(x)); 4]
    }
    #[inline(always)]
    fn load_ints(self, from: &[i32; 16]) -> Self::Ints {
        each!(|i| vld1q_s32(from.as_ptr().add(4 * i)))
    }
    #[inline(always)]
    fn store_ints(self, ints: Self::Ints, to: &mut [i32; 16]) {
        each!(|i| vst1q_s32(to.as_mut_ptr().add(4 * i), ints[i]));
    }
    #[inline(always)]
    fn splat_shifted<const N: i32>(self, x: i32) -> Self::Ints {
        self.splat_int(x << N)
    }
    #[inline(always)]
    fn shift_left<const N: i32>(self, a: Self::Ints) -> Self::Ints {
        each!(|i| vshlq_n_s32::<N>(a[i]))
    }
    #[inline(always)]
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each!(|i| vaddq_s32(a[i], b[i]))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        [proven!(vdupq_n_f32(x)); 4]
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::Floats {
        each!(|i| vld1q_f32(from.as_ptr().add(4 * i)))
    }
    #[inline(always)]
    fn store(self, floats: Self::Floats, to: &mut [f32; 16]) {
        each!(|i| vst1q_f32(to.as_mut_ptr().add(4 * i), floats[i]));
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> Self::Floats {
        each!(|i| vreinterpretq_f32_u8(vld1q_u8(from.as_ptr().add(16 * i))))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> Self::Floats {
        each!(|i| widen(vreinterpret_u16_u8(vld1_u8(from.as_ptr().add(8 * i)))))
    }
    #[inline(always)]
    fn load_halves(self, from: &[u16; 16]) -> Self::Floats {
        each!(|i| widen(vld1_u16(from.as_ptr().add(4 * i))))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> Self::Floats {
        each!(|i| {
            let halves = vmovl_u16(vreinterpret_u16_u8(vld1_u8(from.as_ptr().add(8 * i))));
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(halves))
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; 16]) -> Self::Floats {
        proven!({
            let bytes = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ]
        })
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; 16]) -> Self::Floats {
        proven!({
            let bytes = vld1q_u8(from.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_high_u16(low)),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_high_u16(high)),
            ]
        })
    }
    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        each!(|i| vcvtq_f32_s32(ints[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(|i| vmulq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        each!(|i| vfmaq_f32(c[i], a[i], b[i]))
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // No memory as far as the program can tell: an address that may not be read is ignored.
        proven!(asm!("prfm pldl1keep, [{}]", in(reg) at.addr(), options(nomem, nostack, preserves_flags)));
    }
}
