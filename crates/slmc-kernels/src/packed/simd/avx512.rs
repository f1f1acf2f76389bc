//! AVX-512 with VNNI: one register holds a tile's sixteen rows.

use std::arch::x86_64::*;

use super::{Simd, proven};

/// AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, where the CPU has it all.
    #[inline]
    pub(in crate::packed) fn detect() -> Option<Self> {
        crate::dispatch::has_avx512_vnni().then_some(Self(()))
    }
}

impl Simd for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;
    type Sums = __m512i;
    const CENTRES_WIDE: bool = false;
    const FEW_REGISTERS: bool = false;
    const SHORT_SUMS: bool = false;

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> __m512i {
        proven!(_mm512_loadu_si512(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_bytes(self, bytes: __m512i, to: &mut [u8; 64]) {
        proven!(_mm512_storeu_si512(to.as_mut_ptr().cast(), bytes));
    }
    #[inline(always)]
    fn splat_bytes(self, bytes: [u8; 4]) -> __m512i {
        proven!(_mm512_set1_epi32(i32::from_le_bytes(bytes)))
    }
    #[inline(always)]
    fn nibbles(self, bytes: __m512i) -> [__m512i; 2] {
        proven!({
            let low = _mm512_set1_epi8(15);
            [_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low)]
        })
    }
    #[inline(always)]
    fn pairs(self, bytes: __m512i) -> [__m512i; 4] {
        proven!({
            let mask = _mm512_set1_epi8(0x30);
            [
                _mm512_and_si512(_mm512_slli_epi16::<4>(bytes), mask),
                _mm512_and_si512(_mm512_slli_epi16::<2>(bytes), mask),
                _mm512_and_si512(bytes, mask),
                _mm512_and_si512(_mm512_srli_epi16::<2>(bytes), mask),
            ]
        })
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn add_fifth(self, nibbles: __m512i, bits: u64) -> __m512i {
        proven!(_mm512_mask_add_epi8(nibbles, bits, nibbles, _mm512_set1_epi8(16)))
    }
    #[inline(always)]
    fn lookup(self, indices: __m512i, table: &[u8; 16]) -> __m512i {
        proven!({
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, indices)
        })
    }
    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: __m512i, levels: __m512i, x: __m512i) -> __m512i {
        proven!(_mm512_dpbusd_epi32(sums, levels, x))
    }

    #[inline(always)]
    fn begin(self, start: __m512i) -> __m512i {
        start
    }
    #[inline(always)]
    fn accumulate(self, sums: __m512i, levels: __m512i, x: __m512i) -> __m512i {
        proven!(_mm512_dpbusd_epi32(sums, levels, x))
    }
    #[inline(always)]
    fn finish(self, _start: __m512i, sums: __m512i) -> __m512i {
        sums
    }
    #[inline(always)]
    fn finish_16(self, start: __m512i, sums: __m512i) -> __m512i {
        proven!(_mm512_add_epi32(start, _mm512_slli_epi32::<4>(sums)))
    }
    #[inline(always)]
    fn finish_half(self, start: __m512i, sums: __m512i, scale: __m512i) -> __m512i {
        proven!(_mm512_add_epi32(start, _mm512_mullo_epi32(sums, scale)))
    }
    #[inline(always)]
    fn half_scales(self, first: &[u8; 16], second: &[u8; 16]) -> [__m512i; 3] {
        proven!({
            let first = _mm512_cvtepi8_epi32(_mm_loadu_si128(first.as_ptr().cast()));
            let second = _mm512_cvtepi8_epi32(_mm_loadu_si128(second.as_ptr().cast()));
            [first, second, _mm512_setzero_si512()]
        })
    }
    #[inline(always)]
    fn half_sums(self, minus: [i16; 2], scales: &[__m512i; 3]) -> __m512i {
        proven!({
            let [first, second] = minus.map(|minus| _mm512_set1_epi32(i32::from(minus)));
            _mm512_add_epi32(_mm512_mullo_epi32(first, scales[0]), _mm512_mullo_epi32(second, scales[1]))
        })
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> __m512i {
        proven!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn load_ints(self, from: &[i32; 16]) -> __m512i {
        proven!(_mm512_loadu_si512(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_ints(self, ints: __m512i, to: &mut [i32; 16]) {
        proven!(_mm512_storeu_si512(to.as_mut_ptr().cast(), ints));
    }
    #[inline(always)]
    fn splat_shifted<const N: i32>(self, x: i32) -> __m512i {
        self.splat_int(x << N)
    }
    #[inline(always)]
    fn shift_left<const N: i32>(self, a: __m512i) -> __m512i {
        proven!(_mm512_sll_epi32(a, _mm_cvtsi32_si128(N)))
    }
    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> __m512 {
        proven!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn store(self, floats: __m512, to: &mut [f32; 16]) {
        proven!(_mm512_storeu_ps(to.as_mut_ptr(), floats));
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> __m512 {
        proven!(_mm512_loadu_ps(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_halves(self, from: &[u16; 16]) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> __m512 {
        proven!({
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; 16]) -> __m512 {
        proven!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; 16]) -> __m512 {
        proven!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }
    #[inline(always)]
    fn to_floats(self, ints: __m512i) -> __m512 {
        proven!(_mm512_cvtepi32_ps(ints))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
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
