//! Hand-made GGUF headers, sound or not: every field is written as told.
#![allow(dead_code)] // each test file uses a part

/// Bytes of a GGUF, field by field.
#[derive(Clone, Default)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    /// Magic, version 3 and the two counts.
    pub fn gguf(n_tensors: u64, n_metadata: u64) -> Self {
        Self::default().bytes(b"GGUF").u32(3).u64(n_tensors).u64(n_metadata)
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn u32(self, n: u32) -> Self {
        self.bytes(&n.to_le_bytes())
    }

    pub fn u64(self, n: u64) -> Self {
        self.bytes(&n.to_le_bytes())
    }

    pub fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    /// A metadata entry of type `u32`.
    pub fn meta_u32(self, key: &str, n: u32) -> Self {
        self.text(key).u32(4).u32(n)
    }

    /// A tensor info.
    pub fn tensor(self, name: &str, dims: &[u64], ggml_type: u32, offset: u64) -> Self {
        let start = self.text(name).u32(dims.len() as u32);
        dims.iter().fold(start, |raw, &dim| raw.u64(dim)).u32(ggml_type).u64(offset)
    }

    /// Zeros to the next multiple of 32, then `n` bytes of data.
    pub fn data(mut self, n: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self
    }
}

/// A small sound GGUF with one value of every type; every strict prefix of it is unsound.
pub fn small_gguf() -> Vec<u8> {
    Raw::gguf(3, 8)
        .text("general.architecture")
        .u32(8)
        .text("llama")
        .meta_u32("general.alignment", 32)
        .text("flag")
        .u32(7)
        .bytes(&[1])
        .text("eps")
        .u32(6)
        .bytes(&1e-5_f32.to_le_bytes())
        .text("tokens")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("a")
        .text("ß")
        .text("scores")
        .u32(9)
        .u32(6)
        .u64(2)
        .u64(0)
        .text("nested")
        .u32(9)
        .u32(9)
        .u64(2)
        .u32(4)
        .u64(1)
        .u32(7)
        .u32(0)
        .u64(0)
        .text("count")
        .u32(10)
        .u64(1 << 40)
        .tensor("table", &[32, 2], 2, 0)
        .tensor("norm.weight", &[8], 0, 64)
        .tensor("cube", &[2, 2, 2, 4], 1, 96)
        .data(160)
        .0
}

/// A safetensors file of this JSON and so many bytes of data.
pub fn safetensors(json: &str, n_data: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    file.resize(file.len() + n_data, 0);
    file
}

/// A small sound safetensors file; every strict prefix of it is unsound.
pub fn small_safetensors() -> Vec<u8> {
    let json = r#"{"__metadata__":{"format":"pt"},
        "w":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},
        "b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "s":{"dtype":"BF16","shape":[],"data_offsets":[16,18]}}"#;
    safetensors(json, 18)
}
