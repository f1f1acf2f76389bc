//! The decoder as a Burn module, and its parameters by their keys.

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, TensorData},
};
use slmc_ir::{ModelSpec, Part, Role, TensorKey};
use slmc_kernels::Products;

use crate::rope::RopeCache;

/// `x · Wᵀ + b`.
#[derive(Module, Debug)]
pub struct Projection {
    /// `[out, in]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

/// One block: attention and MLP, each behind a norm and beside a residual.
#[derive(Module, Debug)]
pub struct Block {
    /// Norm before attention, `[d_model]`.
    pub attn_norm: Param<Tensor<1>>,
    /// Query projection.
    pub query: Projection,
    /// Key projection.
    pub key: Projection,
    /// Value projection.
    pub value: Projection,
    /// Norm of each query head, `[d_head]`.
    pub query_norm: Option<Param<Tensor<1>>>,
    /// Norm of each key head, `[d_head]`.
    pub key_norm: Option<Param<Tensor<1>>>,
    /// Output projection of attention.
    pub attn_output: Projection,
    /// Norm before the MLP, `[d_model]`.
    pub ffn_norm: Param<Tensor<1>>,
    /// Gate projection.
    pub gate: Projection,
    /// Up projection.
    pub up: Projection,
    /// Down projection.
    pub down: Projection,
}

/// A Llama-type decoder, described by its spec. Cloning shares the weights.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embedding, `[vocab_size, d_model]`.
    pub embedding: Param<Tensor<2>>,
    /// The blocks, first to last.
    pub blocks: Vec<Block>,
    /// Norm after the last block, `[d_model]`.
    pub final_norm: Param<Tensor<1>>,
    /// Output head, `[vocab_size, d_model]`; absent when it is tied to the embedding.
    pub untied_head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    pub(crate) spec: ModelSpec,
    #[module(skip)]
    pub(crate) rope: RopeCache,
    /// How products are computed, on devices whose kernels are ours.
    #[module(skip)]
    pub(crate) products: Products,
}

/// A parameter of either rank.
#[derive(Clone, Copy, Debug)]
pub enum Parameter<'a> {
    /// A weight matrix.
    Matrix(&'a Param<Tensor<2>>),
    /// A norm's gain or a bias.
    Vector(&'a Param<Tensor<1>>),
}

/// A parameter of either rank, to change.
#[derive(Debug)]
pub enum ParameterMut<'a> {
    /// A weight matrix.
    Matrix(&'a mut Param<Tensor<2>>),
    /// A norm's gain or a bias.
    Vector(&'a mut Param<Tensor<1>>),
}

impl Parameter<'_> {
    /// The value with its autodiff node, flattened in row order.
    pub fn flat(self) -> Tensor<1> {
        match self {
            Self::Matrix(matrix) => {
                let value = matrix.val();
                let n = value.shape().num_elements();
                value.reshape([n])
            }
            Self::Vector(vector) => vector.val(),
        }
    }

    /// Whether training changes it.
    pub fn is_trainable(self) -> bool {
        match self {
            Self::Matrix(matrix) => matrix.is_require_grad(),
            Self::Vector(vector) => vector.is_require_grad(),
        }
    }
}

impl Block {
    fn projection(&self, role: Role) -> Option<&Projection> {
        match role {
            Role::Query => Some(&self.query),
            Role::Key => Some(&self.key),
            Role::Value => Some(&self.value),
            Role::AttnOutput => Some(&self.attn_output),
            Role::Gate => Some(&self.gate),
            Role::Up => Some(&self.up),
            Role::Down => Some(&self.down),
            _ => None,
        }
    }

    fn projection_mut(&mut self, role: Role) -> Option<&mut Projection> {
        match role {
            Role::Query => Some(&mut self.query),
            Role::Key => Some(&mut self.key),
            Role::Value => Some(&mut self.value),
            Role::AttnOutput => Some(&mut self.attn_output),
            Role::Gate => Some(&mut self.gate),
            Role::Up => Some(&mut self.up),
            Role::Down => Some(&mut self.down),
            _ => None,
        }
    }

    fn norm(&self, role: Role) -> Option<&Param<Tensor<1>>> {
        match role {
            Role::AttnNorm => Some(&self.attn_norm),
            Role::QueryNorm => self.query_norm.as_ref(),
            Role::KeyNorm => self.key_norm.as_ref(),
            Role::FfnNorm => Some(&self.ffn_norm),
            _ => None,
        }
    }

    fn norm_mut(&mut self, role: Role) -> Option<&mut Param<Tensor<1>>> {
        match role {
            Role::AttnNorm => Some(&mut self.attn_norm),
            Role::QueryNorm => self.query_norm.as_mut(),
            Role::KeyNorm => self.key_norm.as_mut(),
            Role::FfnNorm => Some(&mut self.ffn_norm),
            _ => None,
        }
    }
}

impl Decoder {
    /// Shape and choices of the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Number of weights, biases and gains (a tied head counts once).
    pub fn n_parameters(&self) -> u64 {
        self.spec.n_parameters()
    }

    /// The device of the weights, with autodiff if they have it.
    pub fn device(&self) -> Device {
        self.embedding.device()
    }

    /// The output head, `[vocab_size, d_model]`: the embedding when it is tied.
    pub fn head(&self) -> Tensor<2> {
        self.untied_head.as_ref().unwrap_or(&self.embedding).val()
    }

    /// The same decoder with its products computed in this way on flex; other devices have their own.
    #[must_use]
    pub fn with_products(mut self, products: Products) -> Self {
        self.products = products;
        self
    }

    /// Whether the device computes products as [`Decoder::products`] says: flex does.
    pub fn computes_products(&self) -> bool {
        #[cfg(feature = "flex")]
        return crate::fused::runs_on(&self.device());
        #[cfg(not(feature = "flex"))]
        return false;
    }

    /// How its products are computed.
    pub fn products(&self) -> Products {
        self.products
    }

    /// The same decoder to train: on the device with autodiff, every parameter tracked.
    #[must_use]
    pub fn for_training(self) -> Self {
        self.train()
    }

    /// The same decoder with an embedding (and a head of its own) that training leaves as it is.
    #[must_use]
    pub fn with_frozen_embedding(mut self) -> Self {
        self.embedding = self.embedding.set_require_grad(false);
        self.untied_head = self.untied_head.map(|head| head.set_require_grad(false));
        self
    }

    /// The same decoder without autodiff: sharing the weights.
    #[must_use]
    pub fn for_evaluation(&self) -> Self {
        self.valid()
    }

    /// Every parameter's key, in the order of computation.
    pub fn keys(&self) -> Vec<TensorKey> {
        TensorKey::all(&self.spec)
    }

    /// The parameter of a key, if the model has it.
    pub fn parameter(&self, key: TensorKey) -> Option<Parameter<'_>> {
        let Some(index) = key.block else {
            return match key.role {
                Role::Embedding => Some(Parameter::Matrix(&self.embedding)),
                Role::FinalNorm => Some(Parameter::Vector(&self.final_norm)),
                Role::Head => self.untied_head.as_ref().map(Parameter::Matrix),
                _ => None,
            };
        };
        let block = self.blocks.get(index)?;
        match (block.projection(key.role), key.part) {
            (Some(projection), Part::Weight) => Some(Parameter::Matrix(&projection.weight)),
            (Some(projection), Part::Bias) => projection.bias.as_ref().map(Parameter::Vector),
            (None, _) => block.norm(key.role).map(Parameter::Vector),
        }
    }

    /// Puts other numbers in the place of a parameter's, in row order; what trained goes on to be trained.
    ///
    /// # Panics
    /// When the model has no such parameter, or one of another size.
    pub fn replace(&mut self, key: TensorKey, numbers: Vec<f32>) {
        fn other<const D: usize>(parameter: &mut Param<Tensor<D>>, numbers: Vec<f32>) {
            let (shape, device) = (parameter.dims(), parameter.device().inner());
            let tensor = Tensor::<D>::from_data(TensorData::new(numbers, shape), &device);
            let learns = parameter.is_require_grad();
            let tensor = if learns { tensor.autodiff().require_grad() } else { tensor };
            *parameter = Param::initialized(parameter.id, tensor);
        }
        match self.parameter_mut(key).expect("a parameter of the model") {
            ParameterMut::Matrix(matrix) => other(matrix, numbers),
            ParameterMut::Vector(vector) => other(vector, numbers),
        }
    }

    /// The parameter of a key, to change.
    pub fn parameter_mut(&mut self, key: TensorKey) -> Option<ParameterMut<'_>> {
        let Some(index) = key.block else {
            return match key.role {
                Role::Embedding => Some(ParameterMut::Matrix(&mut self.embedding)),
                Role::FinalNorm => Some(ParameterMut::Vector(&mut self.final_norm)),
                Role::Head => self.untied_head.as_mut().map(ParameterMut::Matrix),
                _ => None,
            };
        };
        let block = self.blocks.get_mut(index)?;
        if let Some(projection) = block.projection(key.role).is_some().then_some(key.part) {
            let found = block.projection_mut(key.role)?;
            return match projection {
                Part::Weight => Some(ParameterMut::Matrix(&mut found.weight)),
                Part::Bias => found.bias.as_mut().map(ParameterMut::Vector),
            };
        }
        block.norm_mut(key.role).map(ParameterMut::Vector)
    }
}
