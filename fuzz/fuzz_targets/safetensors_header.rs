//! Any bytes: an error, or a header that the reference implementation reads the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slmc_formats::SafetensorsHeader;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = SafetensorsHeader::parse(file) else { return };
    let reference =
        safetensors::SafeTensors::deserialize(file).expect("the reference accepts what slmc accepts");
    assert_eq!(reference.len(), header.tensors.len());
    for tensor in &header.tensors {
        let view = reference.tensor(&tensor.name).unwrap();
        assert_eq!(view.shape(), tensor.shape);
        assert_eq!(view.data().as_ptr_range(), file[tensor.range.clone()].as_ptr_range());
    }
});
