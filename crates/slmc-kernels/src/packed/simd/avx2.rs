//! AVX2 with FMA and F16C: a tile's sixteen rows in two registers.
//!
//! There is no instruction for four products a lane, so pairs are summed in 16 bits first. They do not saturate:
//! levels up to 127 give at most 2 · 127 · 127 = 32258, and larger ones are taken as `level - 128`, whose
//! magnitude of at most 128 gives 2 · 128 · 127 = 32512, below 32767.

use std::arch::x86_64::*;

use super::{Simd, proven};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, where the CPU has it all.
    #[inline]
    pub(in crate::packed) fn detect() -> Option<Self> {
        crate::dispatch::has_avx2_fma().then_some(Self(()))
    }
}

/// Both halves of a 64-byte array.
#[inline(always)]
fn halves<const N: usize, const HALF: usize>(bytes: &[u8; N]) -> [&[u8; HALF]; 2] {
    let (first, second) = bytes.split_at(HALF);
    [first.try_into().expect("half"), second.try_into().expect("half")]
}

/// The bytes at a reference, as a register.
#[inline(always)]
fn load_32(from: &[u8; 32]) -> __m256i {
    proven!(_mm256_loadu_si256(from.as_ptr().cast()))
}

/// The first or second eight of sixteen bytes.
#[inline(always)]
fn load_8(from: &[u8; 8]) -> __m128i {
    proven!(_mm_loadl_epi64(from.as_ptr().cast()))
}

/// `f` of the first register, then of the second.
macro_rules! both {
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
            ]
        })
    };
}

#[inline(always)]
fn dot_half<const WIDE: bool>(sums: __m256i, levels: __m256i, x: __m256i) -> __m256i {
    proven!({
        let pairs = if WIDE {
            let centred = _mm256_xor_si256(levels, _mm256_set1_epi8(-128));
            _mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(x, centred))
        } else {
            _mm256_maddubs_epi16(levels, x)
        };
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    })
}

/// The same register, about which the compiler knows nothing more: calls stay in the order of the source. It would
/// take sums apart otherwise, and reorder them until sixteen registers are not enough.
#[inline]
#[target_feature(enable = "avx2")]
fn in_order(mut register: __m256i) -> __m256i {
    // SAFETY: there is no instruction.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::asm!("/* {0} */", inout(ymm_reg) register, options(nomem, nostack, preserves_flags));
    }
    register
}

/// 16 in each byte whose bit is set.
#[inline(always)]
fn fifths(bits: u32) -> __m256i {
    proven!({
        // Byte i of the register gets byte i / 8 of the bits, of which bit i % 8 is looked at.
        let spread = _mm256_setr_epi8(
            0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3,
        );
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits.cast_signed()), spread);
        let one = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, one), one);
        _mm256_and_si256(set, _mm256_set1_epi8(16))
    })
}

impl Simd for Avx2 {
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];
    type Sums = [__m256i; 2];
    const CENTRES_WIDE: bool = true;
    const FEW_REGISTERS: bool = true;
    const SHORT_SUMS: bool = true;

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> Self::Bytes {
        let from = halves(from);
        [load_32(from[0]), load_32(from[1])]
    }
    #[inline(always)]
    fn store_bytes(self, bytes: Self::Bytes, to: &mut [u8; 64]) {
        proven!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), bytes[1]);
        });
    }
    #[inline(always)]
    fn splat_bytes(self, bytes: [u8; 4]) -> Self::Bytes {
        [proven!(_mm256_set1_epi32(i32::from_le_bytes(bytes))); 2]
    }
    #[inline(always)]
    fn nibbles(self, bytes: Self::Bytes) -> [Self::Bytes; 2] {
        let low = proven!(_mm256_set1_epi8(15));
        [
            both!(|i| _mm256_and_si256(bytes[i], low)),
            both!(|i| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes[i]), low)),
        ]
    }
    #[inline(always)]
    fn pairs(self, bytes: Self::Bytes) -> [Self::Bytes; 4] {
        let mask = proven!(_mm256_set1_epi8(0x30));
        [
            both!(|i| _mm256_and_si256(_mm256_slli_epi16::<4>(bytes[i]), mask)),
            both!(|i| _mm256_and_si256(_mm256_slli_epi16::<2>(bytes[i]), mask)),
            both!(|i| _mm256_and_si256(bytes[i], mask)),
            both!(|i| _mm256_and_si256(_mm256_srli_epi16::<2>(bytes[i]), mask)),
        ]
    }
    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        both!(|i| _mm256_or_si256(a[i], b[i]))
    }
    #[inline(always)]
    fn add_fifth(self, nibbles: Self::Bytes, bits: u64) -> Self::Bytes {
        self.or(nibbles, [fifths(bits as u32), fifths((bits >> 32) as u32)])
    }
    #[inline(always)]
    fn lookup(self, indices: Self::Bytes, table: &[u8; 16]) -> Self::Bytes {
        let table = proven!(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())));
        both!(|i| _mm256_shuffle_epi8(table, indices[i]))
    }
    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: Self::Ints, levels: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        [dot_half::<WIDE>(sums[0], levels[0], x[0]), dot_half::<WIDE>(sums[1], levels[1], x[1])]
    }

    #[inline(always)]
    fn begin(self, _start: Self::Ints) -> Self::Sums {
        [proven!(_mm256_setzero_si256()); 2]
    }
    #[inline(always)]
    fn accumulate(self, sums: Self::Sums, levels: Self::Bytes, x: Self::Bytes) -> Self::Sums {
        both!(|i| in_order(_mm256_add_epi16(sums[i], _mm256_maddubs_epi16(levels[i], x[i]))))
    }
    #[inline(always)]
    fn finish(self, start: Self::Ints, sums: Self::Sums) -> Self::Ints {
        let one = proven!(_mm256_set1_epi16(1));
        both!(|i| _mm256_add_epi32(start[i], _mm256_madd_epi16(sums[i], one)))
    }
    #[inline(always)]
    fn finish_16(self, start: Self::Ints, sums: Self::Sums) -> Self::Ints {
        let sixteen = proven!(_mm256_set1_epi16(16));
        both!(|i| _mm256_add_epi32(start[i], _mm256_madd_epi16(sums[i], sixteen)))
    }
    #[inline(always)]
    fn finish_half(self, start: Self::Ints, sums: Self::Sums, scale: Self::Ints) -> Self::Ints {
        both!(|i| _mm256_add_epi32(start[i], _mm256_madd_epi16(sums[i], scale[i])))
    }
    /// Pairs of 16 bits, one factor for each of the two sums of a row: twice the first, twice the second, and both.
    #[inline(always)]
    fn half_scales(self, first: &[u8; 16], second: &[u8; 16]) -> [Self::Ints; 3] {
        proven!({
            let first = _mm_loadu_si128(first.as_ptr().cast());
            let second = _mm_loadu_si128(second.as_ptr().cast());
            let pairs = |a, b| {
                [_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b))]
            };
            [pairs(first, first), pairs(second, second), pairs(first, second)]
        })
    }
    #[inline(always)]
    fn half_sums(self, minus: [i16; 2], scales: &[Self::Ints; 3]) -> Self::Ints {
        let [first, second] = minus.map(i16::to_le_bytes);
        let minus = self.splat_bytes([first[0], first[1], second[0], second[1]]);
        both!(|i| _mm256_madd_epi16(minus[i], scales[2][i]))
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::Ints {
        [proven!(_mm256_set1_epi32(x)); 2]
    }
    #[inline(always)]
    fn load_ints(self, from: &[i32; 16]) -> Self::Ints {
        both!(|i| _mm256_loadu_si256(from.as_ptr().add(8 * i).cast()))
    }
    #[inline(always)]
    fn store_ints(self, ints: Self::Ints, to: &mut [i32; 16]) {
        proven!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), ints[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), ints[1]);
        });
    }
    #[inline(always)]
    fn splat_shifted<const N: i32>(self, x: i32) -> Self::Ints {
        // A broadcast load and a shift: left alone, the compiler shifts first and then moves between register files.
        let x = proven!(in_order(_mm256_set1_epi32(x)));
        [proven!(_mm256_slli_epi32::<N>(x)); 2]
    }
    #[inline(always)]
    fn shift_left<const N: i32>(self, a: Self::Ints) -> Self::Ints {
        both!(|i| _mm256_slli_epi32::<N>(a[i]))
    }
    #[inline(always)]
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        both!(|i| _mm256_add_epi32(a[i], b[i]))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        [proven!(_mm256_set1_ps(x)); 2]
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::Floats {
        both!(|i| _mm256_loadu_ps(from.as_ptr().add(8 * i)))
    }
    #[inline(always)]
    fn store(self, floats: Self::Floats, to: &mut [f32; 16]) {
        proven!({
            _mm256_storeu_ps(to.as_mut_ptr(), floats[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), floats[1]);
        });
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> Self::Floats {
        both!(|i| _mm256_loadu_ps(from.as_ptr().add(32 * i).cast()))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> Self::Floats {
        both!(|i| _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(16 * i).cast())))
    }
    #[inline(always)]
    fn load_halves(self, from: &[u16; 16]) -> Self::Floats {
        both!(|i| _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(8 * i).cast())))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> Self::Floats {
        both!(|i| {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().add(16 * i).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; 16]) -> Self::Floats {
        both!(|i| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().add(8 * i).cast()))))
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; 16]) -> Self::Floats {
        let from = halves(from);
        both!(|i| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8(from[i]))))
    }
    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        both!(|i| _mm256_cvtepi32_ps(ints[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        both!(|i| _mm256_mul_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        both!(|i| _mm256_fmadd_ps(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(at.cast()));
    }
    #[inline(always)]
    fn prefetch_to_write(self, at: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_ET0>(at.cast()));
    }
}
