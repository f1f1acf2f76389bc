//! The range of a block: what its scale is made from.
//!
//! A plain running maximum is one long chain of dependent comparisons; eight lanes side by side are SIMD.
//! Which of two equal numbers is taken (+0 or -0, +m or -m) shows in the bytes, so ties go to the first in order,
//! as in ggml.

/// Smallest and largest of 32 numbers, the first of equal ones.
#[inline(always)]
pub(crate) fn min_max(weights: &[f32; 32]) -> (f32, f32) {
    let (mut low, mut high) = extremes(weights);
    // Only zeros compare equal with different bits.
    if low == 0.0 {
        low = first_equal(weights, 0.0);
    }
    if high == 0.0 {
        high = first_equal(weights, 0.0);
    }
    (low, high)
}

/// The number of largest magnitude, with its sign, the first of equal ones; +0 when all are zeros.
#[inline(always)]
pub(crate) fn signed_max(weights: &[f32; 32]) -> f32 {
    let (low, high) = extremes(weights);
    if high == 0.0 && low == 0.0 {
        0.0
    } else if high > -low {
        high
    } else if high < -low {
        low
    } else {
        weights.iter().copied().find(|w| w.abs() == high).unwrap_or(high)
    }
}

/// Largest magnitude of some numbers.
#[inline(always)]
pub(crate) fn abs_max<const N: usize>(weights: &[f32; N]) -> f32 {
    let (low, high) = extremes(weights);
    if high > -low { high.abs() } else { low.abs() }
}

#[inline(always)]
fn extremes<const N: usize>(weights: &[f32; N]) -> (f32, f32) {
    let (lanes, _) = weights.as_chunks::<8>();
    let (mut low, mut high) = (lanes[0], lanes[0]);
    for lane in &lanes[1..] {
        for i in 0..8 {
            low[i] = if lane[i] < low[i] { lane[i] } else { low[i] };
            high[i] = if lane[i] > high[i] { lane[i] } else { high[i] };
        }
    }
    let mut extremes = (low[0], high[0]);
    for i in 1..8 {
        extremes.0 = if low[i] < extremes.0 { low[i] } else { extremes.0 };
        extremes.1 = if high[i] > extremes.1 { high[i] } else { extremes.1 };
    }
    extremes
}

fn first_equal(weights: &[f32; 32], number: f32) -> f32 {
    weights.iter().copied().find(|&w| w == number).unwrap_or(number)
}

/// The reciprocal of a scale; 0 for a scale that is zero, or so small that its reciprocal is infinite (f16 stores
/// both as zero).
#[inline(always)]
pub(crate) fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_first() {
        let mut weights = [0.5_f32; 32];
        (weights[9], weights[20]) = (-3.0, 3.0);
        assert_eq!(signed_max(&weights), -3.0);
        weights.swap(9, 20);
        assert_eq!(signed_max(&weights), 3.0);
        let mut zeros = [0.0_f32; 32];
        zeros[0] = -0.0;
        let (low, high) = min_max(&zeros);
        assert!(low.is_sign_negative() && high.is_sign_negative());
        assert!(signed_max(&zeros).is_sign_positive());
        assert_eq!(min_max(&std::array::from_fn(|i| (i as f32 - 7.0).abs())), (0.0, 24.0));
    }
}
