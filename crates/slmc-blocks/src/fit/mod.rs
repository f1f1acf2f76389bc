//! Scales that are searched for: what gives the least squared error after rounding, not what just covers the range.
//!
//! Each weight's error counts as often as its importance says, the mean square of what its column is multiplied
//! by: then the sum is what the error of the products is expected to be. Nothing here follows ggml's searches;
//! the blocks are others than llama-quantize's, and at least as close.

mod affine;
mod k_affine;
mod k_scaled;
mod scaled;
mod sums;

use crate::{
    block::PackBlock,
    float::f32_to_f16,
    iq4::{Iq4Nl, Iq4Xs},
    mxfp4::{Mxfp4, half_power},
    nf4::Nf4,
    parts::Parts,
    q2_k::Q2K,
    q3_k::Q3K,
    q4::{Q4_0, Q4_1},
    q4_k::{Q4K, Q5K},
    q5::{Q5_0, Q5_1},
    q6_k::Q6K,
    q8::Q8_0,
    steps::{E2m1, NormalFloat, Steps, Uneven, Uniform},
};

/// A block layout whose scales can be searched for.
pub(crate) trait FitBlock: PackBlock {
    /// Scales and levels of one block of finite weights, each with its importance: not negative, and not all zero.
    /// A block beyond the format's range gets scales that are not finite.
    fn fit(weights: &[f32], importance: &[f32]) -> Parts;
}

macro_rules! fit_with {
    ($($block:ty: $n_weights:literal, $search:expr;)*) => {$(
        impl FitBlock for $block {
            #[inline(always)]
            fn fit(weights: &[f32], importance: &[f32]) -> Parts {
                let (weights, importance): (&[f32; $n_weights], &[f32; $n_weights]) =
                    (crate::block::as_weights(weights), crate::block::as_weights(importance));
                $search(weights, importance)
            }
        }
    )*};
}

fit_with! {
    Q4_0: 32, fit_scaled::<Uniform<-8, 7>, 32>;
    Q5_0: 32, fit_scaled::<Uniform<-16, 15>, 32>;
    Q8_0: 32, fit_scaled::<Uniform<-128, 127>, 32>;
    Iq4Nl: 32, fit_scaled::<Uneven, 32>;
    Nf4: 64, fit_scaled::<NormalFloat, 64>;
    Q4_1: 32, fit_affine::<15>;
    Q5_1: 32, fit_affine::<31>;
    Mxfp4: 32, fit_power;
    Q3K: 256, k_scaled::fit::<Uniform<-4, 3>, 16, -32, 31>;
    Q6K: 256, k_scaled::fit::<Uniform<-32, 31>, 16, -128, 127>;
    Iq4Xs: 256, k_scaled::fit::<Uneven, 32, -32, 31>;
    Q2K: 256, k_affine::fit::<3, 16, 15>;
    Q4K: 256, k_affine::fit::<15, 32, 63>;
    Q5K: 256, k_affine::fit::<31, 32, 63>;
}

/// One scale for the block.
#[inline(always)]
fn fit_scaled<S: Steps, const N: usize>(weights: &[f32; N], importance: &[f32; N]) -> Parts {
    let [plain, other_side] = scaled::plain_scales::<S, N>(weights).map(f32_to_f16);
    let searched = f32_to_f16(scaled::best_scale::<S, N>(weights, importance));
    let mut best = (plain, f32::INFINITY);
    // With many levels the rounding of the scale itself counts: its neighbours may be better.
    let neighbours = [searched, searched.wrapping_add(1), searched.wrapping_sub(1)];
    for scale in [plain, other_side].into_iter().chain(neighbours) {
        let error = scaled::error::<S, N>(weights, importance, crate::f16_to_f32(scale)).error;
        if error < best.1 {
            best = (scale, error);
        }
    }
    let mut parts = Parts { scale: best.0, ..Parts::default() };
    scaled::levels::<S>(weights, crate::f16_to_f32(best.0), &mut parts.levels);
    parts
}

/// One scale and one minimum for 32 weights.
#[inline(always)]
fn fit_affine<const MAX: i32>(weights: &[f32; 32], importance: &[f32; 32]) -> Parts {
    let line = affine::best_line::<MAX, 32>(weights, importance, false);
    let plain = affine::plain_line::<MAX, 32>(weights);
    let mut best = ((f32_to_f16(plain.scale), f32_to_f16(plain.offset)), f32::INFINITY);
    for candidate in [plain, line].map(|line| (f32_to_f16(line.scale), f32_to_f16(line.offset))) {
        let error = affine::error::<MAX, 32>(weights, importance, affine::Line::from_f16(candidate)).error;
        if error < best.1 {
            best = (candidate, error);
        }
    }
    let mut parts = Parts { scale: best.0.0, min: best.0.1, ..Parts::default() };
    affine::levels::<MAX>(weights, affine::Line::from_f16(best.0), &mut parts.levels);
    parts
}

/// A power of two for 32 weights.
#[inline(always)]
fn fit_power(weights: &[f32; 32], importance: &[f32; 32]) -> Parts {
    let largest =
        weights.iter().fold(0.0, |largest: f32, w| if w.abs() > largest { w.abs() } else { largest });
    // The largest power below a twelfth of it cuts it off, the next holds it; the search goes one beyond each.
    let below = ((largest / 12.0).to_bits() >> 23) as u16 + 1;
    let mut best = ((below + 1).min(255), f32::INFINITY);
    for exponent in [below + 1, below, below - 1, below + 2] {
        let scale = half_power(exponent.min(255) as u8);
        let error = scaled::error::<E2m1, 32>(weights, importance, scale).error;
        // Beyond 252 the largest step is infinite.
        if error < best.1 && exponent <= 252 {
            best = (exponent, error);
        }
    }
    let mut parts = Parts { scale: best.0, ..Parts::default() };
    scaled::levels::<E2m1>(weights, half_power(best.0 as u8), &mut parts.levels);
    parts
}
