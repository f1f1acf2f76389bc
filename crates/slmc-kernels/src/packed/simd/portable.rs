//! Plain arrays: runs everywhere, and as fast as the compiler makes it.

use slmc_blocks::{bf16_to_f32, f16_to_f32};

use super::{ROWS, Simd};

/// No instruction set in particular.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portable;

#[inline(always)]
fn each<T: Copy, U, const N: usize>(a: [T; N], f: impl Fn(T) -> U) -> [U; N] {
    a.map(f)
}

#[inline(always)]
fn pairwise<T: Copy, const N: usize>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> T) -> [T; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn half(from: &[u8; 32], i: usize) -> u16 {
    u16::from_le_bytes([from[2 * i], from[2 * i + 1]])
}

impl Simd for Portable {
    type Bytes = [u8; 64];
    type Ints = [i32; ROWS];
    type Floats = [f32; ROWS];
    type Sums = [i32; ROWS];
    const CENTRES_WIDE: bool = false;
    const FEW_REGISTERS: bool = true;
    const SHORT_SUMS: bool = false;

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> [u8; 64] {
        *from
    }
    #[inline(always)]
    fn store_bytes(self, bytes: [u8; 64], to: &mut [u8; 64]) {
        *to = bytes;
    }
    #[inline(always)]
    fn splat_bytes(self, bytes: [u8; 4]) -> [u8; 64] {
        std::array::from_fn(|i| bytes[i % 4])
    }
    #[inline(always)]
    fn nibbles(self, bytes: [u8; 64]) -> [[u8; 64]; 2] {
        [each(bytes, |b| b & 15), each(bytes, |b| b >> 4)]
    }
    #[inline(always)]
    fn pairs(self, bytes: [u8; 64]) -> [[u8; 64]; 4] {
        std::array::from_fn(|pair| each(bytes, |b| (b >> (2 * pair) & 3) << 4))
    }
    #[inline(always)]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        pairwise(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn add_fifth(self, nibbles: [u8; 64], bits: u64) -> [u8; 64] {
        std::array::from_fn(|i| nibbles[i] + if bits >> i & 1 == 1 { 16 } else { 0 })
    }
    #[inline(always)]
    fn lookup(self, indices: [u8; 64], table: &[u8; 16]) -> [u8; 64] {
        each(indices, |i| table[usize::from(i & 15)])
    }
    #[inline(always)]
    fn dot<const WIDE: bool>(self, mut sums: [i32; ROWS], levels: [u8; 64], x: [u8; 64]) -> [i32; ROWS] {
        for (i, (&level, &x)) in levels.iter().zip(&x).enumerate() {
            sums[i / 4] += i32::from(level) * i32::from(x.cast_signed());
        }
        sums
    }

    #[inline(always)]
    fn begin(self, start: [i32; ROWS]) -> [i32; ROWS] {
        start
    }
    #[inline(always)]
    fn accumulate(self, sums: [i32; ROWS], levels: [u8; 64], x: [u8; 64]) -> [i32; ROWS] {
        self.dot::<false>(sums, levels, x)
    }
    #[inline(always)]
    fn finish(self, _start: [i32; ROWS], sums: [i32; ROWS]) -> [i32; ROWS] {
        sums
    }
    #[inline(always)]
    fn finish_16(self, start: [i32; ROWS], sums: [i32; ROWS]) -> [i32; ROWS] {
        pairwise(start, sums, |start, sum| start + 16 * sum)
    }
    #[inline(always)]
    fn finish_half(self, start: [i32; ROWS], sums: [i32; ROWS], scale: [i32; ROWS]) -> [i32; ROWS] {
        self.add_ints(start, pairwise(sums, scale, |sum, scale| sum * scale))
    }
    #[inline(always)]
    fn half_scales(self, first: &[u8; 16], second: &[u8; 16]) -> [[i32; ROWS]; 3] {
        [first, second, &[0; 16]].map(|scales| each(*scales, |x| i32::from(x.cast_signed())))
    }
    #[inline(always)]
    fn half_sums(self, minus: [i16; 2], scales: &[[i32; ROWS]; 3]) -> [i32; ROWS] {
        pairwise(scales[0], scales[1], |a, b| i32::from(minus[0]) * a + i32::from(minus[1]) * b)
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> [i32; ROWS] {
        [x; ROWS]
    }
    #[inline(always)]
    fn load_ints(self, from: &[i32; ROWS]) -> [i32; ROWS] {
        *from
    }
    #[inline(always)]
    fn store_ints(self, ints: [i32; ROWS], to: &mut [i32; ROWS]) {
        *to = ints;
    }
    #[inline(always)]
    fn splat_shifted<const N: i32>(self, x: i32) -> [i32; ROWS] {
        [x << N; ROWS]
    }
    #[inline(always)]
    fn shift_left<const N: i32>(self, a: [i32; ROWS]) -> [i32; ROWS] {
        each(a, |a| a << N)
    }
    #[inline(always)]
    fn add_ints(self, a: [i32; ROWS], b: [i32; ROWS]) -> [i32; ROWS] {
        pairwise(a, b, i32::wrapping_add)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; ROWS] {
        [x; ROWS]
    }
    #[inline(always)]
    fn load(self, from: &[f32; ROWS]) -> [f32; ROWS] {
        *from
    }
    #[inline(always)]
    fn store(self, floats: [f32; ROWS], to: &mut [f32; ROWS]) {
        *to = floats;
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> [f32; ROWS] {
        let (numbers, _) = from.as_chunks::<4>();
        std::array::from_fn(|i| f32::from_le_bytes(numbers[i]))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> [f32; ROWS] {
        std::array::from_fn(|i| f16_to_f32(half(from, i)))
    }
    #[inline(always)]
    fn load_halves(self, from: &[u16; 16]) -> [f32; ROWS] {
        each(*from, f16_to_f32)
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> [f32; ROWS] {
        std::array::from_fn(|i| bf16_to_f32(half(from, i)))
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; 16]) -> [f32; ROWS] {
        each(*from, f32::from)
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; 16]) -> [f32; ROWS] {
        each(*from, f32::from)
    }
    #[inline(always)]
    fn to_floats(self, ints: [i32; ROWS]) -> [f32; ROWS] {
        each(ints, |x| x as f32)
    }
    #[inline(always)]
    fn mul(self, a: [f32; ROWS], b: [f32; ROWS]) -> [f32; ROWS] {
        pairwise(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn fma(self, a: [f32; ROWS], b: [f32; ROWS], c: [f32; ROWS]) -> [f32; ROWS] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}
}
