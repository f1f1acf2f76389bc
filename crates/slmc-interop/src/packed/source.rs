//! Weights of a packed folder, unpacked when they are read.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use slmc_blocks::{exact_format, from_quantized};
use slmc_formats::{Dtype, FloatType, TypedTensorInfo};
use slmc_ir::{Format, ModelSpec, Quantized, QuantizedParts, SourceError, TensorKey, Weight, WeightSource};

use super::{PackError, PackedLayout, PackedScheme, PackedTensor, Size, compressed, gptq};
use crate::{
    error::{TensorError, shorten},
    names::hf_name,
};

/// Tensors of a packed folder by what they stand for, as they come out of its files.
#[derive(Default)]
pub(crate) struct Module {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Bytes)>,
}

impl Module {
    /// Adds a tensor; `false` when one of its name was there.
    pub(crate) fn add(&mut self, suffix: &str, tensor: &TypedTensorInfo, bytes: Bytes) -> bool {
        self.tensors.insert(suffix.to_owned(), (tensor.dtype, tensor.shape.clone(), bytes)).is_none()
    }
}

/// A matrix whose tensors are all there with the sizes that they must have.
struct Matrix {
    size: Size,
    scale: Dtype,
    tensors: Vec<Bytes>,
    format: Format,
}

/// A packed folder's weights: in a packed format where that says the same weights, in f32 elsewhere.
pub(crate) struct PackedSource {
    spec: ModelSpec,
    keys: Vec<TensorKey>,
    scheme: PackedScheme,
    floats: BTreeMap<TensorKey, Weight>,
    matrices: BTreeMap<TensorKey, Matrix>,
}

impl PackedSource {
    /// Proves that every tensor of the spec is there, once and with its shape.
    pub(crate) fn new(
        spec: ModelSpec,
        scheme: PackedScheme,
        floats: BTreeMap<TensorKey, Weight>,
        modules: BTreeMap<TensorKey, Module>,
    ) -> Result<Self, TensorError> {
        let keys = TensorKey::all(&spec);
        let wanted: BTreeSet<TensorKey> = keys.iter().copied().collect();
        let mut matrices = BTreeMap::new();
        for (key, module) in modules {
            if !wanted.contains(&key) || floats.contains_key(&key) {
                return Err(TensorError::Unknown(module_name(key)));
            }
            let matrix = Matrix::new(&scheme, key, &key.shape(&spec), module)?;
            matrices.insert(key, matrix);
        }
        for &key in &keys {
            let expected = key.shape(&spec);
            match floats.get(&key) {
                Some(weight) if weight.shape() != expected => {
                    let found = weight.shape().to_vec();
                    return Err(TensorError::Shape { name: hf_name(key), expected, found });
                }
                None if !matrices.contains_key(&key) => return Err(TensorError::Missing(hf_name(key))),
                _ => {}
            }
        }
        if let Some(key) = floats.keys().find(|key| !wanted.contains(key)) {
            return Err(TensorError::Unknown(hf_name(*key)));
        }
        Ok(Self { spec, keys, scheme, floats, matrices })
    }
}

/// A tensor's name without `.weight`.
pub(crate) fn module_name(key: TensorKey) -> String {
    let name = hf_name(key);
    name.strip_suffix(".weight").map_or(name.clone(), str::to_owned)
}

impl Matrix {
    fn new(
        scheme: &PackedScheme,
        key: TensorKey,
        shape: &[usize],
        mut module: Module,
    ) -> Result<Self, TensorError> {
        let name = module_name(key);
        let fault = |source| TensorError::Packed { name: name.clone(), source };
        let [rows, columns] = *shape else { return Err(TensorError::Unknown(name)) };
        let size = (rows, columns);
        // The type of scales is the file's choice in one layout, and fixed by the table in the others.
        let stated = module.tensors.get("weight_scale").map(|tensor| tensor.0);
        let scale = stated.filter(|dtype| dtype.format().is_some());
        let scale = scale.unwrap_or(Dtype::Float(FloatType::F16));
        let mut tensors = Vec::new();
        for PackedTensor { suffix, dtype, shape: expected } in scheme.tensors(size, scale).map_err(fault)? {
            let whole = || format!("{name}.{suffix}");
            let Some((found_type, found, bytes)) = module.tensors.remove(suffix) else {
                if suffix == "g_idx" && !scheme.column_order {
                    tensors.push(Bytes::new());
                    continue;
                }
                return Err(TensorError::Missing(whole()));
            };
            if found_type != dtype {
                let (found, expected) = (found_type.name(), dtype.name());
                return Err(TensorError::Type { name: whole(), found, expected });
            }
            if found != expected {
                return Err(TensorError::Shape { name: whole(), expected, found });
            }
            tensors.push(bytes);
        }
        if let Some(suffix) = module.tensors.keys().next() {
            return Err(TensorError::Unknown(format!("{name}.{}", shorten(suffix))));
        }
        let format = format_of(scheme, size, scale, &tensors).map_err(fault)?;
        if scheme.layout == PackedLayout::CompressedTensors && !compressed::says_shape(&tensors, size) {
            return Err(TensorError::PackedShape(name));
        }
        Ok(Self { size, scale, tensors, format })
    }
}

/// The packed format with the same weights, told without looking at the levels; f32 when there is none.
fn format_of(
    scheme: &PackedScheme,
    size: Size,
    scale: Dtype,
    tensors: &[Bytes],
) -> Result<Format, PackError> {
    let zeros = scheme.zero_points(size, tensors)?;
    let range = zeros.iter().fold((u8::MAX, 0), |(low, high), &zero| (low.min(zero), high.max(zero)));
    let is_gptq = matches!(scheme.layout, PackedLayout::Gptq | PackedLayout::GptqV2);
    let in_order = !is_gptq || gptq::column_order(scheme, size.1, &tensors[gptq::G_IDX])?.is_none();
    let exact = exact_format(size.1, scheme.group_size_of(size.1), scheme.bits, range);
    let is_half = scale == Dtype::Float(FloatType::F16);
    Ok(exact.filter(|_| in_order && is_half).unwrap_or(Format::F32))
}

impl WeightSource for PackedSource {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn keys(&self) -> &[TensorKey] {
        &self.keys
    }

    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        if let Some(weight) = self.floats.get(&key) {
            return Ok(weight.clone());
        }
        let matrix = self.matrices.get(&key).ok_or(SourceError::Missing(key))?;
        let other = |message: String| SourceError::Other { key, message };
        let parts = self
            .scheme
            .unpack(matrix.size, &matrix.tensors, matrix.scale)
            .map_err(|error| other(error.to_string()))?;
        if let Some(index) = parts.scales.iter().position(|scale| !scale.is_finite()) {
            return Err(SourceError::NotFinite { key, index, value: parts.scales[index] });
        }
        if matrix.format == Format::F32 {
            let shape = vec![matrix.size.0, matrix.size.1];
            return Weight::from_f32(shape, &decode(parts).map_err(|error| other(error.to_string()))?)
                .map_err(|source| SourceError::Weight { key, source });
        }
        let quantized = Quantized::new(parts).map_err(|error| other(error.to_string()))?;
        from_quantized(&quantized, matrix.format).map_err(|error| other(error.to_string()))
    }

    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        match (self.floats.get(&key), self.matrices.get(&key)) {
            (Some(weight), _) => Ok(weight.format()),
            (None, Some(matrix)) => Ok(matrix.format),
            (None, None) => Err(SourceError::Missing(key)),
        }
    }
}

/// All weights, also with scales that are not exact in f16: as whole multiples first, then scaled.
fn decode(mut parts: QuantizedParts) -> Result<Vec<f32>, PackError> {
    let scales = parts.scales.clone();
    parts.scales.fill(1.0);
    let columns = parts.columns;
    let matrix = Quantized::new(parts)?;
    let groups = matrix.group_of_columns();
    let n_groups = matrix.n_groups();
    let mut weights = matrix.decode();
    for (row, scales) in weights.chunks_exact_mut(columns).zip(scales.chunks_exact(n_groups)) {
        for (weight, &group) in row.iter_mut().zip(&groups) {
            *weight *= scales[group as usize];
        }
    }
    Ok(weights)
}
