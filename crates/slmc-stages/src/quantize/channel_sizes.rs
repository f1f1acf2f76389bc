//! How large the channels are that quantization may bring into another order.

use slmc_ir::{Checkpoint, Host, Role, TensorKey, TokenId};
use slmc_model::{BlockPass, Products};
use slmc_recipe::StageError;

use super::solved::{failed, weight_in};

/// The root of the mean square of each channel.
pub struct ChannelSizes {
    /// Behind both norms of each block.
    pub stream: Vec<[Vec<f32>; 2]>,
    /// Of the gated product of each block.
    pub hidden: Vec<Vec<f32>>,
    /// Behind the final norm.
    pub last: Vec<f32>,
}

impl ChannelSizes {
    /// One pass forwards, everything in memory.
    pub fn of(input: &Checkpoint, sequences: &[Vec<TokenId>], host: &dyn Host) -> Result<Self, StageError> {
        let spec = input.spec();
        let seq = sequences[0].len();
        let mut hidden = embed(input, sequences)?;
        let mut sizes = Self { stream: Vec::new(), hidden: Vec::new(), last: Vec::new() };
        host.begin("order", spec.n_layers as u64, "blocks");
        for index in 0..spec.n_layers {
            if host.stop_requested() {
                return Err(StageError::Interrupted("while looking at channels".to_owned()));
            }
            let products = Products::half().unwrap_or_default();
            let block = BlockPass::load(&*input.weights, index, seq, products).map_err(failed)?;
            slmc_formats::release_all();
            let mut seen = [spec.d_model, spec.d_model, spec.d_ff].map(Squares::none);
            for hidden in hidden.chunks_exact_mut(seq * spec.d_model) {
                seen[0].add(&block.normed(Role::AttnNorm, hidden));
                let after = block.attend(hidden, [1, seq]).after_attention;
                seen[1].add(&block.normed(Role::FfnNorm, &after));
                let gated = block.gated(&after, [1, seq]);
                seen[2].add(&gated);
                hidden.copy_from_slice(&after);
                block.add(Role::Down, &gated, hidden, [1, seq]);
            }
            let [attn, ffn, gated] = seen.map(Squares::root_mean);
            if let Some(bad) = attn.iter().chain(&ffn).chain(&gated).find(|x| !x.is_finite()) {
                return Err(failed(format!(
                    "activations in block {index} come to {bad}: the model is damaged"
                )));
            }
            sizes.stream.push([attn, ffn]);
            sizes.hidden.push(gated);
            host.advance_to(index as u64 + 1, "");
        }
        host.end();
        sizes.last = last(input, hidden)?;
        Ok(sizes)
    }
}

/// Sums of squares of some channels.
struct Squares {
    sums: Vec<f64>,
    n_tokens: usize,
}

impl Squares {
    fn none(n_channels: usize) -> Self {
        Self { sums: vec![0.0; n_channels], n_tokens: 0 }
    }

    fn add(&mut self, tokens: &[f32]) {
        for token in tokens.chunks_exact(self.sums.len()) {
            self.sums.iter_mut().zip(token).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            self.n_tokens += 1;
        }
    }

    fn root_mean(self) -> Vec<f32> {
        let n_tokens = self.n_tokens as f64;
        self.sums.into_iter().map(|sum| (sum / n_tokens).sqrt() as f32).collect()
    }
}

/// Behind the final norm.
fn last(input: &Checkpoint, mut hidden: Vec<f32>) -> Result<Vec<f32>, StageError> {
    let gains = weight_in(input, TensorKey::model(Role::FinalNorm))?;
    for token in hidden.chunks_exact_mut(gains.len()) {
        let mean = token.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / token.len() as f64;
        let scale = (1.0 / (mean + f64::from(input.spec().norm_eps)).sqrt()) as f32;
        token.iter_mut().zip(&gains).for_each(|(x, gain)| *x *= gain * scale);
    }
    let mut seen = Squares::none(gains.len());
    seen.add(&hidden);
    Ok(seen.root_mean())
}

/// Embedded tokens, `[n_sequences, seq, d_model]`.
fn embed(input: &Checkpoint, sequences: &[Vec<TokenId>]) -> Result<Vec<f32>, StageError> {
    let table = input.weights.read(TensorKey::model(Role::Embedding)).map_err(failed)?;
    let rows: Vec<usize> = sequences.iter().flatten().map(|&token| token as usize).collect();
    if rows.iter().any(|&row| row >= table.n_rows()) {
        return Err(StageError::Input("the calibration set has tokens that the model lacks".to_owned()));
    }
    slmc_blocks::decode_weight(&table.with_rows(&rows)).map_err(failed)
}
