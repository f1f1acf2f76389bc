//! Any bytes: an error, or tensors whose bytes are what shape and type call for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slmc_formats::OnnxFile;

fuzz_target!(|file: &[u8]| {
    let data = vec![0; 4096].into();
    let Ok(model) = OnnxFile::parse(file.to_vec().into(), &data) else { return };
    for tensor in model.tensors.values() {
        assert_eq!(tensor.element.bytes_for(&tensor.dims), Some(tensor.bytes.len() as u64));
    }
});
