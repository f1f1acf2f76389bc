//! Llama 3's rotary scaling in GGUF: no parameters, but a tensor of the factors that each frequency is divided
//! by (llama.cpp `conversion/llama.py`, `generate_extra_tensors`).

use slmc_ir::RopeScaling;

use crate::error::TensorError;

/// What every published Llama 3.1, 3.2 and 3.3 has; the divisor of low frequencies differs: 8 or 32.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const ORIGINAL_CONTEXT_LEN: usize = 8192;
/// The factors are computed in f32 by whoever wrote the file.
const RELATIVE_TOLERANCE: f32 = 1e-4;

/// The factors of a spec's scaling, `[d_head / 2]`; `None` when no tensor is needed for it.
///
/// Computed in f32 in the order of llama.cpp's converter, so that files of both agree.
pub(crate) fn factors(scaling: RopeScaling, theta: f64, d_head: usize) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } = scaling
    else {
        return None;
    };
    let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
    let context = original_context_len as f32;
    let factor_of = |pair: usize| match kept_share(theta, d_head, pair, low, high, context) {
        Share::All => 1.0,
        Share::None => factor,
        Share::Part(share) => 1.0 / ((1.0 - share) / factor + share),
    };
    Some((0..d_head / 2).map(factor_of).collect())
}

/// How much of a frequency escapes the division.
enum Share {
    All,
    Part(f32),
    None,
}

fn kept_share(theta: f64, d_head: usize, pair: usize, low: f32, high: f32, context: f32) -> Share {
    let frequency = 1.0 / (theta as f32).powf(2.0 * pair as f32 / d_head as f32);
    let wavelength = std::f32::consts::TAU / frequency;
    if wavelength < context / high {
        Share::All
    } else if wavelength > context / low {
        Share::None
    } else {
        Share::Part((context / wavelength - low) / (high - low))
    }
}

/// The scaling whose factors these are.
///
/// # Errors
/// When no known setting gives them.
pub(crate) fn recognise(found: &[f32], theta: f64, d_head: usize) -> Result<RopeScaling, TensorError> {
    if found.len() != d_head / 2 {
        return Err(TensorError::RopeFreqs("must hold half as many factors as a head has dimensions"));
    }
    if found.iter().all(|factor| *factor == 1.0) {
        return Ok(RopeScaling::None);
    }
    let factor = whole_factor(found.last().copied().unwrap_or(1.0), theta, d_head);
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: LOW_FREQ_FACTOR,
        high_freq_factor: HIGH_FREQ_FACTOR,
        original_context_len: ORIGINAL_CONTEXT_LEN,
    };
    let near = |a: f32, b: f32| (a - b).abs() <= RELATIVE_TOLERANCE * b.abs();
    let known = factors(scaling, theta, d_head);
    if factor > 1.0 && known.is_some_and(|known| known.iter().zip(found).all(|(k, f)| near(*f, *k))) {
        return Ok(scaling);
    }
    Err(TensorError::RopeFreqs(
        "holds factors of no known setting (Llama 3's with low 1, high 4, original context 8192); start from the \
         Hugging Face folder, whose `config.json` says the setting",
    ))
}

/// The setting's factor, from that of the lowest frequency: in large models it is the same.
fn whole_factor(last: f32, theta: f64, d_head: usize) -> f64 {
    let (low, high) = (LOW_FREQ_FACTOR as f32, HIGH_FREQ_FACTOR as f32);
    let share = kept_share(theta, d_head, d_head / 2 - 1, low, high, ORIGINAL_CONTEXT_LEN as f32);
    let Share::Part(share) = share else { return last.into() };
    let (last, share) = (f64::from(last), f64::from(share));
    let factor = (1.0 - share) / (1.0 / last - share);
    // Solved from a rounded number; settings are whole.
    let whole = factor.round();
    if (factor - whole).abs() <= 1e-3 * whole { whole } else { factor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_settings_are_recognised() {
        for (factor, d_head) in [(8.0, 128), (32.0, 64), (32.0, 128)] {
            let scaling = RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context_len: 8192,
            };
            let tensor = factors(scaling, 500_000.0, d_head).unwrap();
            assert_eq!(tensor.len(), d_head / 2);
            assert_eq!((tensor[0], tensor[d_head / 2 - 1]), (1.0, factor as f32));
            assert_eq!(recognise(&tensor, 500_000.0, d_head).unwrap(), scaling);
        }
    }

    #[test]
    fn the_factor_is_found_where_no_frequency_takes_all_of_it() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_len: 8192,
        };
        let tensor = factors(scaling, 10_000.0, 8).unwrap();
        assert!(tensor[3] < 8.0);
        assert_eq!(recognise(&tensor, 10_000.0, 8).unwrap(), scaling);
    }

    #[test]
    fn other_factors_are_refused() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 2.0,
            original_context_len: 4096,
        };
        let tensor = factors(scaling, 500_000.0, 128).unwrap();
        assert!(recognise(&tensor, 500_000.0, 128).is_err());
        assert!(recognise(&tensor[1..], 500_000.0, 128).is_err());
        assert!(recognise(&[f32::NAN; 64], 500_000.0, 128).is_err());
        assert_eq!(recognise(&[1.0; 64], 500_000.0, 128).unwrap(), RopeScaling::None);
    }

    #[test]
    fn only_llama_3_scaling_needs_a_tensor() {
        assert_eq!(factors(RopeScaling::None, 10_000.0, 64), None);
        assert_eq!(factors(RopeScaling::Linear { factor: 2.0 }, 10_000.0, 64), None);
    }

    #[test]
    fn factors_are_those_that_the_spec_divides_by() {
        // Llama 3.2: head of 64, factor 32.
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_len: 8192,
        };
        let tensor = factors(scaling, 500_000.0, 64).unwrap();
        let between: Vec<f32> = tensor.iter().copied().filter(|f| *f != 1.0 && *f != 32.0).collect();
        assert!(!between.is_empty() && between.is_sorted(), "{tensor:?}");
    }
}
