//! Packed tensors whose scales learn while their levels stay: each block's f16 scale (and minimum), and norms' gains, as
//! shares of what they were.

use rayon::prelude::*;
use slmc_blocks::{BlockError, BlockHalves, PartsLayout, decode, f16_to_f32, f32_to_f16, unpack};
use slmc_ir::{Format, TensorKey, Weight};
use slmc_kernels::{AdamWStep, adamw};

/// Blocks that are one piece of work.
const PIECE: usize = 4096;
/// A minimum that is a number of its own moves in steps of this many scales, about half of its levels' range: relative to
/// what they do, scale and minimum then learn alike.
const MIN_UNIT: f32 = 8.0;

/// A tensor that learns.
pub(crate) struct PackedTensor {
    pub(crate) key: TensorKey,
    shape: Vec<usize>,
    format: Format,
    /// The blocks as they are now; of gains, their numbers.
    bytes: Vec<u8>,
    kind: Kind,
    /// Shares by which scales are larger than they were, then minimums; or gains.
    pub(crate) change: Vec<f32>,
    /// Running means of the gradient and of its square.
    pub(crate) moments: [Vec<f32>; 2],
}

enum Kind {
    Blocks {
        halves: BlockHalves,
        /// Scale and minimum of each block as they were, and what the minimum is moved in.
        origin: Vec<[f32; 3]>,
        /// `b` of each group of each block, `n_groups` a block.
        group_mins: Vec<f32>,
        n_groups: usize,
    },
    Gains {
        origin: Vec<f32>,
    },
}

impl PackedTensor {
    /// A tensor of the model, if there is something in it that learns without a level being changed.
    pub(crate) fn new(key: TensorKey, weight: &Weight) -> Result<Option<Self>, BlockError> {
        let format = weight.format();
        let kind = match BlockHalves::of(format) {
            Some(halves) => blocks(format, weight.bytes(), halves)?,
            None if format == Format::F32 && weight.shape().len() == 1 && !key.role.is_matrix() => {
                Kind::Gains { origin: slmc_blocks::decode_weight(weight)? }
            }
            None => return Ok(None),
        };
        let n = match &kind {
            Kind::Blocks { origin, halves, .. } => origin.len() * (1 + usize::from(halves.min.is_some())),
            Kind::Gains { origin } => origin.len(),
        };
        Ok(Some(Self {
            key,
            shape: weight.shape().to_vec(),
            format,
            bytes: weight.bytes().to_vec(),
            kind,
            change: vec![0.0; n],
            moments: [vec![0.0; n], vec![0.0; n]],
        }))
    }

    /// The tensor as it is now.
    pub(crate) fn weight(&self) -> Weight {
        Weight::new(self.shape.clone(), self.format, self.bytes.clone().into()).expect("as large as it was")
    }

    /// Its numbers.
    pub(crate) fn numbers(&self) -> Result<Vec<f32>, BlockError> {
        let mut numbers = vec![0.0; self.shape.iter().product()];
        decode(self.format, &self.bytes, &mut numbers)?;
        Ok(numbers)
    }

    /// One step against the gradient of the numbers.
    pub(crate) fn step(&mut self, gradient: &[f32], step: AdamWStep) {
        let own = self.gradient(gradient);
        let [first, second] = &mut self.moments;
        adamw(step, &mut self.change, &own, first, second);
        self.settle();
    }

    /// Writes what the changes make of the scales into the blocks.
    pub(crate) fn settle(&mut self) {
        match &self.kind {
            Kind::Gains { origin } => {
                let gains = origin.iter().zip(&self.change).map(|(gain, change)| gain * (1.0 + change));
                self.bytes = gains.flat_map(f32::to_le_bytes).collect();
            }
            Kind::Blocks { halves, origin, .. } => {
                let (scales, mins) = self.change.split_at(origin.len());
                for (i, (block, [scale, min, unit])) in
                    self.bytes.chunks_exact_mut(self.format.block_bytes()).zip(origin).enumerate()
                {
                    put(block, halves.scale, scale * (1.0 + scales[i]));
                    if let Some(offset) = halves.min {
                        put(block, offset, min + unit * mins[i]);
                    }
                }
            }
        }
    }

    /// The gradient of the changes, from that of the numbers: with `w = scale * a + min * b`, the scale's is the sum of
    /// `g a` and the minimum's that of `g b`.
    fn gradient(&self, gradient: &[f32]) -> Vec<f32> {
        let (halves, origin, group_mins, n_groups) = match &self.kind {
            Kind::Gains { origin } => {
                return origin.iter().zip(gradient).map(|(gain, gradient)| gain * gradient).collect();
            }
            Kind::Blocks { halves, origin, group_mins, n_groups } => (halves, origin, group_mins, n_groups),
        };
        let (n_weights, n_bytes) = (self.format.block_weights(), self.format.block_bytes());
        let group = n_weights / n_groups;
        let (mut scales, mut mins) = (vec![0.0; origin.len()], vec![0.0; origin.len()]);
        let out = scales.par_chunks_mut(PIECE).zip(mins.par_chunks_mut(PIECE));
        let pieces = self.bytes.par_chunks(PIECE * n_bytes).zip(gradient.par_chunks(PIECE * n_weights));
        let origins = origin.par_chunks(PIECE).zip(group_mins.par_chunks(PIECE * n_groups));
        out.zip(pieces).zip(origins).for_each(
            |(((scales, mins), (bytes, gradient)), (origin, group_mins))| {
                let mut numbers = vec![0.0; gradient.len()];
                decode(self.format, bytes, &mut numbers).expect("whole blocks");
                for (i, block) in bytes.chunks_exact(n_bytes).enumerate() {
                    let now = half(block, halves.scale);
                    let min = halves.min.map_or(0.0, |offset| half(block, offset));
                    let (mut by_scale, mut by_min) = (0.0_f32, 0.0_f32);
                    for g in 0..*n_groups {
                        let at = i * n_weights + g * group;
                        let b = group_mins[i * n_groups + g];
                        let part = &gradient[at..at + group];
                        let sum: f32 = part.iter().sum();
                        let dot: f32 = part.iter().zip(&numbers[at..at + group]).map(|(g, w)| g * w).sum();
                        by_scale += dot - sum * min * b;
                        by_min += sum * b;
                    }
                    let [scale, _, unit] = origin[i];
                    // The numbers are multiples of the scale as it is now.
                    scales[i] = if now == 0.0 { 0.0 } else { by_scale / now * scale };
                    mins[i] = by_min * unit;
                }
            },
        );
        if halves.min.is_some() {
            scales.extend(mins);
        }
        scales
    }
}

fn blocks(format: Format, bytes: &[u8], halves: BlockHalves) -> Result<Kind, BlockError> {
    let layout = PartsLayout::of(format).expect("a packed format");
    let has_group_mins = layout.group_mins.is_some();
    let n_groups = if has_group_mins { format.block_weights() / layout.group } else { 1 };
    let (mut origin, mut group_mins) = (Vec::new(), Vec::new());
    for block in bytes.chunks_exact(format.block_bytes()) {
        let scale = half(block, halves.scale);
        let min = halves.min.map_or(0.0, |offset| half(block, offset));
        // A minimum that is multiplied in each group changes by a share of itself.
        let unit = if has_group_mins { min } else { MIN_UNIT * scale.abs() };
        origin.push([scale, min, unit]);
        match has_group_mins {
            true => {
                let mins = unpack(format, block)?.group_mins;
                group_mins.extend(mins[..n_groups].iter().map(|&min| -f32::from(min)));
            }
            false => group_mins.push(1.0),
        }
    }
    Ok(Kind::Blocks { halves, origin, group_mins, n_groups })
}

fn half(block: &[u8], offset: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[offset], block[offset + 1]]))
}

/// The nearest f16; a number beyond them keeps the block as it is.
fn put(block: &mut [u8], offset: usize, number: f32) {
    let bits = f32_to_f16(number);
    if f16_to_f32(bits).is_finite() {
        block[offset..offset + 2].copy_from_slice(&bits.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use slmc_ir::Role;

    use super::*;

    /// Numbers without a pattern.
    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.618).sin() * 0.1).collect()
    }

    fn packed(format: Format) -> PackedTensor {
        let exact = Weight::from_f32(vec![3, 512], &numbers(1536, 1)).unwrap();
        let weight = slmc_blocks::encode_weight(&exact, format).unwrap();
        PackedTensor::new(TensorKey::block(0, Role::Up), &weight).unwrap().unwrap()
    }

    fn learning() -> impl Iterator<Item = Format> {
        Format::ALL.into_iter().filter(|&format| BlockHalves::of(format).is_some())
    }

    #[test]
    fn gradients_are_differences() {
        for format in learning() {
            let mut tensor = packed(format);
            let gradient = numbers(1536, 2);
            let loss = |tensor: &PackedTensor| -> f64 {
                let numbers = tensor.numbers().unwrap();
                numbers.iter().zip(&gradient).map(|(w, g)| f64::from(*w) * f64::from(*g)).sum()
            };
            let found = tensor.gradient(&gradient);
            for i in [0, 1, found.len() / 2, found.len() - 1] {
                let mut at = |change: f32| {
                    tensor.change[i] = change;
                    tensor.settle();
                    loss(&tensor)
                };
                // Large enough that the rounding of scales to f16 does not show.
                let expected = (at(0.25) - at(-0.25)) / 0.5;
                at(0.0);
                let scale: f64 = numbers(1536, 1).iter().map(|&w| f64::from(w).abs()).fold(0.0, f64::max);
                let found = f64::from(found[i]);
                assert!(
                    (found - expected).abs() < 0.01 * (expected.abs() + scale),
                    "{format} {i}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn nothing_changes_until_it_learns() {
        for format in learning() {
            let mut tensor = packed(format);
            let before = tensor.weight();
            tensor.settle();
            assert_eq!(tensor.weight().bytes(), before.bytes(), "{format}");
        }
    }

    #[test]
    fn plain_matrices_and_powers_of_two_do_not_learn() {
        let exact = Weight::from_f32(vec![2, 32], &numbers(64, 3)).unwrap();
        let key = TensorKey::block(0, Role::Up);
        assert!(PackedTensor::new(key, &exact).unwrap().is_none());
        let coarse = slmc_blocks::encode_weight(&exact, Format::Mxfp4).unwrap();
        assert!(PackedTensor::new(key, &coarse).unwrap().is_none());
    }
}
