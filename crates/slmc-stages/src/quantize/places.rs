//! What is seen of the channels that quantization may bring into another order.

use ndarray::Array2;
use slmc_ir::{Checkpoint, Host, Role, TensorKey, TokenId};
use slmc_model::{BlockPass, Products};
use slmc_recipe::StageError;

use super::solved::{failed, weight_in};
use crate::embedding::Embedding;

/// Tokens that are kept of each place.
const TOKENS: usize = 96;

/// What stands in front of some matrices.
pub struct Place {
    /// The root of the mean square of each channel.
    pub sizes: Vec<f32>,
    /// Some tokens, `[n_tokens, n_channels]`.
    pub tokens: Array2<f32>,
}

/// All the places.
pub struct Places {
    /// Behind both norms of each block.
    pub stream: Vec<[Place; 2]>,
    /// The gated product of each block.
    pub hidden: Vec<Place>,
    /// Behind the final norm.
    pub last: Place,
}

impl Places {
    /// One pass forwards, everything in memory.
    pub fn of(input: &Checkpoint, sequences: &[&[TokenId]], host: &dyn Host) -> Result<Self, StageError> {
        let spec = input.spec();
        let seq = sequences[0].len();
        let tokens = sequences.iter().copied().flatten();
        let embedding = Embedding::of(input).map_err(failed)?;
        let mut hidden = embedding.rows(tokens).map_err(StageError::Input)?;
        let n_tokens = sequences.len() * seq;
        let (mut places, mut products) = (Vec::new(), Vec::new());
        host.begin("order", spec.n_layers as u64, "blocks");
        for index in 0..spec.n_layers {
            if host.stop_requested() {
                return Err(StageError::Interrupted("while looking at channels".to_owned()));
            }
            let units = Products::half().unwrap_or_default();
            let block = BlockPass::load(&*input.weights, index, seq, units).map_err(failed)?;
            slmc_formats::release_all();
            let mut seen = [spec.d_model, spec.d_model, spec.d_ff].map(|n| Looking::begin(n, n_tokens));
            for hidden in hidden.chunks_exact_mut(seq * spec.d_model) {
                seen[0].add(&block.normed(Role::AttnNorm, hidden));
                let after = block.attend(hidden, [1, seq]).after_attention;
                seen[1].add(&block.normed(Role::FfnNorm, &after));
                let gated = block.gated(&after, [1, seq]);
                seen[2].add(&gated);
                hidden.copy_from_slice(&after);
                block.add(Role::Down, &gated, hidden, [1, seq]);
            }
            let [attn, ffn, gated] = seen.map(Looking::end);
            if let Some(bad) = [&attn, &ffn, &gated].iter().find_map(|place| place.not_finite()) {
                return Err(failed(format!(
                    "activations in block {index} come to {bad}: the model is damaged"
                )));
            }
            places.push([attn, ffn]);
            products.push(gated);
            host.advance_to(index as u64 + 1, "");
        }
        host.end();
        Ok(Self { stream: places, hidden: products, last: last(input, hidden)? })
    }
}

impl Place {
    fn not_finite(&self) -> Option<f32> {
        self.sizes.iter().copied().find(|x| !x.is_finite())
    }
}

/// A place that tokens come by.
struct Looking {
    squares: Vec<f64>,
    kept: Vec<f32>,
    n_seen: usize,
    /// Of so many tokens one is kept.
    step: usize,
}

impl Looking {
    fn begin(n_channels: usize, n_tokens: usize) -> Self {
        let step = n_tokens.div_ceil(TOKENS).max(1);
        Self { squares: vec![0.0; n_channels], kept: Vec::new(), n_seen: 0, step }
    }

    fn add(&mut self, tokens: &[f32]) {
        for token in tokens.chunks_exact(self.squares.len()) {
            self.squares.iter_mut().zip(token).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            if self.n_seen % self.step == self.step / 2 {
                self.kept.extend_from_slice(token);
            }
            self.n_seen += 1;
        }
    }

    fn end(self) -> Place {
        let (n_tokens, n_channels) = (self.n_seen.max(1) as f64, self.squares.len());
        let shape = (self.kept.len() / n_channels, n_channels);
        Place {
            sizes: self.squares.into_iter().map(|sum| (sum / n_tokens).sqrt() as f32).collect(),
            tokens: Array2::from_shape_vec(shape, self.kept).expect("whole tokens were kept"),
        }
    }
}

/// Behind the final norm.
fn last(input: &Checkpoint, mut hidden: Vec<f32>) -> Result<Place, StageError> {
    let gains = weight_in(input, TensorKey::model(Role::FinalNorm))?;
    for token in hidden.chunks_exact_mut(gains.len()) {
        let mean = token.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / token.len() as f64;
        let scale = (1.0 / (mean + f64::from(input.spec().norm_eps)).sqrt()) as f32;
        token.iter_mut().zip(&gains).for_each(|(x, gain)| *x *= gain * scale);
    }
    let mut seen = Looking::begin(gains.len(), hidden.len() / gains.len());
    seen.add(&hidden);
    Ok(seen.end())
}
