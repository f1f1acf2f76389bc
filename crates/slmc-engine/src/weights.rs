//! A checkpoint's tensors, laid out for the kernels: a few blocks at a time, so that the file's bytes and the layout
//! of only a few of them are in memory together. The pages of a mapped file go back to the system as each is laid out.

use rayon::prelude::*;
use slmc_ir::{Checkpoint, ModelSpec, Part, Role, SourceError, TensorKey, Weight, WeightSource};
use slmc_kernels::packed::{PackedMatrix, Store};

use crate::EngineError;

/// Every tensor of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    pub embedding: PackedMatrix,
    pub blocks: Vec<Block>,
    pub final_norm: Vec<f32>,
    /// `None` when it is the embedding.
    pub untied_head: Option<PackedMatrix>,
}

/// One decoder block.
#[derive(Debug)]
pub(crate) struct Block {
    pub attn_norm: Vec<f32>,
    pub qkv: Stacked<3>,
    pub query_norm: Option<Vec<f32>>,
    pub key_norm: Option<Vec<f32>>,
    pub attn_output: Stacked<1>,
    pub ffn_norm: Vec<f32>,
    pub gate_up: Stacked<2>,
    pub down: Stacked<1>,
}

/// Projections of the same input: those of one format lie in one matrix, so that they are one product.
#[derive(Debug)]
pub(crate) struct Stacked<const N: usize> {
    pub matrices: Vec<PackedMatrix>,
    pub n_rows: usize,
    places: [Place; N],
    biases: [Option<Vec<f32>>; N],
}

/// Where a projection's rows are.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Rows of all matrices before the one it is in.
    rows_before: usize,
    /// Rows of the matrix that it is in.
    matrix_rows: usize,
    /// Its first row there.
    first: usize,
    n_rows: usize,
}

impl<const N: usize> Stacked<N> {
    /// Where projection `which` of token `row` of `n_tokens` lies in the results, matrix after matrix.
    pub fn range(&self, which: usize, row: usize, n_tokens: usize) -> std::ops::Range<usize> {
        let Place { rows_before, matrix_rows, first, n_rows } = self.places[which];
        let start = rows_before * n_tokens + row * matrix_rows + first;
        start..start + n_rows
    }

    /// The matrix that a projection is in, and its first row there.
    pub fn matrix(&self, which: usize) -> (&PackedMatrix, usize) {
        let place = self.places[which];
        let mut rows_before = 0;
        let is_it = |matrix: &&PackedMatrix| {
            rows_before += matrix.n_rows();
            rows_before > place.rows_before
        };
        (self.matrices.iter().find(is_it).expect("every projection is in a matrix"), place.first)
    }

    /// What is added to a projection's result.
    pub fn bias(&self, which: usize) -> Option<&[f32]> {
        self.biases[which].as_deref()
    }

    /// Bytes that its products read.
    pub fn n_bytes(&self) -> usize {
        self.matrices.iter().map(PackedMatrix::n_bytes).sum()
    }
}

impl Weights {
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, EngineError> {
        let source = &*checkpoint.weights;
        let spec = source.spec();
        spec.validate()?;
        let reader = Reader { source, spec, store: store_for(source)? };
        // Blocks apart from each other: threads that lay out one matrix wait for the same new pages.
        let (embedding, blocks) =
            rayon::join(|| reader.matrix(TensorKey::model(Role::Embedding)), || reader.blocks());
        let (embedding, blocks) = (embedding?, blocks?);
        let final_norm = reader.vector(TensorKey::model(Role::FinalNorm))?;
        let untied_head =
            if spec.tied_head { None } else { Some(reader.matrix(TensorKey::model(Role::Head))?) };
        // Beside what was taken lay pages that the system had read ahead, and the files' headers, which were taken apart.
        slmc_formats::release_all();
        slmc_kernels::give_freed_memory_back();
        Ok(Self { embedding, blocks, final_norm, untied_head })
    }

    pub fn head(&self) -> &PackedMatrix {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of weights that one token's step reads: every matrix once, of the embedding (unless it is the head) a row.
    pub fn bytes_per_token(&self) -> usize {
        let block = |b: &Block| {
            let norms = b.attn_norm.len() + b.ffn_norm.len();
            b.qkv.n_bytes() + b.attn_output.n_bytes() + b.gate_up.n_bytes() + b.down.n_bytes() + 4 * norms
        };
        self.blocks.iter().map(block).sum::<usize>() + self.head().n_bytes() + 4 * self.final_norm.len()
    }
}

struct Reader<'a> {
    source: &'a dyn WeightSource,
    spec: &'a ModelSpec,
    /// One piece of memory for all matrices, in huge pages where the system has them; `None` when there was none to be had.
    store: Option<Store>,
}

/// Room for every matrix of a model.
fn store_for(source: &dyn WeightSource) -> Result<Option<Store>, EngineError> {
    let mut n_bytes = 0_usize;
    for &key in source.keys().iter().filter(|key| key.role.is_matrix() && key.part == Part::Weight) {
        let shape = key.shape(source.spec());
        let matrix = PackedMatrix::bytes_for(shape[0], shape[1], source.format(key)?);
        // What cannot be counted is not stored here: laying it out says why it cannot be had.
        n_bytes = n_bytes.saturating_add(matrix.unwrap_or(0));
    }
    Ok(Store::new(n_bytes).ok())
}

impl Reader<'_> {
    /// A tensor as it is stored, with the shape that it must have and without NaN.
    fn weight(&self, key: TensorKey) -> Result<Weight, EngineError> {
        let weight = self.source.read(key)?;
        let expected = key.shape(self.spec);
        if weight.shape() != expected {
            return Err(SourceError::Shape { key, expected, found: weight.shape().to_vec() }.into());
        }
        match slmc_blocks::first_non_finite(&weight) {
            Some((index, value)) => Err(SourceError::NotFinite { key, index, value }.into()),
            None => Ok(weight),
        }
    }

    fn vector(&self, key: TensorKey) -> Result<Vec<f32>, EngineError> {
        let weight = self.weight(key)?;
        slmc_blocks::decode_weight(&weight).map_err(|source| EngineError::Block { key, source })
    }

    fn matrix(&self, key: TensorKey) -> Result<PackedMatrix, EngineError> {
        self.laid_out(key, &[self.weight(key)?])
    }

    /// Matrices of one format and as many columns, one under the other.
    fn laid_out(&self, key: TensorKey, weights: &[Weight]) -> Result<PackedMatrix, EngineError> {
        let matrix = PackedMatrix::stacked(weights, self.store.as_ref());
        weights.iter().for_each(|weight| slmc_formats::release(weight.bytes()));
        matrix.map_err(|source| EngineError::Block { key, source })
    }

    /// Some blocks at a time: a thread that waits for a part of one may begin another, and a source that computes its weights
    /// holds those of all that are begun.
    fn blocks(&self) -> Result<Vec<Block>, EngineError> {
        let (n, n_at_once) = (self.spec.n_layers, 2 * rayon::current_num_threads());
        let mut blocks = Vec::with_capacity(n);
        for first in (0..n).step_by(n_at_once) {
            let some = (first..n.min(first + n_at_once)).into_par_iter();
            let laid_out: Vec<_> = some.map(|index| self.block(index)).collect();
            // The first fault in the order of the blocks, whichever was found first.
            blocks.extend(laid_out.into_iter().collect::<Result<Vec<_>, _>>()?);
        }
        Ok(blocks)
    }

    fn block(&self, index: usize) -> Result<Block, EngineError> {
        let vector = |role| self.vector(TensorKey::block(index, role));
        let head_norm = |role| if self.spec.qk_norm { vector(role).map(Some) } else { Ok(None) };
        Ok(Block {
            attn_norm: vector(Role::AttnNorm)?,
            qkv: self.stacked(index, [Role::Query, Role::Key, Role::Value])?,
            query_norm: head_norm(Role::QueryNorm)?,
            key_norm: head_norm(Role::KeyNorm)?,
            attn_output: self.stacked(index, [Role::AttnOutput])?,
            ffn_norm: vector(Role::FfnNorm)?,
            gate_up: self.stacked(index, [Role::Gate, Role::Up])?,
            down: self.stacked(index, [Role::Down])?,
        })
    }

    fn stacked<const N: usize>(&self, index: usize, roles: [Role; N]) -> Result<Stacked<N>, EngineError> {
        let (mut matrices, mut n_rows) = (Vec::new(), 0);
        let mut places = [Place { rows_before: 0, matrix_rows: 0, first: 0, n_rows: 0 }; N];
        let mut at = 0;
        while at < N {
            let key = TensorKey::block(index, roles[at]);
            let mut run = vec![self.weight(key)?];
            while at + run.len() < N {
                let next = self.weight(TensorKey::block(index, roles[at + run.len()]))?;
                if next.format() != run[0].format() {
                    break;
                }
                run.push(next);
            }
            let matrix_rows: usize = run.iter().map(Weight::n_rows).sum();
            let mut first = 0;
            for (place, weight) in places[at..].iter_mut().zip(&run) {
                *place = Place { rows_before: n_rows, matrix_rows, first, n_rows: weight.n_rows() };
                first += weight.n_rows();
            }
            at += run.len();
            n_rows += matrix_rows;
            matrices.push(self.laid_out(key, &run)?);
        }
        let mut biases = [const { None }; N];
        for (bias, &role) in biases.iter_mut().zip(&roles) {
            if self.spec.biases.has(role) {
                *bias = Some(self.vector(TensorKey::block(index, role).bias())?);
            }
        }
        Ok(Stacked { matrices, n_rows, places, biases })
    }
}
