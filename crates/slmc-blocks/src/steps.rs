//! The levels of a format as numbers before scaling, and the nearest of them.
//!
//! Searches only need the step itself, so [`Steps::step`] is arithmetic without branches or table look-ups and
//! becomes SIMD.

/// A set of steps; a level is an index into it.
pub(crate) trait Steps {
    /// The steps by level.
    const TABLE: &'static [f32];
    /// The step of largest magnitude.
    const FAR: f32;
    /// The step farthest from zero on the other side.
    const NEAR: f32;

    /// The step nearest to `number`. As it stands, of a table that rises.
    #[inline(always)]
    fn step(number: f32) -> f32 {
        let mut step = Self::TABLE[0];
        for pair in Self::TABLE.windows(2) {
            step = if number > (pair[0] + pair[1]) / 2.0 { pair[1] } else { step };
        }
        step
    }

    /// The level of that step.
    #[inline(always)]
    fn level(number: f32) -> u8 {
        Self::TABLE.windows(2).map(|pair| u8::from(number > (pair[0] + pair[1]) / 2.0)).sum()
    }
}

/// Whole numbers from `LOW` to `HIGH`.
pub(crate) struct Uniform<const LOW: i32, const HIGH: i32>;

impl<const LOW: i32, const HIGH: i32> Steps for Uniform<LOW, HIGH> {
    const TABLE: &'static [f32] =
        WHOLE.as_slice().split_at((LOW + 128) as usize).1.split_at((HIGH - LOW + 1) as usize).0;
    const FAR: f32 = if -LOW > HIGH { LOW as f32 } else { HIGH as f32 };
    const NEAR: f32 = if -LOW > HIGH { HIGH as f32 } else { LOW as f32 };

    #[inline(always)]
    fn step(number: f32) -> f32 {
        (clamp(number, LOW as f32, HIGH as f32) + ROUNDER) - ROUNDER
    }

    #[inline(always)]
    fn level(number: f32) -> u8 {
        let rounded = clamp(number, LOW as f32, HIGH as f32) + ROUNDER;
        // The low bits of the sum are the whole number.
        (rounded.to_bits().wrapping_sub(ROUNDER.to_bits()) as i32 - LOW) as u8
    }
}

/// The uneven steps of IQ4_NL and IQ4_XS (`kvalues_iq4nl` in ggml), dense around zero.
pub(crate) struct Uneven;

impl Steps for Uneven {
    const TABLE: &'static [f32] = &[
        -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0,
        113.0,
    ];
    const FAR: f32 = -127.0;
    const NEAR: f32 = 113.0;
}

/// NormalFloat's steps (Dettmers et al. 2023, QLoRA, appendix E): about as many weights of a normal distribution fall to each.
pub(crate) struct NormalFloat;

impl Steps for NormalFloat {
    const TABLE: &'static [f32] = &[
        -1.0,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_38,
        -0.184_773_43,
        -0.091_050_036,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ];
    const FAR: f32 = -1.0;
    const NEAR: f32 = 1.0;
}

/// The values of E2M1, doubled so that they are whole (`kvalues_mxfp4` in ggml).
pub(crate) struct E2m1;

impl Steps for E2m1 {
    const TABLE: &'static [f32] =
        &[0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];
    const FAR: f32 = 12.0;
    const NEAR: f32 = -12.0;

    #[inline(always)]
    fn step(number: f32) -> f32 {
        let mut step = 0.0;
        for pair in Self::TABLE[..8].windows(2) {
            step += if number.abs() > (pair[0] + pair[1]) / 2.0 { pair[1] - pair[0] } else { 0.0 };
        }
        step.copysign(number)
    }

    #[inline(always)]
    fn level(number: f32) -> u8 {
        let above = |pair: &[f32]| u8::from(number.abs() > (pair[0] + pair[1]) / 2.0);
        let magnitude: u8 = Self::TABLE[..8].windows(2).map(above).sum();
        // Level 8 is -0: zero has one level.
        if number < 0.0 && magnitude > 0 { magnitude | 8 } else { magnitude }
    }
}

/// Adding 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded to a whole number, ties to even.
const ROUNDER: f32 = 12_582_912.0;

/// -128 to 127.
const WHOLE: [f32; 256] = {
    let mut whole = [0.0; 256];
    let mut i = 0;
    while i < 256 {
        whole[i] = i as f32 - 128.0;
        i += 1;
    }
    whole
};

/// As `f32::clamp`, in the form that becomes two instructions.
#[inline(always)]
fn clamp(number: f32, low: f32, high: f32) -> f32 {
    let number = if number > low { number } else { low };
    if number < high { number } else { high }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<S: Steps>() {
        for i in -40_000..=40_000 {
            let number = i as f32 / 256.0;
            let distance = |step: f32| (number - step).abs();
            let nearest = S::TABLE.iter().copied().map(distance).fold(f32::INFINITY, f32::min);
            assert_eq!(distance(S::step(number)), nearest, "{number}");
            assert_eq!(S::TABLE[usize::from(S::level(number))], S::step(number), "{number}");
        }
        assert!(S::TABLE.contains(&S::FAR) && S::TABLE.contains(&S::NEAR));
    }

    #[test]
    fn steps_are_the_nearest() {
        check::<Uniform<0, 3>>();
        check::<Uniform<-4, 3>>();
        check::<Uniform<-8, 7>>();
        check::<Uniform<-128, 127>>();
        check::<Uneven>();
        check::<E2m1>();
    }
}
