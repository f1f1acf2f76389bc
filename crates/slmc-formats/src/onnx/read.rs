//! Reads a model and proves that its tensors are where it says.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use super::{
    ElementType, MAX_DIMS, OnnxError,
    error::TensorFault,
    proto::{GraphProto, ModelProto, TensorProto},
    scan::check_limits,
};
use crate::shown::shown;

/// A model whose tensors have been checked against their bytes.
#[derive(Clone, Debug)]
pub struct OnnxFile {
    /// The message, without the tensors' bytes.
    pub model: ModelProto,
    /// The initializers by name.
    pub tensors: BTreeMap<String, OnnxTensor>,
}

/// An initializer.
#[derive(Clone, Debug)]
pub struct OnnxTensor {
    /// Its element type.
    pub element: ElementType,
    /// Its sizes, fastest last.
    pub dims: Vec<i64>,
    /// Its bytes, little-endian.
    pub bytes: Bytes,
}

impl OnnxFile {
    /// Reads a model and the one file of external data beside it (empty when it has none).
    ///
    /// # Errors
    /// When the message is damaged or beyond its limits, or a tensor's bytes are not there.
    pub fn parse(bytes: Bytes, data: &Bytes) -> Result<Self, OnnxError> {
        check_limits(&bytes)?;
        let mut model = ModelProto::decode(bytes)?;
        let graph = model.graph.as_mut().ok_or(OnnxError::NoGraph)?;
        let mut tensors = BTreeMap::new();
        for tensor in &mut graph.initializer {
            let name = tensor.name.clone().unwrap_or_default();
            let fault = |fault| OnnxError::Tensor { name: shown(&name), fault };
            let found = read_tensor(tensor, data).map_err(fault)?;
            if tensors.insert(name.clone(), found).is_some() {
                return Err(OnnxError::Tensor { name: shown(&name), fault: TensorFault::Duplicate });
            }
            tensor.raw_data = None;
        }
        Ok(Self { model, tensors })
    }

    /// The graph.
    pub fn graph(&self) -> Option<&GraphProto> {
        self.model.graph.as_ref()
    }
}

fn read_tensor(tensor: &TensorProto, data: &Bytes) -> Result<OnnxTensor, TensorFault> {
    let code = tensor.data_type.unwrap_or(0);
    let element = ElementType::from_code(code).ok_or(TensorFault::DataType(code))?;
    let dims = tensor.dims.clone();
    if dims.len() > MAX_DIMS {
        return Err(TensorFault::Dimensions { found: dims.len(), limit: MAX_DIMS });
    }
    let expected = element.bytes_for(&dims).ok_or_else(|| TensorFault::Shape(dims.clone()))?;
    let bytes = match tensor.data_location.unwrap_or(0) {
        0 => tensor.raw_data.clone().unwrap_or_default(),
        _ => external(tensor, expected, data)?,
    };
    let found = bytes.len() as u64;
    if found != expected {
        return Err(TensorFault::WrongBytes { expected, found });
    }
    Ok(OnnxTensor { element, dims, bytes })
}

fn external(tensor: &TensorProto, expected: u64, data: &Bytes) -> Result<Bytes, TensorFault> {
    let (mut offset, mut length) = (0, expected);
    for entry in &tensor.external_data {
        let (key, value) = (entry.key.as_deref().unwrap_or(""), entry.value.as_deref().unwrap_or(""));
        let fault = |why| TensorFault::External { key: shown(key), value: shown(value), why };
        let number = || value.parse::<u64>().map_err(|_| fault("no number of bytes"));
        match key {
            "offset" => offset = number()?,
            "length" => length = number()?,
            "location" if value.contains(['/', '\\']) || value.is_empty() || value.starts_with('.') => {
                return Err(fault("not a plain file name; refused"));
            }
            _ => {}
        }
    }
    let data_bytes = data.len() as u64;
    let end = offset.checked_add(length).filter(|&end| end <= data_bytes);
    let end = end.ok_or(TensorFault::OutsideFile { offset, length, data_bytes })?;
    // Both are below the length of something in memory.
    Ok(data.slice(offset as usize..end as usize))
}
