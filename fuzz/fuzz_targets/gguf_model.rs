//! Any GGUF header, its tensors all zeros: an error, or a model that can be written again in both containers.
#![no_main]

mod scratch;

use std::fs;

use libfuzzer_sys::fuzz_target;
use slmc_interop::{WriteOptions, open, write_gguf, write_hf_folder};
use slmc_ir::SilentHost;

/// Enough for the tensors of the seeds; a header that wants more is refused, as it should be.
const N_ZEROS: usize = 256 << 10;

fuzz_target!(|header: &[u8]| {
    let path = scratch::path("model.gguf");
    let mut file = header.to_vec();
    file.resize(header.len() + N_ZEROS, 0);
    fs::write(&path, file).unwrap();
    let Ok(opened) = open(&path) else { return };
    let (again, folder) = (scratch::path("again.gguf"), scratch::path("again"));
    // Whether a strange model can be written is the writer's to say; that it returns is what is asked.
    if write_gguf(&opened, &again, &WriteOptions::default(), &SilentHost).is_ok() {
        open(&again).map(|_| ()).expect("what slmc writes, slmc reads");
    }
    if write_hf_folder(&opened, &folder, &WriteOptions::default(), &SilentHost).is_ok() {
        open(&folder).map(|_| ()).expect("what slmc writes, slmc reads");
        fs::remove_dir_all(&folder).unwrap();
    }
});
