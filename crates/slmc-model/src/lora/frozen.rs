//! A decoder that no longer learns, its matrices as they are stored.

use std::sync::Arc;

use slmc_ir::{
    Adapter, Format, ModelSpec, Part, Role, SourceError, TensorKey, TokenId, Weight, WeightSource,
};
use slmc_kernels::Products;

use crate::{
    load::LoadError,
    rope::{RopeCache, RopeTable},
    slices::{
        inputs::{
            ATTN_NORM, ATTN_OUTPUT, DOWN, FFN_NORM, GATE, HIDDEN, Inputs, KEY, KEY_NORM, N_INPUTS,
            N_PROJECTIONS, QUERY, QUERY_NORM, UP, VALUE,
        },
        projection::{FactorsRef, Numbers, adapter_slot},
    },
};

/// A decoder whose matrices are never all decoded at once. Norms and biases are f32.
pub struct Frozen {
    pub(super) spec: ModelSpec,
    pub(super) embedding: Weight,
    pub(super) untied_head: Option<Weight>,
    pub(super) final_norm: Vec<f32>,
    pub(super) products: Products,
    blocks: Vec<FrozenBlock>,
    rope: RopeCache,
}

/// A block's tensors, each in its slot among a block's inputs.
struct FrozenBlock {
    tensors: [Option<Tensor>; N_INPUTS],
}

enum Tensor {
    Vector(Vec<f32>),
    Matrix(Weight),
}

impl Frozen {
    /// Takes the tensors of a source as they are; with `format`, the projections' float matrices are first rounded to
    /// nearest in it.
    ///
    /// # Errors
    /// When the source lacks a tensor, holds a number that is not finite, or a matrix cannot be stored in `format`.
    pub fn load(source: &dyn WeightSource, format: Option<Format>) -> Result<Self, LoadError> {
        let spec = source.spec();
        spec.validate()?;
        let block = |index| -> Result<FrozenBlock, LoadError> {
            let mut tensors = [const { None }; N_INPUTS];
            for key in TensorKey::all(spec).into_iter().filter(|key| key.block == Some(index)) {
                let weight = read(source, key)?;
                let is_matrix = key.role.is_matrix() && key.part == Part::Weight;
                tensors[slot_of(key)] = Some(match (is_matrix, format) {
                    (false, _) => Tensor::Vector(decoded(key, &weight)?),
                    (true, Some(format)) if weight.format().is_float() => {
                        let packed = slmc_blocks::encode_weight(&weight, format);
                        // The float's pages of a mapped file would stay in memory beside the blocks.
                        slmc_formats::release(weight.bytes());
                        Tensor::Matrix(packed.map_err(|source| LoadError::Decode { key, source })?)
                    }
                    (true, _) => Tensor::Matrix(weight),
                });
            }
            Ok(FrozenBlock { tensors })
        };
        let blocks = (0..spec.n_layers).map(block).collect::<Result<_, _>>()?;
        let (norm, head) = (TensorKey::model(Role::FinalNorm), TensorKey::model(Role::Head));
        Ok(Self {
            embedding: read(source, TensorKey::model(Role::Embedding))?,
            untied_head: if spec.tied_head { None } else { Some(read(source, head)?) },
            final_norm: decoded(norm, &read(source, norm)?)?,
            products: Products::default(),
            blocks,
            rope: RopeCache::default(),
            spec: spec.clone(),
        })
    }

    /// The same decoder with its products computed in this way.
    #[must_use]
    pub fn with_products(mut self, products: Products) -> Self {
        self.products = products;
        self
    }

    /// Shape and choices of the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The output head: the embedding when it is tied.
    pub(super) fn head(&self) -> &Weight {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }

    pub(super) fn rope(&self, seq: usize) -> Arc<RopeTable> {
        self.rope.table(&self.spec, seq)
    }

    /// The tokens' rows of the embedding, `[n_tokens, d_model]`.
    pub(super) fn embed(&self, tokens: &[TokenId]) -> Vec<f32> {
        let d_model = self.spec.d_model;
        let mut out = vec![0.0; tokens.len() * d_model];
        for (row, &token) in out.chunks_exact_mut(d_model).zip(tokens) {
            decode_rows(&self.embedding, token as usize, 1, row);
        }
        out
    }

    /// What block `index` computes with.
    pub(super) fn inputs<'a>(
        &'a self,
        index: usize,
        hidden: &'a [f32],
        adapter: Option<&'a Adapter>,
        starts: Option<&'a [u32]>,
    ) -> Inputs<'a> {
        let mut numbers = self.blocks[index].tensors.each_ref().map(|tensor| match tensor {
            Some(Tensor::Vector(numbers)) => Some(Numbers::Plain(numbers)),
            Some(Tensor::Matrix(weight)) => Some(Numbers::Packed(weight)),
            None => None,
        });
        numbers[HIDDEN] = Some(Numbers::Plain(hidden));
        let mut adapters = [None; N_PROJECTIONS];
        for role in Adapter::ROLES {
            let key = TensorKey::block(index, role);
            adapters[adapter_slot(slot_of(key))] = adapter.and_then(|adapter| {
                let factors = adapter.factors.get(&key)?;
                let (rank, scale) = (adapter.rank, adapter.scale());
                Some(FactorsRef { a: &factors.a, b: &factors.b, rank, scale })
            });
        }
        Inputs { numbers, adapters, starts }
    }
}

/// `n` rows of a matrix from row `first`, decoded.
pub(super) fn decode_rows(weight: &Weight, first: usize, n: usize, out: &mut [f32]) {
    let row_bytes = weight.bytes().len() / weight.n_rows();
    let bytes = &weight.bytes()[first * row_bytes..(first + n) * row_bytes];
    slmc_blocks::decode(weight.format(), bytes, out).expect("rows are whole blocks");
}

/// A tensor of the shape that the spec says, without a number that is not finite.
fn read(source: &dyn WeightSource, key: TensorKey) -> Result<Weight, LoadError> {
    let weight = source.read(key)?;
    let expected = key.shape(source.spec());
    if weight.shape() != expected {
        return Err(SourceError::Shape { key, expected, found: weight.shape().to_vec() }.into());
    }
    match slmc_blocks::first_non_finite(&weight) {
        Some((index, value)) => Err(SourceError::NotFinite { key, index, value }.into()),
        None => Ok(weight),
    }
}

fn decoded(key: TensorKey, weight: &Weight) -> Result<Vec<f32>, LoadError> {
    slmc_blocks::decode_weight(weight).map_err(|source| LoadError::Decode { key, source })
}

/// The place of a block's tensor among the block's inputs.
pub(super) fn slot_of(key: TensorKey) -> usize {
    let slot = match key.role {
        Role::AttnNorm => ATTN_NORM,
        Role::QueryNorm => QUERY_NORM,
        Role::KeyNorm => KEY_NORM,
        Role::FfnNorm => FFN_NORM,
        Role::Query => QUERY,
        Role::Key => KEY,
        Role::Value => VALUE,
        Role::AttnOutput => ATTN_OUTPUT,
        Role::Gate => GATE,
        Role::Up => UP,
        Role::Down => DOWN,
        Role::Embedding | Role::FinalNorm | Role::Head => unreachable!("only a block's tensors have slots"),
    };
    slot + usize::from(key.part == Part::Bias)
}
