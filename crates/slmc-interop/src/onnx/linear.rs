//! Products with the checkpoint's matrices, and the head.

use slmc_blocks::NBits;
use slmc_formats::onnx::ElementType;
use slmc_ir::{Format, Role, TensorKey, Weight};

use super::{
    decoder::{Builder, IDS, LOGITS},
    graph::{Attribute, element},
};
use crate::error::WriteError;

/// Weights that share a scale.
pub(super) const BLOCK: i64 = 32;

/// The shapes in which levels are needed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shapes {
    /// For products.
    Blocks,
    /// For rows of an embedding.
    Rows,
    /// For both: a tied head.
    Both,
}

impl Builder<'_> {
    /// `x · Wᵀ`, plus the bias where the model has one.
    pub fn linear(&mut self, key: TensorKey, x: &str) -> Result<String, WriteError> {
        let name = key.to_string();
        if !self.spec.biases.has(key.role) {
            return self.product(key, x, &format!("{name} result"));
        }
        let product = self.product(key, x, &format!("{name} product"))?;
        let bias = self.vector(key.bias())?;
        Ok(self.graph.op("Add", &[&product, &bias], &[], &format!("{name} result")))
    }

    /// The logits.
    pub fn head(&mut self, x: &str) -> Result<(), WriteError> {
        let embedding = TensorKey::model(Role::Embedding);
        let format = self.plan.format(embedding);
        if !self.spec.tied_head {
            self.product(TensorKey::model(Role::Head), x, LOGITS)?;
        } else if format.is_float() {
            self.tied_float_head(embedding, x, format)?;
        } else if self.options.plain {
            // DequantizeLinear wants the other order: the bytes are there a second time.
            let weight = self.read(embedding)?;
            self.plain_packed(&weight, x, "tied head", LOGITS)?;
        } else {
            self.n_bits(embedding, self.spec.vocab_size, self.spec.d_model, x, LOGITS);
        }
        Ok(())
    }

    fn product(&mut self, key: TensorKey, x: &str, result: &str) -> Result<String, WriteError> {
        let (weight, name) = (self.read(key)?, key.to_string());
        if weight.format().is_float() {
            let dims = [weight.n_columns() as i64, weight.n_rows() as i64];
            let bytes = transposed(&weight);
            self.graph.writer.tensor(&name, element(weight.format()), &dims, &bytes)?;
            let matrix = self.as_activations(name, weight.format());
            return Ok(self.graph.op("MatMul", &[x, &matrix], &[], result));
        }
        if self.options.plain {
            return self.plain_packed(&weight, x, &name, result);
        }
        self.write_n_bits(key, &weight, Shapes::Blocks)?;
        self.n_bits(key, weight.n_rows(), weight.n_columns(), x, result);
        Ok(result.to_owned())
    }

    /// Levels, scales and, where there are minima, zero points `[N, K / 32]`. The levels are `[N, K / 32, bytes]` for
    /// MatMulNBits and `[N, bytes]` for an embedding, or both over the same bytes.
    pub fn write_n_bits(&mut self, key: TensorKey, weight: &Weight, shape: Shapes) -> Result<(), WriteError> {
        let nbits = taken_apart(key, weight)?;
        let dims = [nbits.n_rows as i64, nbits.n_columns as i64 / BLOCK];
        let n_bytes = BLOCK * nbits.bits as i64 / 8;
        let (blocks, rows) = ([dims[0], dims[1], n_bytes], [dims[0], dims[1] * n_bytes]);
        let writer = &mut self.graph.writer;
        if shape == Shapes::Rows {
            writer.tensor(&rows_of(key), ElementType::U8, &rows, &nbits.levels)?;
        } else {
            writer.tensor(&levels_of(key), ElementType::U8, &blocks, &nbits.levels)?;
        }
        if shape == Shapes::Both {
            writer.shared(&rows_of(key), ElementType::U8, &rows, &levels_of(key))?;
        }
        writer.tensor(&scales_of(key), ElementType::F32, &dims, &le_bytes(&nbits.scales))?;
        if let Some(zeros) = &nbits.zero_points {
            writer.tensor(&zeros_of(key), ElementType::F32, &dims, &le_bytes(zeros))?;
        }
        Ok(())
    }

    fn n_bits(&mut self, key: TensorKey, n_rows: usize, n_columns: usize, x: &str, result: &str) {
        let format = self.plan.format(key);
        let attributes = [
            ("K", Attribute::Int(n_columns as i64)),
            ("N", Attribute::Int(n_rows as i64)),
            ("bits", Attribute::Int(bits_of(format))),
            ("block_size", Attribute::Int(BLOCK)),
            ("accuracy_level", Attribute::Int(self.options.accuracy_level)),
        ];
        let (levels, scales, zeros) = (levels_of(key), scales_of(key), zeros_of(key));
        let mut inputs = vec![x, &levels, &scales];
        if format == Format::Q4_1 {
            inputs.push(&zeros);
        }
        self.graph.contrib("MatMulNBits", &inputs, &attributes, &[result]);
    }

    /// DequantizeLinear in blocks down the columns, then MatMul: onnxruntime makes MatMulNBits of the two.
    fn plain_packed(
        &mut self,
        weight: &Weight,
        x: &str,
        name: &str,
        result: &str,
    ) -> Result<String, WriteError> {
        let key = TensorKey::model(Role::Head);
        let nbits = taken_apart(key, weight)?;
        let (levels, scales) = nbits.transposed();
        let (n, k) = (nbits.n_rows as i64, nbits.n_columns as i64);
        let signed = if nbits.bits == 8 { ElementType::I8 } else { ElementType::I4 };
        let (levels_name, scales_name) = (format!("{name} levels"), format!("{name} scales"));
        let writer = &mut self.graph.writer;
        writer.tensor(&levels_name, signed, &[k, n], &levels)?;
        writer.tensor(&scales_name, ElementType::F32, &[k / BLOCK, n], &le_bytes(&scales))?;
        let attributes = [("axis", Attribute::Int(0)), ("block_size", Attribute::Int(BLOCK))];
        let graph = &mut self.graph;
        let matrix = graph.op(
            "DequantizeLinear",
            &[&levels_name, &scales_name],
            &attributes,
            &format!("{name} matrix"),
        );
        Ok(graph.op("MatMul", &[x, &matrix], &[], result))
    }

    /// The embedding's own rows: Gemm takes them as they are, and only matrices of two dimensions.
    fn tied_float_head(&mut self, key: TensorKey, x: &str, format: Format) -> Result<(), WriteError> {
        let (d_model, vocab) = (self.spec.d_model as i64, self.spec.vocab_size as i64);
        let matrix = self.as_activations(key.to_string(), format);
        let graph = &mut self.graph;
        let rows = graph.reshape(x, &[-1, d_model], "head rows")?;
        let products = graph.op("Gemm", &[&rows, &matrix], &[("transB", Attribute::Int(1))], "head products");
        let shape = graph.op("Shape", &[IDS], &[], "shape of the tokens");
        let vocab = graph.ints(&[vocab])?;
        let shape =
            graph.op("Concat", &[&shape, &vocab], &[("axis", Attribute::Int(0))], "shape of the logits");
        graph.op("Reshape", &[&products, &shape], &[], LOGITS);
        Ok(())
    }
}

pub(super) fn bits_of(format: Format) -> i64 {
    if format == Format::Q8_0 { 8 } else { 4 }
}

fn levels_of(key: TensorKey) -> String {
    format!("{key} levels")
}

pub(super) fn rows_of(key: TensorKey) -> String {
    format!("{key} levels by rows")
}

pub(super) fn scales_of(key: TensorKey) -> String {
    format!("{key} scales")
}

pub(super) fn zeros_of(key: TensorKey) -> String {
    format!("{key} zero points")
}

fn taken_apart(key: TensorKey, weight: &Weight) -> Result<NBits, WriteError> {
    let wrong = || WriteError::Onnx(format!("tensor `{key}` in {} has no integer levels", weight.format()));
    NBits::of(weight).ok_or_else(wrong)
}

fn le_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Rows and columns of a float matrix exchanged.
fn transposed(weight: &Weight) -> Vec<u8> {
    let (rows, columns, size) = (weight.n_rows(), weight.n_columns(), weight.format().block_bytes());
    let (source, mut out) = (weight.bytes(), Vec::with_capacity(weight.bytes().len()));
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * size;
            out.extend_from_slice(&source[at..at + size]);
        }
    }
    out
}
