//! What each tensor becomes, decided before a weight is read.

use std::collections::BTreeMap;

use slmc_blocks::has_nbits;
use slmc_ir::{Format, Outline, Role, TensorKey};

use crate::write::is_matrix;

/// Weights that share a scale in MatMulNBits, as we write it.
const BLOCK: usize = 32;
/// Rows of cosines and sines; above this a graph would be mostly tables.
const MAX_TABLE_NUMBERS: usize = 1 << 28;

/// How matrices are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnnxPrecision {
    /// Everything in f32.
    F32,
    /// Everything in f16, activations and cache too.
    F16,
    /// 8 bits a weight in blocks of 32, activations in f32.
    Int8,
    /// 4 bits a weight in blocks of 32, activations in f32; embedding and head as they are packed, or 8 bits.
    Int4,
}

impl std::str::FromStr for OnnxPrecision {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err(format!("precision `{name}`: use f32, f16, int8 or int4")),
        }
    }
}

/// How a checkpoint is written as ONNX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnnxOptions {
    /// How matrices are held; as they are stored when absent.
    pub precision: Option<OnnxPrecision>,
    /// Standard operators only.
    pub plain: bool,
    /// How MatMulNBits holds activations: 0 as it likes, 1 f32, 2 f16, 3 bf16, 4 int8.
    pub accuracy_level: i64,
}

impl Default for OnnxOptions {
    /// As stored, onnxruntime's operators, int8 activations: what is fast on a CPU.
    fn default() -> Self {
        Self { precision: None, plain: false, accuracy_level: 4 }
    }
}

/// What each matrix becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxPlan {
    /// Type of activations, cache and logits: f32 or f16.
    pub activations: Format,
    /// The format of every tensor in the graph; packed ones are split into levels and scales.
    pub formats: BTreeMap<TensorKey, Format>,
    /// What is other than stored or asked for, in words.
    pub notes: Vec<String>,
}

impl OnnxPlan {
    /// Decides for every tensor.
    ///
    /// # Errors
    /// What onnxruntime cannot take of the model, in words; each names the remedy.
    pub fn new(outline: &Outline, options: &OnnxOptions) -> Result<Self, Vec<String>> {
        let objections = objections(outline, options);
        if !objections.is_empty() {
            return Err(objections);
        }
        let mut formats = BTreeMap::new();
        let mut changed: BTreeMap<(Format, Format, &'static str), usize> = BTreeMap::new();
        for &(key, stored) in outline.formats.iter().filter(|(key, _)| is_matrix(*key)) {
            let n_columns = key.shape(&outline.spec)[1];
            let (format, why) = choose(key, stored, n_columns, options);
            if !why.is_empty() {
                *changed.entry((stored, format, why)).or_default() += 1;
            }
            formats.insert(key, format);
        }
        let float = |format: &Format| format.is_float();
        let all_half = formats.values().all(|&format| format == Format::F16);
        let activations = match options.precision {
            Some(OnnxPrecision::F16) => Format::F16,
            None if all_half => Format::F16,
            _ => Format::F32,
        };
        if formats.values().all(float) {
            // A few f32 matrices between f16 ones: one type for all.
            formats.values_mut().for_each(|format| *format = activations);
        }
        let vectors = outline.formats.iter().filter(|(key, _)| !is_matrix(*key));
        formats.extend(vectors.map(|&(key, _)| (key, activations)));
        let notes = changed.into_iter().map(|((from, to, why), n)| {
            let tensors = if n == 1 { "1 matrix".to_owned() } else { format!("{n} matrices") };
            if from == to {
                format!("{tensors} in {from} stay: {why}")
            } else {
                format!("{tensors} from {from} to {to}: {why}")
            }
        });
        Ok(Self { activations, notes: notes.collect(), formats })
    }

    /// The format of a tensor.
    pub(crate) fn format(&self, key: TensorKey) -> Format {
        self.formats.get(&key).copied().unwrap_or(self.activations)
    }
}

/// What onnxruntime cannot take of a model.
fn objections(outline: &Outline, options: &OnnxOptions) -> Vec<String> {
    let (spec, mut objections) = (&outline.spec, Vec::new());
    if !options.plain && !spec.d_head.is_multiple_of(8) {
        objections.push(format!(
            "heads of {} channels: GroupQueryAttention takes multiples of 8 (--plain takes any)",
            spec.d_head
        ));
    }
    if spec.context_len.checked_mul(spec.d_head).is_none_or(|n| n > MAX_TABLE_NUMBERS) {
        objections.push(format!("tables of rotations for {} positions are too large", spec.context_len));
    }
    if options.precision.is_some() {
        return objections;
    }
    let mut foreign: BTreeMap<Format, usize> = BTreeMap::new();
    for &(_, format) in outline.formats.iter().filter(|(_, f)| !f.is_float() && !has_nbits(*f)) {
        *foreign.entry(format).or_default() += 1;
    }
    for (format, n) in foreign {
        objections.push(format!(
            "{n} tensors in {format}: MatMulNBits has no such levels (it takes q4_0, q4_1, q8_0); quantize to one of \
             those, or export with --precision int4 or int8, which rounds them again, or f16"
        ));
    }
    objections
}

/// A matrix's format, and why it is other than stored or asked for (empty: it is not).
fn choose(key: TensorKey, stored: Format, n_columns: usize, options: &OnnxOptions) -> (Format, &'static str) {
    let at_edge = matches!(key.role, Role::Embedding | Role::Head);
    // DequantizeLinear's zero points are integers: Q4_1's minima do not fit.
    let passes = has_nbits(stored) && !(options.plain && stored == Format::Q4_1);
    let float = |wanted| {
        let why = if stored.is_float() { "" } else { "decoded, as a float precision was asked for" };
        (wanted, why)
    };
    let rounded = |wanted| {
        if !n_columns.is_multiple_of(BLOCK) {
            return (Format::F16, "rows are not whole blocks of 32, so they stay floats");
        }
        match (stored.is_float(), stored) {
            (true, _) if at_edge => (wanted, "embedding or head, rounded to nearest"),
            (true, _) => (wanted, "rounded to nearest, as --precision asks; `slmc quantize` may do better"),
            (false, Format::Q4_1) => (wanted, "decoded and rounded again, without their minima"),
            _ => (wanted, "decoded and rounded again: onnxruntime has no such levels"),
        }
    };
    match options.precision {
        Some(OnnxPrecision::F32) => float(Format::F32),
        Some(OnnxPrecision::F16) => float(Format::F16),
        Some(OnnxPrecision::Int4) if passes && stored == Format::Q8_0 && !at_edge => {
            (stored, "8 bits already, not rounded again")
        }
        Some(OnnxPrecision::Int8) if passes && stored == Format::Q4_0 => {
            (stored, "4 bits already, 8 would add nothing")
        }
        // Measured with onnxruntime 1.32 on a CPU: a product takes some hundred times as long as one of q4_0.
        Some(OnnxPrecision::Int4) | None if passes && stored == Format::Q4_1 => (
            stored,
            "exact but slow, as onnxruntime decodes levels with minima anew in each product; int8 is fast",
        ),
        Some(OnnxPrecision::Int8) if stored == Format::Q4_1 => rounded(Format::Q8_0),
        _ if passes => (stored, ""),
        Some(OnnxPrecision::Int4) if !at_edge => rounded(Format::Q4_0),
        Some(OnnxPrecision::Int4 | OnnxPrecision::Int8) => rounded(Format::Q8_0),
        None if stored == Format::Bf16 => (Format::F16, "onnxruntime's CPU operators have no bf16"),
        None if stored.is_float() => (stored, ""),
        None => rounded(Format::Q8_0),
    }
}
