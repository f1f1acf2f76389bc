//! Any bytes: an error, or a header whose tensors lie inside the file, aligned and apart.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slmc_formats::GgufHeader;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = GgufHeader::parse(file) else { return };
    assert!(header.alignment.is_power_of_two());
    let mut ranges: Vec<_> = header.tensors.iter().map(|tensor| header.tensor_range(tensor)).collect();
    for (tensor, range) in header.tensors.iter().zip(&ranges) {
        assert_eq!(file[range.clone()].len() as u64, tensor.n_bytes);
        assert!((range.start as u64).is_multiple_of(header.alignment));
        let n_weights: u64 = tensor.dims.iter().product();
        assert_eq!(tensor.format.bytes_for(n_weights as usize), Some(range.len()));
        assert!(header.tensor(&tensor.name) == Some(tensor), "two tensors of one name");
    }
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    for (key, value) in &header.metadata {
        // Not `==`: a NaN differs from itself.
        assert!(std::ptr::eq(header.get(key).unwrap(), value), "two values of one key");
    }
});
