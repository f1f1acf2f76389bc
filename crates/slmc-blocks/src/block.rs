//! What a packed layout is: one block's worth of bytes and back.

use slmc_ir::Format;

use crate::parts::Parts;

/// The byte layout of one block.
pub trait BlockFormat: 'static {
    /// The format this lays out.
    const FORMAT: Format;
    /// Its name in recipes and messages.
    const NAME: &'static str = Self::FORMAT.name();
    /// Weights in a block.
    const N_WEIGHTS: usize;
    /// Bytes in a block.
    const N_BYTES: usize;

    /// Decodes one block of any bytes: NaN where a scale is NaN, never a panic.
    ///
    /// # Panics
    /// When `block` is not `N_BYTES` or `weights` not `N_WEIGHTS` long.
    fn decode(block: &[u8], weights: &mut [f32]);

    /// Whether every weight of the block is certainly finite, told from its scales alone. `false` means that
    /// only decoding can tell.
    fn is_surely_finite(block: &[u8]) -> bool;
}

/// A block layout that can be written.
pub trait EncodeBlock: BlockFormat {
    /// Encodes one block of finite weights, rounding to nearest.
    ///
    /// # Panics
    /// When `weights` is not `N_WEIGHTS` or `block` not `N_BYTES` long.
    fn encode(weights: &[f32], block: &mut [u8]);
}

/// A block layout that can be taken apart and put together.
pub(crate) trait PackBlock: BlockFormat {
    /// The parts of one block.
    fn unpack(block: &[u8]) -> Parts;
    /// The block of parts that are in the format's ranges; what they have beyond is cut off.
    fn pack(parts: &Parts, block: &mut [u8]);
}

/// The trait's sizes are the format table's, or the crate does not compile.
pub(crate) const fn check_sizes<B: BlockFormat>() {
    assert!(B::N_WEIGHTS == B::FORMAT.block_weights());
    assert!(B::N_BYTES == B::FORMAT.block_bytes());
}

/// The block as an array, so that the compiler sees every index in range.
#[inline(always)]
pub(crate) fn as_block<const N: usize>(block: &[u8]) -> &[u8; N] {
    block.try_into().expect("a block has its format's length")
}

/// The block's bytes to write.
#[inline(always)]
pub(crate) fn as_block_mut<const N: usize>(block: &mut [u8]) -> &mut [u8; N] {
    block.try_into().expect("a block has its format's length")
}

/// The 16 bits at byte `at`.
#[inline(always)]
pub(crate) fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Writes 16 bits at byte `at`.
#[inline(always)]
pub(crate) fn put_u16(block: &mut [u8], at: usize, bits: u16) {
    block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
}

/// Splits 16 bytes of two levels each: byte `j` holds weight `j` low and weight `j + 16` high.
#[inline(always)]
pub(crate) fn split_halves(bytes: &[u8], levels: &mut [u8]) {
    for j in 0..16 {
        levels[j] = bytes[j] & 15;
        levels[j + 16] = bytes[j] >> 4;
    }
}

/// Joins the low four bits of 32 levels into 16 bytes, as [`split_halves`] splits them.
#[inline(always)]
pub(crate) fn join_halves(levels: &[u8], bytes: &mut [u8]) {
    for j in 0..16 {
        bytes[j] = (levels[j] & 15) | levels[j + 16] << 4;
    }
}

/// The block's weights.
#[inline(always)]
pub(crate) fn as_weights<const N: usize>(weights: &[f32]) -> &[f32; N] {
    weights.try_into().expect("a block has its format's number of weights")
}

/// The block's weights to write.
#[inline(always)]
pub(crate) fn as_weights_mut<const N: usize>(weights: &mut [f32]) -> &mut [f32; N] {
    weights.try_into().expect("a block has its format's number of weights")
}
