//! What a packed layout is: one block's worth of bytes and back.

use slmc_ir::Format;

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
