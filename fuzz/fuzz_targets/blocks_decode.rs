//! Any bytes as blocks of any format: decoded without panic; what is encoded decodes to numbers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slmc_blocks::{decode, encode};
use slmc_ir::Format;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let format = Format::ALL[usize::from(choice) % Format::ALL.len()];
    let n_weights = bytes.len() / format.block_bytes() * format.block_weights();
    let mut weights = vec![0.0; n_weights];
    let whole = bytes.len().is_multiple_of(format.block_bytes());
    assert_eq!(decode(format, bytes, &mut weights).is_ok(), whole);
    if !whole {
        return;
    }
    check_encoder(format, &weights);
    let numbers: Vec<f32> = bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect();
    check_encoder(format, &numbers);
});

/// Numbers that a packed format takes are numbers again when they come back.
fn check_encoder(format: Format, weights: &[f32]) {
    let weights = &weights[..weights.len() / format.block_weights() * format.block_weights()];
    let mut bytes = vec![0; format.bytes_for(weights.len()).unwrap()];
    if encode(format, weights, &mut bytes).is_err() {
        return;
    }
    let mut again = vec![0.0; weights.len()];
    decode(format, &bytes, &mut again).unwrap();
    assert!(
        format.is_float() || again.iter().all(|x| x.is_finite()),
        "{format}: {weights:?} came back as {again:?}"
    );
}
