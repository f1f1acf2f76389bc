//! Writes a model: the tensors' bytes first, one after the other, then the graph that names them.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use prost::Message;

use super::{
    CONTRIB_DOMAIN, ElementType, IR_VERSION, LINE_BYTES, MAX_DIMS, MAX_MODEL_BYTES, MAX_NAME_BYTES,
    MIN_EXTERNAL_BYTES, OPSET, OnnxError, PAGE_BYTES,
    error::TensorFault,
    proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
        ValueInfoProto,
    },
};
use crate::{AtomicFile, shown::shown};

/// What a graph has besides its tensors.
#[derive(Clone, Debug, Default)]
pub struct GraphParts {
    /// The graph's name.
    pub name: String,
    /// Operations, each after those whose results it takes.
    pub nodes: Vec<NodeProto>,
    /// What the graph is given.
    pub inputs: Vec<ValueInfoProto>,
    /// What it gives.
    pub outputs: Vec<ValueInfoProto>,
    /// Whether onnxruntime's own operators are among the nodes.
    pub contrib: bool,
    /// The writer's version.
    pub producer_version: String,
    /// Facts about the model, for whoever looks.
    pub metadata: BTreeMap<String, String>,
}

/// A model being written. Both files appear with [`OnnxWriter::finish`], the data first; dropped before, it leaves
/// nothing.
#[derive(Debug)]
pub struct OnnxWriter {
    data: AtomicFile,
    data_name: String,
    data_bytes: u64,
    tensors: Vec<TensorProto>,
    /// Each name's place among `tensors`.
    places: BTreeMap<String, usize>,
}

impl OnnxWriter {
    /// Begins the file of external data; its name goes into the model.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(data_path: &Path) -> Result<Self, OnnxError> {
        let data = AtomicFile::create(data_path)?;
        let data_name = data_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { data, data_name, data_bytes: 0, tensors: Vec::new(), places: BTreeMap::new() })
    }

    /// Writes a tensor; the bytes are little-endian, fastest dimension last.
    ///
    /// # Errors
    /// When the name is taken, the bytes are not what shape and type call for, or the system cannot write.
    pub fn tensor(
        &mut self,
        name: &str,
        element: ElementType,
        dims: &[i64],
        bytes: &[u8],
    ) -> Result<(), OnnxError> {
        let mut tensor = self.described(name, element, dims, bytes.len() as u64)?;
        if bytes.len() < MIN_EXTERNAL_BYTES {
            tensor.raw_data = Some(Bytes::copy_from_slice(bytes));
        } else {
            let alignment = if bytes.len() as u64 >= PAGE_BYTES { PAGE_BYTES } else { LINE_BYTES };
            let offset = self.data_bytes.next_multiple_of(alignment);
            let padding = vec![0; (offset - self.data_bytes) as usize];
            self.data.put(&padding)?;
            self.data.put(bytes)?;
            self.data_bytes = offset + bytes.len() as u64;
            tensor.data_location = Some(1);
            tensor.external_data = vec![
                entry("location", &self.data_name),
                entry("offset", &offset.to_string()),
                entry("length", &bytes.len().to_string()),
            ];
        }
        self.push(name, tensor);
        Ok(())
    }

    /// Another tensor over the bytes of one that is written: a second shape of it that takes no room.
    ///
    /// # Errors
    /// When there is no tensor `of`, or its bytes are not what shape and type call for.
    pub fn shared(
        &mut self,
        name: &str,
        element: ElementType,
        dims: &[i64],
        of: &str,
    ) -> Result<(), OnnxError> {
        let Some(source) = self.places.get(of).map(|&place| self.tensors[place].clone()) else {
            let fault = TensorFault::NothingToShare(of.to_owned());
            return Err(OnnxError::Tensor { name: shown(name), fault });
        };
        let length = source.external_data.iter().find(|entry| entry.key.as_deref() == Some("length"));
        let length = length.and_then(|entry| entry.value.as_deref()?.parse().ok());
        let inside = source.raw_data.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let described = self.described(name, element, dims, length.unwrap_or(inside))?;
        self.push(
            name,
            TensorProto {
                name: described.name,
                dims: described.dims,
                data_type: described.data_type,
                ..source
            },
        );
        Ok(())
    }

    /// Bytes of external data so far.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Writes the graph and gives both files their names; returns their bytes together.
    ///
    /// # Errors
    /// When the model is longer than protobuf allows, or the system cannot write; then no model appears.
    pub fn finish(self, model_path: &Path, parts: GraphParts) -> Result<u64, OnnxError> {
        let opset = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.to_owned()),
            version: Some(version),
        };
        let mut opset_import = vec![opset("", OPSET)];
        if parts.contrib {
            opset_import.push(opset(CONTRIB_DOMAIN, 1));
        }
        let graph = GraphProto {
            node: parts.nodes,
            name: Some(parts.name),
            initializer: self.tensors,
            input: parts.inputs,
            output: parts.outputs,
        };
        let model = ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("slmc".to_owned()),
            producer_version: Some(parts.producer_version),
            graph: Some(graph),
            opset_import,
            metadata_props: parts.metadata.iter().map(|(key, value)| entry(key, value)).collect(),
        };
        let bytes = model.encode_to_vec();
        if bytes.len() > MAX_MODEL_BYTES {
            return Err(OnnxError::TooLong { found: bytes.len(), limit: MAX_MODEL_BYTES });
        }
        let mut file = AtomicFile::create(model_path)?;
        file.put(&bytes)?;
        if self.data_bytes > 0 {
            self.data.commit()?;
        }
        file.commit()?;
        Ok(bytes.len() as u64 + self.data_bytes)
    }

    fn described(
        &self,
        name: &str,
        element: ElementType,
        dims: &[i64],
        found: u64,
    ) -> Result<TensorProto, OnnxError> {
        let fault = |fault| OnnxError::Tensor { name: shown(name), fault };
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(OnnxError::NameLength { found: name.len(), limit: MAX_NAME_BYTES });
        }
        if self.places.contains_key(name) {
            return Err(fault(TensorFault::Duplicate));
        }
        if dims.len() > MAX_DIMS {
            return Err(fault(TensorFault::Dimensions { found: dims.len(), limit: MAX_DIMS }));
        }
        let expected = element.bytes_for(dims).ok_or_else(|| fault(TensorFault::Shape(dims.to_vec())))?;
        if found != expected {
            return Err(fault(TensorFault::WrongBytes { expected, found }));
        }
        Ok(TensorProto {
            dims: dims.to_vec(),
            data_type: Some(element.code()),
            name: Some(name.to_owned()),
            ..TensorProto::default()
        })
    }

    fn push(&mut self, name: &str, tensor: TensorProto) {
        self.places.insert(name.to_owned(), self.tensors.len());
        self.tensors.push(tensor);
    }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) }
}
