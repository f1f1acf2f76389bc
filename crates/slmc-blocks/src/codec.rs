//! Whole tensors: the table of formats, and the loops that spread blocks over threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use slmc_ir::{Format, Weight};

use crate::{
    BlockError,
    block::{BlockFormat, EncodeBlock},
    float, iq4, mxfp4, q2_k, q3_k, q4, q4_k, q5, q6_k, q8,
};

/// Weights handled at a time: whole blocks of every format, and few enough that their f32 stay in the
/// first-level cache between decoding and encoding.
const PIECE: usize = 4096;
/// Weights a thread takes at least; below this a second thread costs more than it saves.
const MIN_PER_THREAD: usize = 16 * PIECE;

/// Decodes `bytes` into `weights`, any number of whole blocks.
///
/// The numbers are bit for bit those of ggml's reference; only NaN payloads are unspecified. Damaged scales give
/// NaN or infinity, never an error: ask [`first_non_finite`].
///
/// # Errors
/// [`BlockError::PartialBlock`] and [`BlockError::Length`] when the two lengths do not belong together.
pub fn decode(format: Format, bytes: &[u8], weights: &mut [f32]) -> Result<(), BlockError> {
    check_lengths(format, bytes.len(), weights.len())?;
    let decode = codec(format).decode;
    let piece_bytes = piece_bytes(format);
    bytes
        .par_chunks(piece_bytes)
        .zip(weights.par_chunks_mut(PIECE))
        .with_min_len(MIN_PER_THREAD / PIECE)
        .for_each(|(bytes, weights)| decode(bytes, weights));
    Ok(())
}

/// Decodes a whole tensor, in row order.
///
/// # Errors
/// None for a [`Weight`] that exists: its lengths were checked when it was made.
pub fn decode_weight(weight: &Weight) -> Result<Vec<f32>, BlockError> {
    let mut weights = vec![0.0; weight.n_weights()];
    decode(weight.format(), weight.bytes(), &mut weights)?;
    Ok(weights)
}

/// Encodes `weights` into `bytes`, any number of whole blocks, rounding to nearest: the bytes are those of
/// ggml's `quantize_row_*_ref`. Plain floats keep NaN and infinity.
///
/// # Errors
/// [`BlockError::NoEncoder`]; [`BlockError::PartialBlock`] and [`BlockError::Length`] when the two lengths do
/// not belong together; [`BlockError::NotFinite`] and [`BlockError::TooLarge`] for the first block that the
/// format cannot hold. After an error `bytes` holds no usable blocks.
pub fn encode(format: Format, weights: &[f32], bytes: &mut [u8]) -> Result<(), BlockError> {
    let encode = codec(format).encode.ok_or(BlockError::NoEncoder { format })?;
    check_lengths(format, bytes.len(), weights.len())?;
    let fault = weights
        .par_chunks(PIECE)
        .zip(bytes.par_chunks_mut(piece_bytes(format)))
        .with_min_len(MIN_PER_THREAD / PIECE)
        .enumerate()
        .find_map_first(|(piece, (weights, bytes))| Some((piece, encode(weights, bytes)?)));
    fault.map_or(Ok(()), |(piece, fault)| Err(fault.into_error(format, piece)))
}

/// The tensor in another format: decoded and encoded piece by piece, so that its f32 are never all in memory.
/// A clone when it is in that format already.
///
/// # Errors
/// As [`encode`], and [`BlockError::Weight`] when its rows are not whole blocks of the new format.
pub fn encode_weight(weight: &Weight, format: Format) -> Result<Weight, BlockError> {
    if weight.format() == format {
        return Ok(weight.clone());
    }
    let encode = codec(format).encode.ok_or(BlockError::NoEncoder { format })?;
    let decode = codec(weight.format()).decode;
    let mut bytes = vec![0; Weight::bytes_for(weight.shape(), format)?];
    let fault = weight
        .bytes()
        .par_chunks(piece_bytes(weight.format()))
        .zip(bytes.par_chunks_mut(piece_bytes(format)))
        .with_min_len(MIN_PER_THREAD / PIECE)
        .enumerate()
        .find_map_first(|(piece, (packed, bytes))| {
            let mut numbers = [0.0; PIECE];
            let n_weights = bytes.len() / format.block_bytes() * format.block_weights();
            decode(packed, &mut numbers[..n_weights]);
            Some((piece, encode(&numbers[..n_weights], bytes)?))
        });
    match fault {
        Some((piece, fault)) => Err(fault.into_error(format, piece)),
        None => Ok(Weight::new(weight.shape().to_vec(), format, bytes.into())?),
    }
}

/// Whether [`encode`] can write this format.
pub fn can_encode(format: Format) -> bool {
    codec(format).encode.is_some()
}

/// The first weight that is NaN or infinite, with its index in row order. Packed blocks are decoded only
/// when their scales leave it open.
pub fn first_non_finite(weight: &Weight) -> Option<(usize, f32)> {
    let find = codec(weight.format()).first_non_finite;
    weight
        .bytes()
        .par_chunks(piece_bytes(weight.format()))
        .with_min_len(MIN_PER_THREAD / PIECE)
        .enumerate()
        .find_map_first(|(piece, bytes)| find(bytes).map(|(index, value)| (piece * PIECE + index, value)))
}

/// What a format can do, as functions over any number of whole blocks.
struct Codec {
    decode: fn(&[u8], &mut [f32]),
    first_non_finite: fn(&[u8]) -> Option<(usize, f32)>,
    encode: Option<EncodePiece>,
}

type EncodePiece = fn(&[f32], &mut [u8]) -> Option<Fault>;

/// A weight that cannot be encoded, counted from the piece's first.
struct Fault {
    index: usize,
    value: f32,
}

impl Fault {
    fn into_error(self, format: Format, piece: usize) -> BlockError {
        let (index, value) = (piece * PIECE + self.index, self.value);
        if value.is_finite() {
            BlockError::TooLarge { format, index, value }
        } else {
            BlockError::NotFinite { format, index, value }
        }
    }
}

fn codec(format: Format) -> Codec {
    match format {
        Format::F32 => float_codec::<float::F32>(),
        Format::F16 => float_codec::<float::F16>(),
        Format::Bf16 => float_codec::<float::Bf16>(),
        Format::Q4_0 => block_codec::<q4::Q4_0>(),
        Format::Q4_1 => block_codec::<q4::Q4_1>(),
        Format::Q5_0 => block_codec::<q5::Q5_0>(),
        Format::Q5_1 => block_codec::<q5::Q5_1>(),
        Format::Q8_0 => block_codec::<q8::Q8_0>(),
        Format::Q2K => decode_only::<q2_k::Q2K>(),
        Format::Q3K => decode_only::<q3_k::Q3K>(),
        Format::Q4K => decode_only::<q4_k::Q4K>(),
        Format::Q5K => decode_only::<q4_k::Q5K>(),
        Format::Q6K => decode_only::<q6_k::Q6K>(),
        Format::Iq4Nl => decode_only::<iq4::Iq4Nl>(),
        Format::Iq4Xs => decode_only::<iq4::Iq4Xs>(),
        Format::Mxfp4 => decode_only::<mxfp4::Mxfp4>(),
    }
}

fn decode_only<B: BlockFormat>() -> Codec {
    Codec { decode: decode_blocks::<B>, first_non_finite: first_non_finite_in::<B>, encode: None }
}

fn block_codec<B: EncodeBlock>() -> Codec {
    Codec { encode: Some(encode_blocks::<B>), ..decode_only::<B>() }
}

fn float_codec<B: EncodeBlock>() -> Codec {
    Codec { encode: Some(encode_floats::<B>), ..decode_only::<B>() }
}

fn decode_blocks<B: BlockFormat>(bytes: &[u8], weights: &mut [f32]) {
    widest(
        #[inline(always)]
        || {
            for (block, weights) in bytes.chunks_exact(B::N_BYTES).zip(weights.chunks_exact_mut(B::N_WEIGHTS))
            {
                B::decode(block, weights);
            }
        },
    );
}

/// Runs a loop compiled for the widest registers that this CPU has; the closure must be `#[inline(always)]`. The bits are the same for all: nothing here adds
/// up floats in another order or fuses a product with a sum.
#[inline(always)]
fn widest<R>(work: impl FnOnce() -> R) -> R {
    /// Inlined into a function of the CPU's features, and with it what it calls.
    struct Work<F>(F);
    impl<R, F: FnOnce() -> R> WithSimd for Work<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Work(work))
}

fn first_non_finite_in<B: BlockFormat>(bytes: &[u8]) -> Option<(usize, f32)> {
    // Counting instead of stopping at the first keeps the loop free of branches.
    let open = widest(
        #[inline(always)]
        || bytes.chunks_exact(B::N_BYTES).filter(|block| !B::is_surely_finite(block)).count(),
    );
    if open == 0 {
        return None;
    }
    let mut weights = vec![0.0; B::N_WEIGHTS];
    bytes.chunks_exact(B::N_BYTES).enumerate().find_map(|(index, block)| {
        B::decode(block, &mut weights);
        let (offset, value) = weights.iter().enumerate().find(|(_, w)| !w.is_finite())?;
        Some((index * B::N_WEIGHTS + offset, *value))
    })
}

fn encode_blocks<B: EncodeBlock>(weights: &[f32], bytes: &mut [u8]) -> Option<Fault> {
    if let Some(fault) = find_not_finite(weights) {
        return Some(fault);
    }
    widest(
        #[inline(always)]
        || {
            for (weights, block) in weights.chunks_exact(B::N_WEIGHTS).zip(bytes.chunks_exact_mut(B::N_BYTES))
            {
                B::encode(weights, block);
            }
        },
    );
    // Finite weights may still have a scale beyond f16.
    let index = bytes.chunks_exact(B::N_BYTES).position(|block| !B::is_surely_finite(block))?;
    let first = index * B::N_WEIGHTS;
    let largest = |a: usize, b: usize| if weights[b].abs() > weights[a].abs() { b } else { a };
    let index = (first..first + B::N_WEIGHTS).reduce(largest)?;
    Some(Fault { index, value: weights[index] })
}

fn encode_floats<B: EncodeBlock>(weights: &[f32], bytes: &mut [u8]) -> Option<Fault> {
    widest(
        #[inline(always)]
        || {
            for (weights, block) in weights.chunks_exact(1).zip(bytes.chunks_exact_mut(B::N_BYTES)) {
                B::encode(weights, block);
            }
        },
    );
    let finite = bytes.chunks_exact(B::N_BYTES).filter(|block| B::is_surely_finite(block)).count();
    if finite == weights.len() {
        return None;
    }
    let blocks = bytes.chunks_exact(B::N_BYTES);
    let index =
        weights.iter().zip(blocks).position(|(w, block)| w.is_finite() && !B::is_surely_finite(block))?;
    Some(Fault { index, value: weights[index] })
}

fn find_not_finite(weights: &[f32]) -> Option<Fault> {
    let is_bad = |w: &&f32| w.to_bits() & 0x7f80_0000 == 0x7f80_0000;
    let n_bad = widest(
        #[inline(always)]
        || weights.iter().filter(is_bad).count(),
    );
    if n_bad == 0 {
        return None;
    }
    let index = weights.iter().position(|w| !w.is_finite())?;
    Some(Fault { index, value: weights[index] })
}

const fn piece_bytes(format: Format) -> usize {
    PIECE / format.block_weights() * format.block_bytes()
}

fn check_lengths(format: Format, n_bytes: usize, n_weights: usize) -> Result<(), BlockError> {
    let expected = format.bytes_for(n_weights).ok_or(BlockError::PartialBlock { format, n_weights })?;
    if n_bytes == expected {
        Ok(())
    } else {
        Err(BlockError::Length { format, n_weights, expected, found: n_bytes })
    }
}
