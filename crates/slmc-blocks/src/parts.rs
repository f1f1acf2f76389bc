//! A block taken apart, and put together again: what solvers that choose their own scales and levels work on.

use slmc_ir::Format;

use crate::{
    BlockError,
    block::PackBlock,
    float::f16_to_f32,
    iq4, mxfp4, nf4, q2_k, q3_k, q4, q4_k, q5, q6_k, q8,
    steps::{E2m1, NormalFloat, Steps, Uneven, Uniform},
};

/// Weights of the largest block.
pub const MAX_BLOCK: usize = 256;
/// Groups of the block with most of them.
pub const MAX_GROUPS: usize = 16;

/// The numbers in one block of any packed format. What a format does not have is zero.
///
/// | format | scale | min | group scales | group mins | levels | weight |
/// |---|---|---|---|---|---|---|
/// | Q4_0 Q5_0 Q8_0 | f16 | | | | 0–15, 0–31, 0–255 | scale · (level − 8, 16, 128) |
/// | Q4_1 Q5_1 | f16 | f16 | | | 0–15, 0–31 | scale · level + min |
/// | IQ4_NL | f16 | | | | 0–15 | scale · step\[level] |
/// | MXFP4 | exponent, 0–255 | | | | 0–15 | 2^(exponent − 128) · step\[level] |
/// | Q2_K | f16 | f16 | 16 of 0–15 | 16 of 0–15 | 0–3 | scale · group scale · level − min · group min |
/// | Q4_K Q5_K | f16 | f16 | 8 of 0–63 | 8 of 0–63 | 0–15, 0–31 | as Q2_K |
/// | Q3_K | f16 | | 16 of −32–31 | | 0–7 | scale · group scale · (level − 4) |
/// | Q6_K | f16 | | 16 of −128–127 | | 0–63 | scale · group scale · (level − 32) |
/// | IQ4_XS | f16 | | 8 of −32–31 | | 0–15 | scale · group scale · step\[level] |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The block's scale: the bits of an f16; of MXFP4, the biased exponent.
    pub scale: u16,
    /// The block's minimum, or the scale of its groups' minimums: the bits of an f16.
    pub min: u16,
    /// What the scale is multiplied by in each group.
    pub group_scales: [i8; MAX_GROUPS],
    /// What the minimum is multiplied by in each group.
    pub group_mins: [u8; MAX_GROUPS],
    /// A level for each weight, in the weights' order.
    pub levels: [u8; MAX_BLOCK],
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            scale: 0,
            min: 0,
            group_scales: [0; MAX_GROUPS],
            group_mins: [0; MAX_GROUPS],
            levels: [0; MAX_BLOCK],
        }
    }
}

/// What the parts of a format can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartsLayout {
    /// Weights that share a scale: the whole block, or a group of 16 or 32 in a block of 256.
    pub group: usize,
    /// The number that a level stands for, before it is scaled. Its length is the number of levels.
    pub steps: &'static [f32],
    /// Smallest and largest group scale; `None` where the block has one scale.
    pub group_scales: Option<(i8, i8)>,
    /// Largest group minimum; `None` where there are none.
    pub group_mins: Option<u8>,
    /// Whether weights are levels above a minimum.
    pub has_min: bool,
    /// Whether steps are whole numbers one apart, in rising order.
    pub is_uniform: bool,
}

impl PartsLayout {
    /// The layout of a packed format; `None` for plain floats.
    pub const fn of(format: Format) -> Option<Self> {
        Some(match format {
            Format::F32 | Format::F16 | Format::Bf16 => return None,
            Format::Q4_0 => uniform(Uniform::<-8, 7>::TABLE),
            Format::Q5_0 => uniform(Uniform::<-16, 15>::TABLE),
            Format::Q8_0 => uniform(Uniform::<-128, 127>::TABLE),
            Format::Q4_1 => Self { has_min: true, ..uniform(Uniform::<0, 15>::TABLE) },
            Format::Q5_1 => Self { has_min: true, ..uniform(Uniform::<0, 31>::TABLE) },
            Format::Iq4Nl => Self { is_uniform: false, ..uniform(Uneven::TABLE) },
            Format::Mxfp4 => Self { is_uniform: false, ..uniform(E2m1::TABLE) },
            Format::Nf4 => Self { group: 64, is_uniform: false, ..uniform(NormalFloat::TABLE) },
            Format::Q2K => with_mins(16, 15, Uniform::<0, 3>::TABLE),
            Format::Q4K => with_mins(32, 63, Uniform::<0, 15>::TABLE),
            Format::Q5K => with_mins(32, 63, Uniform::<0, 31>::TABLE),
            Format::Q3K => grouped(16, (-32, 31), Uniform::<-4, 3>::TABLE),
            Format::Q6K => grouped(16, (-128, 127), Uniform::<-32, 31>::TABLE),
            Format::Iq4Xs => Self { is_uniform: false, ..grouped(32, (-32, 31), Uneven::TABLE) },
        })
    }
}

const fn uniform(steps: &'static [f32]) -> PartsLayout {
    PartsLayout { group: 32, steps, group_scales: None, group_mins: None, has_min: false, is_uniform: true }
}

const fn grouped(group: usize, scales: (i8, i8), steps: &'static [f32]) -> PartsLayout {
    PartsLayout { group, group_scales: Some(scales), ..uniform(steps) }
}

const fn with_mins(group: usize, largest: i8, steps: &'static [f32]) -> PartsLayout {
    let grouped = grouped(group, (0, largest), steps);
    PartsLayout { group_mins: Some(largest as u8), has_min: true, ..grouped }
}

/// Takes a block apart.
///
/// # Errors
/// [`BlockError::NotPacked`] for plain floats, [`BlockError::Length`] when `block` is not one block.
pub fn unpack(format: Format, block: &[u8]) -> Result<Parts, BlockError> {
    let packing = packing(format)?;
    check_one_block(format, block.len())?;
    Ok((packing.unpack)(block))
}

/// Puts a block together. `unpack` gives the same parts again, and any block is what its parts are packed into.
///
/// # Errors
/// [`BlockError::NotPacked`] for plain floats, [`BlockError::Length`] when `block` is not one block,
/// [`BlockError::Part`] for a number that the format has no room for.
pub fn pack(format: Format, parts: &Parts, block: &mut [u8]) -> Result<(), BlockError> {
    let packing = packing(format)?;
    check_one_block(format, block.len())?;
    check_ranges(format, parts)?;
    (packing.pack)(parts, block);
    Ok(())
}

struct Packing {
    unpack: fn(&[u8]) -> Parts,
    pack: fn(&Parts, &mut [u8]),
}

fn packing(format: Format) -> Result<Packing, BlockError> {
    const fn of<B: PackBlock>() -> Packing {
        Packing { unpack: B::unpack, pack: B::pack }
    }
    Ok(match format {
        Format::F32 | Format::F16 | Format::Bf16 => return Err(BlockError::NotPacked { format }),
        Format::Q4_0 => of::<q4::Q4_0>(),
        Format::Q4_1 => of::<q4::Q4_1>(),
        Format::Q5_0 => of::<q5::Q5_0>(),
        Format::Q5_1 => of::<q5::Q5_1>(),
        Format::Q8_0 => of::<q8::Q8_0>(),
        Format::Q2K => of::<q2_k::Q2K>(),
        Format::Q3K => of::<q3_k::Q3K>(),
        Format::Q4K => of::<q4_k::Q4K>(),
        Format::Q5K => of::<q4_k::Q5K>(),
        Format::Q6K => of::<q6_k::Q6K>(),
        Format::Iq4Nl => of::<iq4::Iq4Nl>(),
        Format::Iq4Xs => of::<iq4::Iq4Xs>(),
        Format::Mxfp4 => of::<mxfp4::Mxfp4>(),
        Format::Nf4 => of::<nf4::Nf4>(),
    })
}

fn check_one_block(format: Format, n_bytes: usize) -> Result<(), BlockError> {
    let (expected, n_weights) = (format.block_bytes(), format.block_weights());
    if n_bytes == expected {
        Ok(())
    } else {
        Err(BlockError::Length { format, n_weights, expected, found: n_bytes })
    }
}

fn check_ranges(format: Format, parts: &Parts) -> Result<(), BlockError> {
    let layout = PartsLayout::of(format).ok_or(BlockError::NotPacked { format })?;
    let out_of_range = |what, index, value: i32| BlockError::Part { format, what, index, value };
    let n_groups = format.block_weights() / layout.group;
    if let Some((low, high)) = layout.group_scales {
        let mut scales = parts.group_scales[..n_groups].iter().enumerate();
        if let Some((index, &value)) = scales.find(|(_, value)| !(low..=high).contains(value)) {
            return Err(out_of_range("group scale", index, value.into()));
        }
    }
    if let Some(largest) = layout.group_mins {
        let mut mins = parts.group_mins[..n_groups].iter().enumerate();
        if let Some((index, &value)) = mins.find(|&(_, &value)| value > largest) {
            return Err(out_of_range("group minimum", index, value.into()));
        }
    }
    let mut levels = parts.levels[..format.block_weights()].iter().enumerate();
    if let Some((index, &value)) = levels.find(|&(_, &value)| usize::from(value) >= layout.steps.len()) {
        return Err(out_of_range("level", index, value.into()));
    }
    if format == Format::Mxfp4 && parts.scale > 255 {
        return Err(out_of_range("exponent", 0, parts.scale.into()));
    }
    Ok(())
}

/// The weights that a block's scales leave to choose from: `weight = scale[group] * step[level] + offset[group]`,
/// bit for bit what decoding gives.
#[derive(Clone, Debug)]
pub struct Grid {
    layout: PartsLayout,
    scales: [f32; MAX_GROUPS],
    offsets: [f32; MAX_GROUPS],
}

impl Grid {
    /// The grid of a block's scales; its levels are not looked at.
    ///
    /// # Errors
    /// [`BlockError::NotPacked`] for plain floats.
    pub fn new(format: Format, parts: &Parts) -> Result<Self, BlockError> {
        let layout = PartsLayout::of(format).ok_or(BlockError::NotPacked { format })?;
        let scale = match format {
            Format::Mxfp4 => mxfp4::half_power(parts.scale as u8),
            _ => f16_to_f32(parts.scale),
        };
        let min = f16_to_f32(parts.min);
        let n_groups = format.block_weights() / layout.group;
        // Adding -0 changes no number, not even a zero's sign.
        let (mut scales, mut offsets) = ([0.0; MAX_GROUPS], [-0.0; MAX_GROUPS]);
        for group in 0..n_groups {
            scales[group] = match layout.group_scales {
                Some(_) => scale * f32::from(parts.group_scales[group]),
                None => scale,
            };
            if layout.group_mins.is_some() {
                offsets[group] = -(min * f32::from(parts.group_mins[group]));
            } else if layout.has_min {
                offsets[group] = min;
            }
        }
        Ok(Self { layout, scales, offsets })
    }

    /// What the format's parts can be.
    pub fn layout(&self) -> &PartsLayout {
        &self.layout
    }

    /// Scale of the group that the block's weight `index` is in.
    #[inline]
    pub fn scale(&self, index: usize) -> f32 {
        self.scales[index / self.layout.group]
    }

    /// What is added to the weights of that group.
    #[inline]
    pub fn offset(&self, index: usize) -> f32 {
        self.offsets[index / self.layout.group]
    }

    /// The weight that `level` stands for at place `index` of the block.
    ///
    /// # Panics
    /// When the format has no such level or the block no such place.
    #[inline]
    pub fn weight(&self, index: usize, level: u8) -> f32 {
        self.scale(index) * self.layout.steps[usize::from(level)] + self.offset(index)
    }

    /// The level whose weight is nearest to `weight` at place `index`; some level for a NaN.
    #[inline]
    pub fn level(&self, index: usize, weight: f32) -> u8 {
        let scale = self.scale(index);
        let steps = self.layout.steps;
        let number = if scale == 0.0 { 0.0 } else { (weight - self.offset(index)) / scale };
        if self.layout.is_uniform {
            // A cast saturates, and makes 0 of a NaN.
            let level = (number - steps[0]).round_ties_even() as i32;
            return level.clamp(0, steps.len() as i32 - 1) as u8;
        }
        let mut nearest = 0;
        for (level, step) in steps.iter().enumerate() {
            if (number - step).abs() < (number - steps[nearest]).abs() {
                nearest = level;
            }
        }
        nearest as u8
    }

    /// Decodes levels, one for each of `weights`, from the block's first weight on.
    ///
    /// # Panics
    /// As [`Grid::weight`].
    pub fn decode(&self, levels: &[u8], weights: &mut [f32]) {
        for (index, (weight, &level)) in weights.iter_mut().zip(levels).enumerate() {
            *weight = self.weight(index, level);
        }
    }
}
