//! The calibration set through the model and back, a block at a time: what enters each projection, each token weighted
//! by the squared gradient of what leaves it.
//!
//! A weight's error `δ` in a row `r` of a projection adds `½ E[(g_r · δ·x)²]` to the KL divergence, `g` being gradients of
//! `-log p` of labels drawn from the model (the Fisher information). Taken apart as in K-FAC (Martens and Grosse 2015,
//! arXiv:1503.05671, section 2): `H = Σ_t c_t x_t x_tᵀ / Σ_t c_t` with `c_t = Σ_r g_tr²`, times `ρ_r = Σ_t g_tr²` for each row.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use slmc_compress::{
    LayerStats,
    quant::{Hessian, InputRounding},
};
use slmc_ir::{Checkpoint, Host, ModelSpec, Role, TensorKey, TokenId};
use slmc_model::{BlockPass, HalfUnits, HeadPass, Matrix, MatrixMut, Products, Seen, add_moments_half};
use slmc_recipe::StageError;

use super::spill::Spill;
use crate::embedding::Embedding;

/// Sequences that run through a block at once.
const BATCH: usize = 4;

/// Projections that share their input, and so their Hessian, in the order in which the way back comes by.
pub const SHARED: [&[Role]; 4] =
    [&[Role::Down], &[Role::Gate, Role::Up], &[Role::AttnOutput], &[Role::Query, Role::Key, Role::Value]];

/// What was seen of the projections that share an input.
pub struct Input {
    /// `Σ c_t x xᵀ`, not yet divided.
    pub hessian: Hessian,
    /// `Σ c_t` over tokens and the projections.
    pub weight: f64,
    /// `ρ_r` of each projection's rows.
    pub rows: Vec<(Role, Vec<f32>)>,
    /// `Σ g gᵀ` of each projection, in the same order, where that is looked at.
    pub gradients: Vec<Option<Hessian>>,
    /// What a runtime's rounding of inputs does, for each width of block that formats of this many columns have.
    pub rounding: Vec<InputRounding>,
}

/// Blocks that formats have.
const BLOCKS: [usize; 2] = [32, 256];

/// Rows of a projection beyond which what they have in common is left alone: a matrix as large as the square of their number,
/// and time that grows with its cube.
pub(crate) const MOST_COUPLED_ROWS: usize = 4096;

/// The passes over a calibration set.
pub struct Passes<'a> {
    pub checkpoint: &'a Checkpoint,
    /// All of one length.
    pub sequences: &'a [Vec<TokenId>],
    pub spill: Spill,
    pub products: Products,
    /// Whether gradients are looked at beyond their squares.
    pub couples_rows: bool,
    /// Whether what a runtime rounds is looked at.
    pub rounds_inputs: bool,
    pub seed: u64,
    pub host: &'a dyn Host,
}

impl Passes<'_> {
    fn spec(&self) -> &ModelSpec {
        self.checkpoint.spec()
    }

    fn seq(&self) -> usize {
        self.sequences[0].len()
    }

    /// Tokens of the set.
    pub fn n_tokens(&self) -> usize {
        self.sequences.len() * self.seq()
    }

    /// First number and size of each batch in a file of activations, and its sequences.
    fn batches(&self) -> Vec<(usize, usize, [usize; 2])> {
        let row = self.seq() * self.spec().d_model;
        let firsts = (0..self.sequences.len()).step_by(BATCH);
        firsts
            .map(|first| {
                let n = BATCH.min(self.sequences.len() - first);
                (first * row, n * row, [n, self.seq()])
            })
            .collect()
    }

    fn block(&self, index: usize) -> Result<BlockPass, StageError> {
        let block = BlockPass::load(&*self.checkpoint.weights, index, self.seq(), self.products);
        // The file's pages have been taken from.
        slmc_formats::release_all();
        block.map_err(failed)
    }

    /// Hidden states before each block and after the last, into the spill.
    pub fn forward(&self) -> Result<(), StageError> {
        let n_layers = self.spec().n_layers;
        self.host.begin("calibrate", n_layers as u64, "blocks");
        self.embed()?;
        for index in 0..n_layers {
            let block = self.block(index)?;
            for (first, n, sizes) in self.batches() {
                self.check_stop()?;
                let hidden = self.spill.read(&name(index), first, n)?;
                let out = block.forward(&hidden, sizes);
                finite(&out, &format!("the hidden states after block {index}"))?;
                self.spill.write(&name(index + 1), first, &out)?;
            }
            self.host.advance_to(index as u64 + 1, "");
        }
        self.host.end();
        Ok(())
    }

    fn embed(&self) -> Result<(), StageError> {
        let embedding = Embedding::of(self.checkpoint).map_err(failed)?;
        let row = self.seq() * self.spec().d_model;
        for (index, tokens) in self.sequences.iter().enumerate() {
            self.spill.write(&name(0), index * row, &embedding.rows(tokens).map_err(StageError::Input)?)?;
        }
        slmc_formats::release_all();
        Ok(())
    }

    /// The head, and the gradient after the last block into the spill.
    pub fn head(&self) -> Result<Input, StageError> {
        let (d, vocab) = (self.spec().d_model, self.spec().vocab_size);
        let pass = HeadPass::load(&*self.checkpoint.weights, self.products).map_err(failed)?;
        slmc_formats::release_all();
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let rows = vec![(Role::Head, vec![0.0; vocab])];
        let mut input = Input {
            hessian: Hessian::empty(d),
            weight: 0.0,
            rows,
            gradients: vec![None],
            rounding: self.rounding(d),
        };
        let n_layers = self.spec().n_layers;
        self.host.begin("gradients", self.n_tokens() as u64, "tokens");
        for (first, n, sizes) in self.batches() {
            self.check_stop()?;
            let hidden = self.spill.read(&name(n_layers), first, n)?;
            let gradient = pass.backward(&hidden, &mut random, &mut |seen| {
                let n_tokens = seen.input.len() / d;
                let weights = squares(seen.gradient, vocab, [n_tokens, vocab], &mut input.rows[0].1);
                observe(&mut input, seen.input, &weights, self.products);
            });
            finite(&gradient, "the gradient after the last block")?;
            self.spill.write(GRADIENT, first, &gradient)?;
            self.host.advance_to((first / d + sizes[0] * sizes[1]) as u64, "");
        }
        self.host.end();
        self.spill.forget(&name(n_layers));
        Ok(input)
    }

    /// A block, and the gradient before it into the spill. Blocks are asked for last to first.
    pub fn back(&self, index: usize, is_wanted: bool) -> Result<Vec<Input>, StageError> {
        let block = self.block(index)?;
        let mut inputs: Vec<Input> = SHARED.iter().map(|roles| self.empty(roles)).collect();
        let mut weights = Vec::new();
        for (first, n, sizes) in self.batches() {
            self.check_stop()?;
            let hidden = self.spill.read(&name(index), first, n)?;
            let gradient = self.spill.read(GRADIENT, first, n)?;
            let before = block.backward(&hidden, sizes, gradient, &mut |seen| {
                if is_wanted {
                    look(seen, &mut inputs, &mut weights, self.products);
                }
            });
            finite(&before, &format!("the gradient before block {index}"))?;
            self.spill.write(GRADIENT, first, &before)?;
        }
        if index > 0 {
            self.spill.forget(&name(index));
        }
        Ok(inputs)
    }

    /// `Σ g gᵀ` over tokens of what the embedding gives, after all blocks are done.
    pub fn embedded(&self) -> Result<Hessian, StageError> {
        let d = self.spec().d_model;
        let mut hessian = Hessian::empty(d);
        for (first, n, _) in self.batches() {
            let gradient = self.spill.read(GRADIENT, first, n)?;
            observe_gradients(&mut hessian, &gradient, [n / d, d], self.products);
        }
        Ok(hessian)
    }

    fn empty(&self, roles: &[Role]) -> Input {
        let shape = |role: Role| TensorKey::block(0, role).shape(self.spec());
        let n_columns = shape(roles[0])[1];
        Input {
            hessian: Hessian::empty(n_columns),
            rounding: self.rounding(n_columns),
            weight: 0.0,
            rows: roles.iter().map(|&role| (role, vec![0.0; shape(role)[0]])).collect(),
            gradients: roles
                .iter()
                .map(|&role| shape(role)[0])
                .map(|n| (self.couples_rows && n <= MOST_COUPLED_ROWS).then(|| Hessian::empty(n)))
                .collect(),
        }
    }

    fn rounding(&self, n_columns: usize) -> Vec<InputRounding> {
        let fits = |block: &usize| self.rounds_inputs && n_columns.is_multiple_of(*block);
        BLOCKS.into_iter().filter(fits).map(|block| InputRounding::empty(n_columns, block)).collect()
    }

    fn check_stop(&self) -> Result<(), StageError> {
        match self.host.stop_requested() {
            true => Err(StageError::Interrupted("while calibrating; solved blocks are kept".to_owned())),
            false => Ok(()),
        }
    }
}

/// The gradient of the hidden states that the way back has come to.
const GRADIENT: &str = "gradient";

/// Hidden states before a block.
fn name(index: usize) -> String {
    format!("hidden-{index}")
}

/// Adds a projection's part; the Hessian is observed with the last of those that share the input.
fn look(seen: Seen<'_>, inputs: &mut [Input], weights: &mut Vec<f32>, products: Products) {
    let which =
        SHARED.iter().position(|roles| roles.contains(&seen.role)).expect("every projection is listed");
    let [n, _, d_out] = seen.sizes;
    let input = &mut inputs[which];
    let at = input.rows.iter().position(|(role, _)| *role == seen.role).expect("listed under its input");
    let part = squares(seen.gradient, seen.stride, [n, d_out], &mut input.rows[at].1);
    if let Some(gradients) = &mut input.gradients[at] {
        observe_gradients(gradients, seen.gradient, [n, seen.stride], products);
    }
    if at == 0 {
        *weights = part;
    } else {
        weights.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    if at + 1 == input.rows.len() {
        observe(input, seen.input, weights, products);
    }
}

fn observe(input: &mut Input, numbers: &[f32], weights: &[f32], products: Products) {
    let shape = [weights.len(), input.hessian.n_columns()];
    match products {
        // In bf16 sums are as good: what is rounded differs from token to token, and is far less than what another text changes.
        Products::Half(units) => {
            let mut scaled = numbers.to_vec();
            scaled.par_chunks_mut(shape[1]).zip(weights).for_each(|(row, weight)| {
                let root = weight.sqrt();
                row.iter_mut().for_each(|x| *x *= root);
            });
            add_half(&mut input.hessian, Matrix::new(&scaled, shape[0], shape[1]), shape[0], units);
        }
        Products::Single => {
            let rows = ndarray::ArrayView2::from_shape(shape, numbers).expect("a row for each token");
            input.hessian.observe_weighted(rows, weights);
        }
    }
    input.weight += weights.iter().map(|&w| f64::from(w)).sum::<f64>();
    input.rounding.par_iter_mut().for_each(|rounding| rounding.observe_weighted(numbers, weights));
}

/// Adds the second moments of gradients, a row for each token, `stride` apart.
fn observe_gradients(sums: &mut Hessian, rows: &[f32], [n_tokens, stride]: [usize; 2], products: Products) {
    let n = sums.n_columns();
    match products {
        Products::Half(units) => {
            add_half(sums, Matrix::strided(rows, n_tokens, n, stride), n_tokens, units);
        }
        Products::Single => {
            let shape = ndarray::ShapeBuilder::strides((n_tokens, n), (stride, 1));
            sums.observe(ndarray::ArrayView2::from_shape(shape, rows).expect("a row for each token"));
        }
    }
}

fn add_half(sums: &mut Hessian, rows: Matrix<'_>, n_tokens: usize, units: HalfUnits) {
    let n = sums.n_columns();
    sums.observe_by(n_tokens, |sums| add_moments_half(units, rows, MatrixMut::new(sums, n, n)));
}

/// Rows of tokens that are one piece of work.
const PIECE: usize = 128;

/// `Σ_r g²` of each token, and adds `Σ_t g²` to each row's.
fn squares(gradient: &[f32], stride: usize, [n, d_out]: [usize; 2], rows: &mut [f32]) -> Vec<f32> {
    let pieces: Vec<(Vec<f32>, Vec<f32>)> = (0..n.div_ceil(PIECE))
        .into_par_iter()
        .map(|piece| {
            let (mut tokens, mut columns) = (Vec::with_capacity(PIECE), vec![0.0_f32; d_out]);
            for token in piece * PIECE..n.min((piece + 1) * PIECE) {
                let row = &gradient[token * stride..token * stride + d_out];
                let mut lanes = [0.0_f32; 16];
                for (columns, row) in columns.chunks_mut(16).zip(row.chunks(16)) {
                    for ((column, g), lane) in columns.iter_mut().zip(row).zip(&mut lanes) {
                        *column += g * g;
                        *lane += g * g;
                    }
                }
                tokens.push(lanes.iter().sum());
            }
            (tokens, columns)
        })
        .collect();
    let mut tokens = Vec::with_capacity(n);
    for (piece, columns) in pieces {
        tokens.extend(piece);
        rows.iter_mut().zip(columns).for_each(|(row, column)| *row += column);
    }
    tokens
}

fn finite(numbers: &[f32], what: &str) -> Result<(), StageError> {
    match numbers.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => Err(StageError::Failed(format!(
            "{what} hold {}: the model is damaged, or overflows on this calibration text",
            numbers[at]
        ))),
    }
}

fn failed(error: impl std::fmt::Display) -> StageError {
    StageError::Failed(error.to_string())
}
