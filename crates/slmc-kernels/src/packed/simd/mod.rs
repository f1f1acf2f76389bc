//! What the kernels need of an instruction set: registers of sixteen lanes, one for each row of a tile.
//!
//! A value of an implementation is the proof that the CPU has its instructions: the kernels are safe code on
//! arrays. Every operation is exact or rounded once, so all implementations give the same bits; `fma` rounds once
//! everywhere.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod portable;

/// Rows of a tile: the 32-bit lanes of the widest register.
pub(crate) const ROWS: usize = 16;

/// An instruction set.
pub(crate) trait Simd: Copy {
    /// Four bytes for each row.
    type Bytes: Copy;
    /// An i32 for each row.
    type Ints: Copy;
    /// An f32 for each row.
    type Floats: Copy;
    /// Sums of a few groups of four columns, before they are [`finish`](Simd::finish)ed.
    type Sums: Copy;

    /// Whether `dot` takes levels above 127 as `level - 128`. Their offset of 128 is then not subtracted again.
    const CENTRES_WIDE: bool;
    /// Whether registers hold the sums of one tile of a few tokens, not of two.
    const FEW_REGISTERS: bool;
    /// Whether [`Sums`](Simd::Sums) have 16 bits, and overflow after some groups: [`groups_a_sum`].
    const SHORT_SUMS: bool;

    fn load_bytes(self, from: &[u8; 64]) -> Self::Bytes;
    fn store_bytes(self, bytes: Self::Bytes, to: &mut [u8; 64]);
    /// The same four bytes for each row.
    fn splat_bytes(self, bytes: [u8; 4]) -> Self::Bytes;
    /// Low and high halves of the bytes, each 0 to 15.
    fn nibbles(self, bytes: Self::Bytes) -> [Self::Bytes; 2];
    /// The four pairs of bits of the bytes, lowest first, each in the place of bits 4 and 5.
    fn pairs(self, bytes: Self::Bytes) -> [Self::Bytes; 4];
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Adds 16 to the bytes whose bit is set.
    fn add_fifth(self, nibbles: Self::Bytes, bits: u64) -> Self::Bytes;
    /// `table[index]` of indices 0 to 15.
    fn lookup(self, indices: Self::Bytes, table: &[u8; 16]) -> Self::Bytes;
    /// `sums + Σ levels · x` over the four bytes of each row: levels unsigned, `x` in -127..=127, exact.
    /// `WIDE` when levels may exceed 127.
    fn dot<const WIDE: bool>(self, sums: Self::Ints, levels: Self::Bytes, x: Self::Bytes) -> Self::Ints;

    /// What a panel holds of levels that may exceed 127, and [`accumulate`](Simd::accumulate) then takes: `level - 128`,
    /// signed, where wide levels are centred and sums are not short; the levels elsewhere.
    #[inline(always)]
    fn centred(self, levels: Self::Bytes) -> Self::Bytes {
        levels
    }

    /// Sums that begin at `start`, which [`finish`](Simd::finish) is given again.
    fn begin(self, start: Self::Ints) -> Self::Sums;
    /// `sums + Σ levels · x` over the four bytes of each row, in as many groups as fit: levels up to 127, or, where sums
    /// are not short, any that [`centred`](Simd::centred) gave. Where registers are few, the compiler keeps the order of
    /// the calls if it would spill otherwise.
    fn accumulate(self, sums: Self::Sums, levels: Self::Bytes, x: Self::Bytes) -> Self::Sums;
    /// `start` and the sums that began there.
    fn finish(self, start: Self::Ints, sums: Self::Sums) -> Self::Ints;
    /// `start + 16 · sums`, of sums that began at zero.
    fn finish_16(self, start: Self::Ints, sums: Self::Sums) -> Self::Ints;
    /// `start + scale · sums`, of sums that began at zero, with a scale of [`half_scales`](Simd::half_scales).
    fn finish_half(self, start: Self::Ints, sums: Self::Sums, scale: Self::Ints) -> Self::Ints;
    /// Scales, signed bytes, of the two halves of a block; what they are the instruction set's own business.
    fn half_scales(self, first: &[u8; 16], second: &[u8; 16]) -> [Self::Ints; 3];
    /// `Σ scale · minus` over the halves.
    fn half_sums(self, minus: [i16; 2], scales: &[Self::Ints; 3]) -> Self::Ints;

    fn splat_int(self, x: i32) -> Self::Ints;
    fn load_ints(self, from: &[i32; 16]) -> Self::Ints;
    fn store_ints(self, ints: Self::Ints, to: &mut [i32; 16]);
    /// `x · 2^N`.
    fn splat_shifted<const N: i32>(self, x: i32) -> Self::Ints;
    fn shift_left<const N: i32>(self, a: Self::Ints) -> Self::Ints;
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    fn splat(self, x: f32) -> Self::Floats;
    fn load(self, from: &[f32; 16]) -> Self::Floats;
    fn store(self, floats: Self::Floats, to: &mut [f32; 16]);
    /// Sixteen f32, little-endian.
    fn load_f32(self, from: &[u8; 64]) -> Self::Floats;
    /// Sixteen IEEE half-precision numbers, little-endian.
    fn load_f16(self, from: &[u8; 32]) -> Self::Floats;
    /// Sixteen IEEE half-precision numbers.
    fn load_halves(self, from: &[u16; 16]) -> Self::Floats;
    /// Sixteen upper halves of f32, little-endian.
    fn load_bf16(self, from: &[u8; 32]) -> Self::Floats;
    /// Sixteen bytes, unsigned.
    fn load_u8(self, from: &[u8; 16]) -> Self::Floats;
    /// Sixteen bytes, signed.
    fn load_i8(self, from: &[i8; 16]) -> Self::Floats;
    fn to_floats(self, ints: Self::Ints) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Asks for the cache line at an address that may be anything.
    fn prefetch(self, at: *const u8);
    /// As [`prefetch`](Simd::prefetch), of a line that will be written.
    #[inline(always)]
    fn prefetch_to_write(self, at: *const u8) {
        self.prefetch(at);
    }
}

/// Groups of four columns that a sum of levels up to `most` holds: of 16 bits, each lane of which gets two products
/// a group, `2 · most · 127`.
pub(super) const fn groups_a_sum(short: bool, most: i32) -> usize {
    let groups = if short { 32767 / (2 * 127 * most) } else { 8 };
    // A power of two, so that blocks are whole sums.
    match groups {
        8.. => 8,
        4..8 => 4,
        2..4 => 2,
        _ => 1,
    }
}

/// Runs intrinsics for a value that proves that the CPU has them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! proven {
    ($body:expr) => {{
        // SAFETY: the value of the instruction set's type exists only when the CPU has it, and every pointer comes
        // from a reference to as many bytes as the instruction touches (or is only prefetched).
        #[allow(unsafe_code, unused_unsafe)]
        unsafe {
            $body
        }
    }};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use proven;
