//! What the kernels need of an instruction set: registers of sixteen lanes, one for each row of a tile.
//!
//! A value of an implementation is the proof that the CPU has its instructions: the kernels are safe code on
//! arrays. Every operation is exact or rounded once, so all implementations give the same bits; `fma` rounds once
//! everywhere.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod portable;

/// Rows of a tile: the 32-bit lanes of the widest register.
pub(super) const ROWS: usize = 16;

/// An instruction set.
pub(super) trait Simd: Copy {
    /// Four bytes for each row.
    type Bytes: Copy;
    /// An i32 for each row.
    type Ints: Copy;
    /// An f32 for each row.
    type Floats: Copy;

    /// Whether `dot` takes levels above 127 as `level - 128`. Their offset of 128 is then not subtracted again.
    const CENTRES_WIDE: bool;
    /// Tokens whose sums the matrix product keeps in registers: 4 or 2.
    const FEW_REGISTERS: bool;

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

    fn splat_int(self, x: i32) -> Self::Ints;
    /// Sign-extended.
    fn load_i8(self, from: &[u8; 16]) -> Self::Ints;
    fn load_ints(self, from: &[i32; 16]) -> Self::Ints;
    fn store_ints(self, ints: Self::Ints, to: &mut [i32; 16]);
    fn mul_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    fn splat(self, x: f32) -> Self::Floats;
    fn load(self, from: &[f32; 16]) -> Self::Floats;
    fn store(self, floats: Self::Floats, to: &mut [f32; 16]);
    /// Sixteen f32, little-endian.
    fn load_f32(self, from: &[u8; 64]) -> Self::Floats;
    /// Sixteen IEEE half-precision numbers, little-endian.
    fn load_f16(self, from: &[u8; 32]) -> Self::Floats;
    /// Sixteen upper halves of f32, little-endian.
    fn load_bf16(self, from: &[u8; 32]) -> Self::Floats;
    /// Sixteen bytes, unsigned.
    fn load_u8(self, from: &[u8; 16]) -> Self::Floats;
    fn to_floats(self, ints: Self::Ints) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Asks for the cache line at an address that may be anything.
    fn prefetch(self, at: *const u8);
}

/// Runs intrinsics for a value that proves that the CPU has them.
#[cfg(target_arch = "x86_64")]
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
#[cfg(target_arch = "x86_64")]
use proven;
