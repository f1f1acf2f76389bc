//! Whole tensors: the table of formats, and the loops that spread blocks over threads.

use rayon::prelude::*;
use slmc_ir::{Format, Weight};

use crate::{
    BlockError,
    block::{BlockFormat, EncodeBlock},
    fit::FitBlock,
    float, iq4, mxfp4, nf4,
    parts::{MAX_BLOCK, Parts},
    q2_k, q3_k, q4, q4_k, q5, q6_k, q8,
    widest::widest,
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

/// Encodes `weights` into `bytes`, any number of whole blocks, rounding to nearest.
///
/// For Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 the bytes are those of ggml's `quantize_row_*_ref`, with the scale that just
/// covers the block, as NF4's does. The other formats have no such plain scale: theirs are searched for, as by
/// [`encode_weighted`] without importances. Plain floats keep NaN and infinity.
///
/// # Errors
/// [`BlockError::PartialBlock`] and [`BlockError::Length`] when the two lengths do
/// not belong together; [`BlockError::NotFinite`] and [`BlockError::TooLarge`] for the first block that the
/// format cannot hold. After an error `bytes` holds no usable blocks.
pub fn encode(format: Format, weights: &[f32], bytes: &mut [u8]) -> Result<(), BlockError> {
    let encode = codec(format).encode;
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
    let encode = codec(format).encode;
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

/// As [`encode`], but the scales of every packed format are searched for the least squared error of its weights, each
/// counted as often as `importance` says: one number a column, the mean square of what the column is multiplied
/// by. Without it all count the same. Plain floats are only rounded.
///
/// # Errors
/// As [`encode`]; [`BlockError::Columns`] when the importances are not one a column of rows of whole blocks,
/// [`BlockError::Importance`] for one that is negative or not finite.
pub fn encode_weighted(
    format: Format,
    weights: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut [u8],
) -> Result<(), BlockError> {
    check_importance(format, weights.len(), importance)?;
    let Some(fit) = codec(format).fit else { return encode(format, weights, bytes) };
    check_lengths(format, bytes.len(), weights.len())?;
    let fault =
        weights.par_chunks(PIECE).zip(bytes.par_chunks_mut(piece_bytes(format))).enumerate().find_map_first(
            |(piece, (weights, bytes))| {
                Some((piece, fit(weights, Columns { importance, first: piece * PIECE }, bytes)?))
            },
        );
    fault.map_or(Ok(()), |(piece, fault)| Err(fault.into_error(format, piece)))
}

/// The parts of one block, its scales searched for as by [`encode_weighted`]. `importance` has a number for each of
/// its weights.
///
/// # Errors
/// [`BlockError::NotPacked`] for plain floats, and as [`encode_weighted`] for a matrix of one block.
pub fn fit(format: Format, weights: &[f32], importance: Option<&[f32]>) -> Result<Parts, BlockError> {
    let mut block = [0; 256];
    let block = &mut block[..format.block_bytes()];
    if weights.len() != format.block_weights() {
        return Err(BlockError::PartialBlock { format, n_weights: weights.len() });
    }
    encode_weighted(format, weights, importance, block)?;
    crate::parts::unpack(format, block)
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
    encode: EncodePiece,
    fit: Option<FitPiece>,
}

type FitPiece = fn(&[f32], Columns<'_>, &mut [u8]) -> Option<Fault>;

/// The importance of a matrix's columns, and where in it a piece begins, counted in weights.
#[derive(Clone, Copy)]
struct Columns<'a> {
    importance: Option<&'a [f32]>,
    first: usize,
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
        Format::Q2K => fitted_codec::<q2_k::Q2K>(),
        Format::Q3K => fitted_codec::<q3_k::Q3K>(),
        Format::Q4K => fitted_codec::<q4_k::Q4K>(),
        Format::Q5K => fitted_codec::<q4_k::Q5K>(),
        Format::Q6K => fitted_codec::<q6_k::Q6K>(),
        Format::Iq4Nl => fitted_codec::<iq4::Iq4Nl>(),
        Format::Iq4Xs => fitted_codec::<iq4::Iq4Xs>(),
        Format::Mxfp4 => fitted_codec::<mxfp4::Mxfp4>(),
        Format::Nf4 => block_codec::<nf4::Nf4>(),
    }
}

/// Formats whose scales are always searched for.
fn fitted_codec<B: FitBlock>() -> Codec {
    Codec {
        decode: decode_blocks::<B>,
        first_non_finite: first_non_finite_in::<B>,
        encode: |weights, bytes| fit_blocks::<B>(weights, Columns { importance: None, first: 0 }, bytes),
        fit: Some(fit_blocks::<B>),
    }
}

/// Formats with a plain scale, too.
fn block_codec<B: EncodeBlock + FitBlock>() -> Codec {
    Codec { encode: encode_blocks::<B>, ..fitted_codec::<B>() }
}

fn float_codec<B: EncodeBlock>() -> Codec {
    Codec {
        decode: decode_blocks::<B>,
        first_non_finite: first_non_finite_in::<B>,
        encode: encode_floats::<B>,
        fit: None,
    }
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
    find_too_large::<B>(weights, bytes)
}

fn fit_blocks<B: FitBlock>(weights: &[f32], columns: Columns<'_>, bytes: &mut [u8]) -> Option<Fault> {
    if let Some(fault) = find_not_finite(weights) {
        return Some(fault);
    }
    widest(
        #[inline(always)]
        || {
            let blocks = weights.chunks_exact(B::N_WEIGHTS).zip(bytes.chunks_exact_mut(B::N_BYTES));
            for (index, (weights, block)) in blocks.enumerate() {
                let mut importance = [1.0; MAX_BLOCK];
                let importance = &mut importance[..B::N_WEIGHTS];
                columns.fill(index * B::N_WEIGHTS, importance);
                B::pack(&B::fit(weights, importance), block);
            }
        },
    );
    find_too_large::<B>(weights, bytes)
}

impl Columns<'_> {
    /// Writes the importances of a block that begins `offset` weights into the piece over ones. Their mean becomes
    /// 1, so that no scale of theirs overflows; a block without any has ones.
    #[inline(always)]
    fn fill(&self, offset: usize, importance: &mut [f32]) {
        let Some(columns) = self.importance else { return };
        let first = (self.first + offset) % columns.len();
        let columns = &columns[first..first + importance.len()];
        let sum: f64 = columns.iter().map(|&x| f64::from(x)).sum();
        if sum > 0.0 {
            let to_mean = columns.len() as f64 / sum;
            for (importance, &column) in importance.iter_mut().zip(columns) {
                *importance = (f64::from(column) * to_mean) as f32;
            }
        }
    }
}

/// Finite weights may still have a scale beyond f16.
fn find_too_large<B: BlockFormat>(weights: &[f32], bytes: &[u8]) -> Option<Fault> {
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

fn check_importance(format: Format, n_weights: usize, importance: Option<&[f32]>) -> Result<(), BlockError> {
    let Some(columns) = importance else { return Ok(()) };
    let n_columns = columns.len();
    let whole = n_columns.is_multiple_of(format.block_weights());
    if !whole || !n_weights.is_multiple_of(n_columns) || n_columns == 0 {
        return Err(BlockError::Columns { format, n_columns, n_weights });
    }
    match columns.iter().position(|x| !(x.is_finite() && *x >= 0.0)) {
        Some(column) => Err(BlockError::Importance { column, value: columns[column] }),
        None => Ok(()),
    }
}

fn check_lengths(format: Format, n_bytes: usize, n_weights: usize) -> Result<(), BlockError> {
    let expected = format.bytes_for(n_weights).ok_or(BlockError::PartialBlock { format, n_weights })?;
    if n_bytes == expected {
        Ok(())
    } else {
        Err(BlockError::Length { format, n_weights, expected, found: n_bytes })
    }
}
