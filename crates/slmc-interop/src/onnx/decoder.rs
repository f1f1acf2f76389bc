//! The decoder, from token ids to logits.

use slmc_formats::onnx::ElementType;
use slmc_ir::{Checkpoint, Format, ModelSpec, Part, Role, TensorKey, Weight};

use super::{
    graph::{Dim, Graph, element},
    plain_attention::Masks,
    plan::{OnnxOptions, OnnxPlan},
};
use crate::{
    error::WriteError,
    finite::ready,
    write::{Progress, read_checked},
};

pub(super) const IDS: &str = "input_ids";
pub(super) const MASK: &str = "attention_mask";
pub(super) const POSITIONS: &str = "position_ids";
pub(super) const LOGITS: &str = "logits";
/// Tables of rotations, `[context_len, d_head / 2]`.
pub(super) const COS: &str = "rotary cos";
pub(super) const SIN: &str = "rotary sin";

const BATCH: Dim = Dim::Named("batch_size");
const SEQUENCE: Dim = Dim::Named("sequence_length");
const PAST: Dim = Dim::Named("past_sequence_length");
const TOTAL: Dim = Dim::Named("total_sequence_length");

/// What the parts of the decoder share while it is built.
pub(super) struct Builder<'a> {
    pub checkpoint: &'a Checkpoint,
    pub spec: &'a ModelSpec,
    pub plan: &'a OnnxPlan,
    pub options: &'a OnnxOptions,
    pub graph: Graph,
    pub progress: Progress<'a>,
    /// Made once, used by every block.
    pub masks: Masks,
}

impl Builder<'_> {
    /// The whole graph.
    pub fn decoder(&mut self) -> Result<(), WriteError> {
        self.declare();
        self.rotations()?;
        self.masks = if self.options.plain { self.plain_masks()? } else { self.lengths()? };
        let mut stream = self.embedding()?;
        let mut delta: Option<String> = None;
        for block in 0..self.spec.n_layers {
            let key = |role| TensorKey::block(block, role);
            let (sum, normed) = self.add_norm(&stream, delta.as_deref(), key(Role::AttnNorm))?;
            let attended = self.attention(block, &normed)?;
            let (sum, normed) = self.add_norm(&sum, Some(&attended), key(Role::FfnNorm))?;
            stream = sum;
            delta = Some(self.mlp(block, &normed)?);
        }
        let (_, normed) = self.add_norm(&stream, delta.as_deref(), TensorKey::model(Role::FinalNorm))?;
        self.head(&normed)
    }

    /// Inputs and outputs, in onnxruntime-genai's order.
    fn declare(&mut self) {
        let float = element(self.plan.activations);
        let (n_kv, d_head) = (Dim::Fixed(self.spec.n_kv_heads), Dim::Fixed(self.spec.d_head));
        let graph = &mut self.graph;
        graph.input(IDS, ElementType::I64, &[BATCH, SEQUENCE]);
        graph.input(MASK, ElementType::I64, &[BATCH, TOTAL]);
        graph.input(POSITIONS, ElementType::I64, &[BATCH, SEQUENCE]);
        graph.output(LOGITS, float, &[BATCH, SEQUENCE, Dim::Fixed(self.spec.vocab_size)]);
        for block in 0..self.spec.n_layers {
            for what in ["key", "value"] {
                graph.input(&past(block, what), float, &[BATCH, n_kv, PAST, d_head]);
                graph.output(&present(block, what), float, &[BATCH, n_kv, TOTAL, d_head]);
            }
        }
    }

    /// Cosines and sines of every position, from frequencies in f64.
    fn rotations(&mut self) -> Result<(), WriteError> {
        let frequencies = self.spec.rope_frequencies();
        let dims = [self.spec.context_len, frequencies.len()];
        for (name, turn) in [(COS, f64::cos as fn(f64) -> f64), (SIN, f64::sin)] {
            let angles = (0..dims[0]).flat_map(|at| frequencies.iter().map(move |f| at as f64 * f));
            let numbers: Vec<f32> = angles.map(|angle| turn(angle) as f32).collect();
            self.floats(name, &dims, &numbers)?;
        }
        Ok(())
    }

    /// SwiGLU (arXiv:2002.05202).
    fn mlp(&mut self, block: usize, x: &str) -> Result<String, WriteError> {
        let key = |role| TensorKey::block(block, role);
        let gate = self.linear(key(Role::Gate), x)?;
        let up = self.linear(key(Role::Up), x)?;
        let name = |what: &str| format!("block {block} {what}");
        let graph = &mut self.graph;
        let sigmoid = graph.op("Sigmoid", &[&gate], &[], &name("sigmoid"));
        let silu = graph.op("Mul", &[&gate, &sigmoid], &[], &name("silu"));
        let gated = graph.op("Mul", &[&silu, &up], &[], &name("gated"));
        self.linear(key(Role::Down), &gated)
    }

    /// A tensor in the plan's format, proven finite.
    pub fn read(&mut self, key: TensorKey) -> Result<Weight, WriteError> {
        let weight = read_checked(self.checkpoint, key)?;
        let weight = ready(key, &weight, self.plan.format(key), &key.to_string())?;
        self.progress.advance()?;
        Ok(weight)
    }

    /// Writes numbers as the type of activations.
    pub fn floats(&mut self, name: &str, dims: &[usize], numbers: &[f32]) -> Result<(), WriteError> {
        let weight_error = |source| WriteError::Weight { name: name.to_owned(), source };
        let weight = Weight::from_f32(dims.to_vec(), numbers).map_err(weight_error)?;
        let key = TensorKey { block: None, role: Role::FinalNorm, part: Part::Weight };
        let weight = ready(key, &weight, self.plan.activations, name)?;
        let dims: Vec<i64> = dims.iter().map(|&n| n as i64).collect();
        Ok(self.graph.writer.tensor(name, element(self.plan.activations), &dims, weight.bytes())?)
    }

    /// A vector of the checkpoint as a tensor of the graph; its name.
    pub fn vector(&mut self, key: TensorKey) -> Result<String, WriteError> {
        let (weight, name) = (self.read(key)?, key.to_string());
        let dims = [weight.n_weights() as i64];
        self.graph.writer.tensor(&name, element(weight.format()), &dims, weight.bytes())?;
        Ok(name)
    }

    /// The value in the type of activations.
    pub fn as_activations(&mut self, value: String, stored: Format) -> String {
        if stored == self.plan.activations {
            return value;
        }
        let to = element(self.plan.activations);
        self.graph.cast(&value, to, &format!("{value} as {}", self.plan.activations))
    }
}

pub(super) fn past(block: usize, what: &str) -> String {
    format!("past_key_values.{block}.{what}")
}

pub(super) fn present(block: usize, what: &str) -> String {
    format!("present.{block}.{what}")
}
