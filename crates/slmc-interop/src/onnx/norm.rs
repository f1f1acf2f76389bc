//! RMSNorm (arXiv:1910.07467), fused with the addition before it where onnxruntime's operators may be used.

use slmc_formats::onnx::ElementType;
use slmc_ir::{Format, TensorKey};

use super::{
    decoder::Builder,
    graph::{Attribute, element},
};
use crate::error::WriteError;

impl Builder<'_> {
    /// `stream + delta`, and its norm; both names.
    pub fn add_norm(
        &mut self,
        stream: &str,
        delta: Option<&str>,
        gain: TensorKey,
    ) -> Result<(String, String), WriteError> {
        let name = gain.to_string();
        let Some(delta) = delta else {
            let gain = self.vector(gain)?;
            return Ok((stream.to_owned(), self.rms_norm(stream, &gain, &format!("{name} result"))?));
        };
        let (sum, normed) = (format!("{name} input"), format!("{name} result"));
        let gain = self.vector(gain)?;
        if self.options.plain {
            let sum = self.graph.op("Add", &[stream, delta], &[], &sum);
            let normed = self.rms_norm(&sum, &gain, &normed)?;
            return Ok((sum, normed));
        }
        let epsilon = Attribute::Float(self.spec.norm_eps);
        self.graph.contrib(
            "SkipSimplifiedLayerNormalization",
            &[stream, delta, &gain],
            &[("epsilon", epsilon)],
            &[&normed, "", "", &sum],
        );
        Ok((sum, normed))
    }

    /// The norm of the last dimension, spelled out in f32: onnxruntime fuses exactly these operations into one.
    pub fn rms_norm(&mut self, x: &str, gain: &str, result: &str) -> Result<String, WriteError> {
        let half = self.plan.activations == Format::F16;
        let (two, epsilon) =
            (self.graph.number(2.0, Format::F32)?, self.graph.number(self.spec.norm_eps, Format::F32)?);
        let last = self.graph.ints(&[-1])?;
        let name = |what: &str| format!("{result} {what}");
        let graph = &mut self.graph;
        let wide = if half { graph.cast(x, ElementType::F32, &name("wide")) } else { x.to_owned() };
        let square = graph.op("Pow", &[&wide, &two], &[], &name("square"));
        let keep = ("keepdims", Attribute::Int(1));
        let mean = graph.op("ReduceMean", &[&square, &last], &[keep], &name("mean square"));
        let shifted = graph.op("Add", &[&mean, &epsilon], &[], &name("mean square and epsilon"));
        let root = graph.op("Sqrt", &[&shifted], &[], &name("root"));
        let mut normed = graph.op("Div", &[&wide, &root], &[], &name("normed"));
        if half {
            normed = graph.cast(&normed, element(Format::F16), &name("narrow"));
        }
        Ok(graph.op("Mul", &[&normed, gain], &[], result))
    }
}
