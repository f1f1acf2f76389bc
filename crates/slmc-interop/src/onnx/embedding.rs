//! Token ids to the first values of the residual stream.

use slmc_formats::onnx::ElementType;
use slmc_ir::{Format, Role, TensorKey};

use super::{
    decoder::{Builder, IDS},
    graph::{Attribute, element},
    linear::{BLOCK, Shapes, bits_of, rows_of, scales_of, zeros_of},
};
use crate::error::WriteError;

const RESULT: &str = "embedding result";

impl Builder<'_> {
    /// Rows of the embedding. A packed one is gathered as it is packed; the head, where it is tied, reads the same
    /// bytes of the file.
    pub fn embedding(&mut self) -> Result<String, WriteError> {
        let key = TensorKey::model(Role::Embedding);
        let weight = self.read(key)?;
        let format = weight.format();
        if format.is_float() {
            let (name, dims) = (key.to_string(), [weight.n_rows() as i64, weight.n_columns() as i64]);
            self.graph.writer.tensor(&name, element(format), &dims, weight.bytes())?;
            let rows = self.graph.op("Gather", &[&name, IDS], &[("axis", Attribute::Int(0))], RESULT);
            return Ok(self.as_activations(rows, format));
        }
        let is_shared = self.spec.tied_head && !self.options.plain;
        self.write_n_bits(key, &weight, if is_shared { Shapes::Both } else { Shapes::Rows })?;
        let (bits, flat) = (bits_of(format), rows_of(key));
        if self.options.plain || format == Format::Q4_1 {
            return self.gathered_levels(key, &flat, format);
        }
        let attributes = [
            ("bits", Attribute::Int(bits)),
            ("block_size", Attribute::Int(BLOCK)),
            ("gather_axis", Attribute::Int(0)),
            ("quantize_axis", Attribute::Int(1)),
        ];
        self.graph.contrib("GatherBlockQuantized", &[&flat, IDS, &scales_of(key)], &attributes, &[RESULT]);
        Ok(RESULT.to_owned())
    }

    /// The same in standard operations: levels of the rows, apart, minus their zero point, times their scale.
    fn gathered_levels(&mut self, key: TensorKey, flat: &str, format: Format) -> Result<String, WriteError> {
        let d_model = self.spec.d_model as i64;
        let rows_axis = [("axis", Attribute::Int(0))];
        let name = |what: &str| format!("{RESULT} {what}");
        let float = element(self.plan.activations);
        let last = self.graph.ints(&[-1])?;
        let graph = &mut self.graph;
        let mut levels = graph.op("Gather", &[flat, IDS], &rows_axis, &name("bytes"));
        if format != Format::Q8_0 {
            graph.writer.tensor("low bits", ElementType::U8, &[], &[15])?;
            graph.writer.tensor("four", ElementType::U8, &[], &[4])?;
            let low = graph.op("BitwiseAnd", &[&levels, "low bits"], &[], &name("low"));
            let high = graph.op_text("BitShift", &[&levels, "four"], ("direction", "RIGHT"), &name("high"));
            let low = graph.op("Unsqueeze", &[&low, &last], &[], &name("low apart"));
            let high = graph.op("Unsqueeze", &[&high, &last], &[], &name("high apart"));
            let axis = [("axis", Attribute::Int(-1))];
            levels = graph.op("Concat", &[&low, &high], &axis, &name("levels in pairs"));
        }
        let levels = graph.reshape(&levels, &[0, 0, d_model / BLOCK, BLOCK], &name("levels"))?;
        let levels = graph.cast(&levels, float, &name("levels as numbers"));
        let mut per_block = |tensor: &str, what: &str| {
            let gathered = graph.op("Gather", &[tensor, IDS], &rows_axis, &name(what));
            graph.op("Unsqueeze", &[&gathered, &last], &[], &name(&format!("{what} of blocks")))
        };
        let scales = per_block(&scales_of(key), "scales");
        let zeros = match format {
            Format::Q4_1 => per_block(&zeros_of(key), "zero points"),
            Format::Q8_0 => graph.number(128.0, Format::F32)?,
            _ => graph.number(8.0, Format::F32)?,
        };
        let centred = graph.op("Sub", &[&levels, &zeros], &[], &name("steps"));
        let scaled = graph.op("Mul", &[&centred, &scales], &[], &name("blocks"));
        graph.reshape(&scaled, &[0, 0, d_model], RESULT)
    }
}
