//! Any bytes: an error, or tensors whose bytes are what shape and type call for.
#![no_main]

use std::sync::OnceLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use slmc_formats::OnnxFile;

fuzz_target!(|file: &[u8]| {
    // As much as the seeds' tensors take.
    static DATA: OnceLock<Bytes> = OnceLock::new();
    let data = DATA.get_or_init(|| vec![0; 1 << 20].into());
    let Ok(model) = OnnxFile::parse(file.to_vec().into(), data) else { return };
    for tensor in model.tensors.values() {
        assert_eq!(tensor.element.bytes_for(&tensor.dims), Some(tensor.bytes.len() as u64));
    }
});
