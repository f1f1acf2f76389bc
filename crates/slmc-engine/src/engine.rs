//! A loaded model.

use std::sync::Arc;

use slmc_ir::{Checkpoint, ForwardError, LanguageModel, ModelSpec, Role, TensorKey, TokenId};
use slmc_kernels::{
    Team,
    packed::{HalfKernels, Precision},
};

use crate::{Crowd, EngineError, KvType, Session, state::State, weights::Weights};

/// How a model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads, the caller among them.
    pub n_threads: usize,
    /// How activations are held in products.
    pub precision: Precision,
    /// How those of tokens that are read are.
    pub reading: Reading,
    /// How keys and values are kept.
    pub kv: KvType,
}

/// How activations of tokens that are read are held, where those of written ones are int8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// In bf16 on a CPU that multiplies that in tiles: faster, and closer to the weights as they decode.
    #[default]
    Fastest,
    /// In int8, but in bf16 on a CPU that multiplies that in tiles what attention takes, and what the MLP's last product takes: its
    /// numbers spread the widest, and a block of them in bytes rounds to the largest.
    InBytes,
    /// As those of written tokens: the same bits on every CPU.
    AsWritten,
}

impl EngineOptions {
    /// As fast as it goes: activations in int8, those of what is read in bf16 where the CPU multiplies that in tiles; cache in
    /// f16.
    pub const fn fast(n_threads: usize) -> Self {
        Self { n_threads, precision: Precision::Int8, reading: Reading::Fastest, kv: KvType::F16 }
    }

    /// Activations in int8 for the most part, as llama.cpp has them, whose perplexity it therefore gives: rounding to bytes costs a
    /// few tenths of a percent, which bf16 does not. Cache in f16.
    pub const fn in_bytes(n_threads: usize) -> Self {
        Self { reading: Reading::InBytes, ..Self::fast(n_threads) }
    }

    /// Activations in int8 and a cache in f16: the same bits on every CPU. For verdicts, which must not depend on where they
    /// are made.
    pub const fn alike(n_threads: usize) -> Self {
        Self { reading: Reading::AsWritten, ..Self::fast(n_threads) }
    }

    /// The weights as they decode, everything else in f32: what speed is compared with.
    pub const fn exact(n_threads: usize) -> Self {
        Self { n_threads, precision: Precision::Float, reading: Reading::AsWritten, kv: KvType::F32 }
    }
}

/// A model, laid out for the CPU. Nothing of it changes while it runs: sessions share it.
#[derive(Debug)]
pub struct Engine {
    spec: ModelSpec,
    options: EngineOptions,
    weights: Weights,
    team: Arc<Team>,
    /// Buffers of the evaluation before, to be used again.
    spare: Option<State>,
}

impl Engine {
    /// Lays out every tensor of a checkpoint, one after the other.
    ///
    /// # Errors
    /// When the spec makes no sense, a tensor cannot be read or holds NaN, or the threads do not start.
    pub fn load(checkpoint: &Checkpoint, options: EngineOptions) -> Result<Self, EngineError> {
        let weights = Weights::read(checkpoint)?;
        // Threads that begin once the others rest are given the cores that these leave.
        let team = Team::new(options.n_threads).map_err(|e| EngineError::Team(e.to_string()))?;
        Ok(Self::with_weights(weights, checkpoint.spec(), options, Arc::new(team)))
    }

    /// As [`Engine::load`], with the threads of another engine: for models that take turns, as a draft and its
    /// target do.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_with(
        checkpoint: &Checkpoint,
        options: EngineOptions,
        team: Arc<Team>,
    ) -> Result<Self, EngineError> {
        Ok(Self::with_weights(Weights::read(checkpoint)?, checkpoint.spec(), options, team))
    }

    fn with_weights(weights: Weights, spec: &ModelSpec, options: EngineOptions, team: Arc<Team>) -> Self {
        let options = EngineOptions { n_threads: team.n_threads(), ..options };
        Self { spec: spec.clone(), options, weights, team, spare: None }
    }

    /// The model's shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// How it is run.
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// Its threads.
    pub fn team(&self) -> &Arc<Team> {
        &self.team
    }

    /// Bytes of weights that a step of one token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.weights.bytes_per_token()
    }

    /// The kernel that multiplies the first block's MLP on this CPU when tokens are read: `avx512vnni-q4_0i8-16x1`.
    pub fn kernel_name(&self) -> String {
        let matrix =
            self.weights.blocks.first().map_or(self.weights.head(), |block| &block.gate_up.matrices[0]);
        let held =
            if self.options.precision == Precision::Float || matrix.best_precision() == Precision::Float {
                Precision::Float
            } else {
                self.reading()
            };
        matrix.kernel_name(held)
    }

    /// How activations of what is read are held.
    pub(crate) fn reading(&self) -> Precision {
        match (self.options.reading, self.attention()) {
            (Reading::Fastest, Some(kernels)) => Precision::Half(kernels),
            _ => self.options.precision,
        }
    }

    /// How what the MLP's last product takes of it is held.
    pub(crate) fn reading_for_down(&self) -> Precision {
        match (self.options.reading, self.attention()) {
            (Reading::InBytes, Some(kernels)) => Precision::Half(kernels),
            _ => self.reading(),
        }
    }

    /// What computes attention of what is read in tiles.
    pub(crate) fn attention(&self) -> Option<HalfKernels> {
        let EngineOptions { precision, reading, .. } = self.options;
        let is_wanted = precision == Precision::Int8 && reading != Reading::AsWritten;
        HalfKernels::detect().filter(|_| is_wanted)
    }

    /// Multiplications and additions of weights that a token of a long prompt takes, the head's left out: it is
    /// asked for the last token only.
    pub fn operations_per_token(&self) -> u64 {
        let matrices = TensorKey::all(&self.spec)
            .into_iter()
            .filter(|key| key.block.is_some() && key.role.is_matrix() && key.part == slmc_ir::Part::Weight);
        2 * matrices.map(|key| key.shape(&self.spec).iter().map(|&n| n as u64).product::<u64>()).sum::<u64>()
    }

    /// An empty context with room for `capacity` tokens.
    ///
    /// # Errors
    /// When it is longer than the model's context.
    pub fn session(&self, capacity: usize) -> Result<Session<'_>, EngineError> {
        Session::new(self, capacity)
    }

    /// Empty contexts for `n_sequences`, each with room for `capacity` tokens, that advance together.
    ///
    /// # Errors
    /// When there are none, or they are longer than the model's context.
    pub fn crowd(&self, n_sequences: usize, capacity: usize) -> Result<Crowd<'_>, EngineError> {
        Crowd::new(self, n_sequences, capacity)
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }
}

impl LanguageModel for Engine {
    fn vocab_size(&self) -> usize {
        self.spec.vocab_size
    }

    fn context_len(&self) -> usize {
        self.spec.context_len
    }

    fn forward(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ForwardError> {
        let context_len = self.spec.context_len;
        if tokens.len() > context_len {
            return Err(ForwardError::Context { n_tokens: tokens.len(), context_len });
        }
        let mut spare = self.spare.take().filter(|state| state.capacity() >= tokens.len());
        let state = spare.take().unwrap_or_else(|| State::new(self, 1, tokens.len()));
        let mut session = Session::with_state(self, state);
        let ran = session.read_each(tokens, first, visit);
        self.spare = Some(session.into_state());
        ran.map_err(|error| error.into_forward(TensorKey::model(Role::Head)))
    }
}
