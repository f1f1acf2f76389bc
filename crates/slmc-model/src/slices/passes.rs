//! One block at a time, forwards and back, from weights on disk: for calibration, which holds one block's weights and
//! looks at what enters each projection and at the gradient of what leaves it.

use std::sync::Arc;

use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use slmc_blocks::decode_weight;
use slmc_ir::{ModelSpec, Part, Role, TensorKey, Weight, WeightSource};
use slmc_kernels::{
    HalfRight, HalfUnits, Matrix, MatrixMut, Products, Update, cross_entropy, multiply, multiply_half,
    rms_norm, rms_norm_backward,
};

use super::{
    block::{Attended, Low, add_projected, attend, backward_seeing, forward, gated},
    inputs::{
        ATTN_NORM, ATTN_OUTPUT, DOWN, FFN_NORM, GATE, HIDDEN, Inputs, KEY, KEY_NORM, N_INPUTS, N_PROJECTIONS,
        QUERY, QUERY_NORM, Sizes, UP, VALUE,
    },
    projection::Numbers,
};
use crate::{
    LoadError,
    load::{numbers_of, weight_of},
    rope::{RopeCache, RopeTable},
};

/// The slots of a block's tensors.
const SLOTS: [(Role, usize); 11] = [
    (Role::AttnNorm, ATTN_NORM),
    (Role::QueryNorm, QUERY_NORM),
    (Role::KeyNorm, KEY_NORM),
    (Role::FfnNorm, FFN_NORM),
    (Role::Query, QUERY),
    (Role::Key, KEY),
    (Role::Value, VALUE),
    (Role::AttnOutput, ATTN_OUTPUT),
    (Role::Gate, GATE),
    (Role::Up, UP),
    (Role::Down, DOWN),
];

/// What entered a projection and the gradient of what left it, a row for each token.
pub struct Seen<'a> {
    /// Which projection.
    pub role: Role,
    /// `[n_tokens, d_in]`. Query, key and value share theirs, and gate and up.
    pub input: &'a [f32],
    /// `[n_tokens, d_out]`, its rows `stride` apart.
    pub gradient: &'a [f32],
    /// From one row of the gradient to the next.
    pub stride: usize,
    /// Tokens, inputs, outputs.
    pub sizes: [usize; 3],
}

/// What a block's attention made of hidden states, a row for each token.
pub struct Mixed {
    /// What its output projection was given, `[n_tokens, n_heads * d_head]`.
    pub attn_mix: Vec<f32>,
    /// Hidden states between attention and MLP, `[n_tokens, d_model]`.
    pub after_attention: Vec<f32>,
}

/// The weights of one block.
pub struct BlockPass {
    spec: ModelSpec,
    tensors: [Option<Vec<f32>>; N_INPUTS],
    rope: Arc<RopeTable>,
    products: Products,
}

impl BlockPass {
    /// Reads a block's weights, for sequences of at most `seq` tokens.
    ///
    /// # Errors
    /// When a tensor is missing or not what the spec says.
    pub fn load(
        source: &dyn WeightSource,
        index: usize,
        seq: usize,
        products: Products,
    ) -> Result<Self, LoadError> {
        let spec = source.spec().clone();
        let mut tensors = [const { None }; N_INPUTS];
        for key in TensorKey::all(&spec).into_iter().filter(|key| key.block == Some(index)) {
            let slot = SLOTS.iter().find(|(role, _)| *role == key.role).map(|(_, slot)| *slot);
            let slot = slot.expect("every role of a block has a slot") + usize::from(key.part == Part::Bias);
            tensors[slot] = Some(numbers_of(source, key)?);
        }
        let rope = RopeCache::default().table(&spec, seq);
        Ok(Self { spec, tensors, rope, products })
    }

    fn inputs<'a>(&'a self, hidden: &'a [f32]) -> Inputs<'a> {
        let mut numbers = self.tensors.each_ref().map(|tensor| tensor.as_deref().map(Numbers::Plain));
        numbers[HIDDEN] = Some(Numbers::Plain(hidden));
        Inputs { numbers, adapters: [None; N_PROJECTIONS], starts: None }
    }

    /// Hidden states `[batch, seq, d_model]` after the block.
    pub fn forward(&self, hidden: &[f32], [batch, seq]: [usize; 2]) -> Vec<f32> {
        forward(Sizes::new(&self.spec, batch, seq, self.products), &self.inputs(hidden), &self.rope).out
    }

    /// What the projections behind a norm are given of hidden states: queries, keys and values behind [`Role::AttnNorm`], gate and
    /// up behind [`Role::FfnNorm`].
    ///
    /// # Panics
    /// When the block has no such norm.
    pub fn normed(&self, norm: Role, hidden: &[f32]) -> Vec<f32> {
        let gain = self.matrix(norm).expect("a norm of the block");
        let (mut normed, mut inverse) = (vec![0.0; hidden.len()], vec![0.0; hidden.len() / gain.len()]);
        rms_norm(hidden, gain, self.spec.norm_eps, &mut normed, &mut inverse);
        normed
    }

    /// Attention's mix of values, and hidden states after its output projection.
    pub fn attend(&self, hidden: &[f32], [batch, seq]: [usize; 2]) -> Mixed {
        let sizes = Sizes::new(&self.spec, batch, seq, self.products);
        let Attended { attn_mix, after_attention, .. } = attend(sizes, &self.inputs(hidden), &self.rope);
        Mixed { attn_mix, after_attention }
    }

    /// What the down projection is given, `[n_tokens, d_ff]`, of hidden states between attention and MLP.
    pub fn gated(&self, after_attention: &[f32], [batch, seq]: [usize; 2]) -> Vec<f32> {
        let sizes = Sizes::new(&self.spec, batch, seq, self.products);
        gated(sizes, &self.inputs(&[]), after_attention, &mut Low::default()).ffn_product
    }

    /// Adds the projection of attention's mix ([`Role::AttnOutput`]) or of the gated product ([`Role::Down`]) to hidden states.
    ///
    /// # Panics
    /// When the role is another.
    pub fn add(&self, role: Role, x: &[f32], hidden: &mut [f32], [batch, seq]: [usize; 2]) {
        assert!(matches!(role, Role::AttnOutput | Role::Down), "what is added to hidden states");
        let slot = if role == Role::Down { DOWN } else { ATTN_OUTPUT };
        add_projected(Sizes::new(&self.spec, batch, seq, self.products), &self.inputs(&[]), slot, x, hidden);
    }

    /// A projection's matrix, `[d_out, d_in]` row by row; a norm's gains.
    pub fn matrix(&self, role: Role) -> Option<&[f32]> {
        let (_, slot) = SLOTS.iter().find(|(slot_role, _)| *slot_role == role)?;
        self.tensors[*slot].as_deref()
    }

    /// Puts another matrix in the place of a projection's.
    ///
    /// # Panics
    /// When the block has no such projection, or one of another size.
    pub fn replace(&mut self, role: Role, numbers: Vec<f32>) {
        let (_, slot) = SLOTS.iter().find(|(slot_role, _)| *slot_role == role).expect("a role of a block");
        let old = self.tensors[*slot].as_mut().expect("a projection of the block");
        assert_eq!(old.len(), numbers.len(), "a matrix of the same size");
        *old = numbers;
    }

    /// Runs the block on `hidden` again, and back from the gradient of what it gave: the gradient of `hidden`.
    pub fn backward(
        &self,
        hidden: &[f32],
        [batch, seq]: [usize; 2],
        d_out: Vec<f32>,
        see: &mut dyn FnMut(Seen<'_>),
    ) -> Vec<f32> {
        let sizes = Sizes::new(&self.spec, batch, seq, self.products);
        let inputs = self.inputs(hidden);
        let kept = forward(sizes, &inputs, &self.rope).kept;
        backward_seeing(sizes, &inputs, &self.rope, kept, d_out, &mut |seen| {
            let role = SLOTS.iter().find(|(_, slot)| *slot == seen.slot).map(|(role, _)| *role);
            see(Seen {
                role: role.expect("projections have slots"),
                input: seen.input,
                gradient: seen.gradient,
                stride: seen.stride,
                sizes: seen.sizes,
            });
        })
    }
}

/// What entered the head and the gradient of its logits.
pub struct HeadSeen<'a> {
    /// `[n_tokens, d_model]`, after the final norm.
    pub input: &'a [f32],
    /// `[n_tokens, vocab_size]`.
    pub gradient: &'a [f32],
}

/// Final norm and head.
pub struct HeadPass {
    spec: ModelSpec,
    gain: Vec<f32>,
    head: LaidOut,
}

/// The head `[vocab_size, d_model]` as products take it: the largest matrix of a model, so held once.
enum LaidOut {
    Single(Vec<f32>),
    /// Band after band of its rows.
    Half(Vec<Band>),
}

/// Some rows of the head.
struct Band {
    /// The first of them.
    first: usize,
    n_rows: usize,
    for_logits: HalfRight,
    for_the_way_back: HalfRight,
}

/// Rows of a band: all of them in f32 at once would be twice the layouts.
const BAND_ROWS: usize = 8192;

impl Band {
    /// The bands of a head, of so many rows each.
    fn all(
        weight: &Weight,
        key: TensorKey,
        units: HalfUnits,
        band_rows: usize,
    ) -> Result<Vec<Self>, LoadError> {
        let (n_rows, d) = (weight.n_rows(), weight.n_columns());
        let mut bands = Vec::new();
        for first in (0..n_rows).step_by(band_rows) {
            let rows: Vec<usize> = (first..n_rows.min(first + band_rows)).collect();
            let numbers = decode_weight(&weight.with_rows(&rows));
            let numbers = numbers.map_err(|source| LoadError::Decode { key, source })?;
            let band = Matrix::new(&numbers, rows.len(), d);
            bands.push(Self {
                first,
                n_rows: rows.len(),
                for_logits: HalfRight::new(units, band.transposed()),
                for_the_way_back: HalfRight::new(units, band),
            });
        }
        Ok(bands)
    }
}

/// Tokens whose logits exist at a time.
const HEAD_TOKENS: usize = 256;

impl HeadPass {
    /// Reads the head, or the embedding where it serves as one.
    ///
    /// # Errors
    /// When a tensor is missing or not what the spec says.
    pub fn load(source: &dyn WeightSource, products: Products) -> Result<Self, LoadError> {
        Self::in_bands(source, products, BAND_ROWS)
    }

    fn in_bands(source: &dyn WeightSource, products: Products, band_rows: usize) -> Result<Self, LoadError> {
        let spec = source.spec().clone();
        let head = if spec.tied_head { Role::Embedding } else { Role::Head };
        let key = TensorKey::model(head);
        let head = match products {
            Products::Single => LaidOut::Single(numbers_of(source, key)?),
            Products::Half(units) => {
                LaidOut::Half(Band::all(&weight_of(source, key)?, key, units, band_rows)?)
            }
        };
        Ok(Self { gain: numbers_of(source, TensorKey::model(Role::FinalNorm))?, head, spec })
    }

    /// The gradient of hidden states `[n, d_model]` after the last block, of `-log p` of labels that are drawn from the
    /// model's own distribution: the outer products of such gradients are, on average, the Fisher information
    /// (Kunstner et al. 2019, arXiv:1905.12558, section 2).
    pub fn backward(
        &self,
        hidden: &[f32],
        random: &mut dyn Rng,
        see: &mut dyn FnMut(HeadSeen<'_>),
    ) -> Vec<f32> {
        let (d, vocab) = (self.spec.d_model, self.spec.vocab_size);
        let (mut normed, mut inverse) = (vec![0.0; hidden.len()], vec![0.0; hidden.len() / d]);
        rms_norm(hidden, &self.gain, self.spec.norm_eps, &mut normed, &mut inverse);
        let mut d_normed = vec![0.0; hidden.len()];
        for (normed, d_normed) in normed.chunks(HEAD_TOKENS * d).zip(d_normed.chunks_mut(HEAD_TOKENS * d)) {
            let n = normed.len() / d;
            let mut logits = vec![0.0; n * vocab];
            let (input, out) = (Matrix::new(normed, n, d), MatrixMut::new(&mut logits, n, vocab));
            match &self.head {
                LaidOut::Single(head) => {
                    multiply(input, Matrix::new(head, vocab, d).transposed(), out, Update::Set);
                }
                LaidOut::Half(bands) => {
                    for band in bands {
                        let out = MatrixMut::strided(&mut logits[band.first..], n, band.n_rows, vocab);
                        multiply_half(input, &band.for_logits, out, Update::Set);
                    }
                }
            }
            draw_labels(&mut logits, vocab, random);
            see(HeadSeen { input: normed, gradient: &logits });
            let (gradient, out) = (Matrix::new(&logits, n, vocab), MatrixMut::new(d_normed, n, d));
            match &self.head {
                LaidOut::Single(head) => {
                    multiply(gradient, Matrix::new(head, vocab, d), out, Update::Set);
                }
                LaidOut::Half(bands) => {
                    for band in bands {
                        let gradient = Matrix::strided(&logits[band.first..], n, band.n_rows, vocab);
                        let out = MatrixMut::new(d_normed, n, d);
                        let update = if band.first == 0 { Update::Set } else { Update::Add };
                        multiply_half(gradient, &band.for_the_way_back, out, update);
                    }
                }
            }
        }
        let (mut d_hidden, mut d_gain) = (vec![0.0; hidden.len()], vec![0.0; d]);
        rms_norm_backward(hidden, &self.gain, &inverse, &d_normed, &mut d_hidden, &mut d_gain);
        d_hidden
    }
}

/// Rows of logits become `p - 1` at a label drawn from `p`, and `p` elsewhere.
fn draw_labels(logits: &mut [f32], vocab: usize, random: &mut dyn Rng) {
    let n = logits.len() / vocab;
    let mut losses = vec![0.0; n];
    cross_entropy(logits, &vec![0; n], &vec![1.0; n], &mut losses);
    let draws: Vec<f64> =
        (0..n).map(|_| (random.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)).collect();
    logits.par_chunks_mut(vocab).zip(draws).for_each(|(row, draw)| {
        row[0] += 1.0;
        let total: f64 = row.iter().map(|&p| f64::from(p)).sum();
        let mut left = draw * total;
        let label = row.iter().position(|&p| {
            left -= f64::from(p);
            left < 0.0
        });
        row[label.unwrap_or(vocab - 1)] -= 1.0;
    });
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
    use slmc_ir::{Activation, Biases, Family, Format, MemorySource, RopeScaling};

    use super::*;

    #[test]
    fn a_head_in_bands_is_the_head() {
        let Some(products) = Products::half() else { return };
        let spec = ModelSpec {
            family: Family::Llama,
            vocab_size: 50,
            context_len: 64,
            d_model: 24,
            n_layers: 1,
            n_heads: 2,
            n_kv_heads: 1,
            d_head: 12,
            d_ff: 32,
            norm_eps: 1e-5,
            rope_theta: 10000.0,
            rope_scaling: RopeScaling::None,
            activation: Activation::Silu,
            biases: Biases { qkv: false, attn_output: false, mlp: false },
            qk_norm: false,
            tied_head: true,
        };
        let number = |i: usize| ((i * 7919 + 13) as f32).sin();
        let tensor = |key: TensorKey| {
            let shape = key.shape(&spec);
            let numbers = (0..shape.iter().product()).map(number);
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            (key, Weight::new(shape, Format::F32, bytes.into()).unwrap())
        };
        let tensors = TensorKey::all(&spec).into_iter().map(tensor).collect();
        let source = MemorySource::new(spec.clone(), tensors).unwrap();
        let hidden: Vec<f32> = (0..5 * 24).map(number).collect();
        let run = |band_rows: usize| {
            let head = HeadPass::in_bands(&source, products, band_rows).unwrap();
            let mut seen = Vec::new();
            let mut random = ChaCha8Rng::seed_from_u64(1);
            let back = head.backward(&hidden, &mut random, &mut |of| seen.extend_from_slice(of.gradient));
            [seen, back]
        };
        let whole = run(50);
        for band_rows in [7, 25, 49] {
            for (found, whole) in run(band_rows).iter().flatten().zip(whole.iter().flatten()) {
                assert!((found - whole).abs() < 1e-4, "bands of {band_rows}: {found} and {whole}");
            }
        }
    }
}
