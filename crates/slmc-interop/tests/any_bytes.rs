//! Files damaged anywhere: opening and writing again answer with a model or an error, never a panic.

mod common;

use std::{fs, path::Path};

use common::{bpe, checkpoint, every_spec};
use slmc_interop::{WriteOptions, open, write_gguf, write_hf_folder};
use slmc_ir::SilentHost;

const N_TRIES: usize = 60;

/// Numerical Recipes' generator: the same damage on every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    /// The bytes with a few changed, swapped, doubled or cut off.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes[at] = b"0-\"{}[],:e"[self.below(10)],
                3 => bytes
                    .splice(at..at, bytes[at..].iter().take(8).copied().collect::<Vec<u8>>())
                    .for_each(drop),
                _ => {
                    let other = self.below(bytes.len());
                    bytes.swap(at, other);
                }
            }
        }
        bytes
    }
}

/// Opens what lies there and, if it opens, writes it again.
fn try_it(path: &Path, out: &Path) -> bool {
    let Ok(opened) = open(path) else { return false };
    let options = WriteOptions::default();
    // Whether these succeed depends on the damage; that they return is what is asked.
    let _ = write_gguf(&opened, &out.join("again.gguf"), &options, &SilentHost);
    let _ = write_hf_folder(&opened, &out.join("again"), &options, &SilentHost);
    fs::remove_dir_all(out.join("again")).ok();
    true
}

#[test]
fn ggufs_with_damaged_headers() {
    let mut dice = Dice(1);
    let (mut n_opened, mut n_refused) = (0, 0);
    for spec in every_spec() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        write_gguf(&checkpoint(spec, Some(bpe())), &path, &WriteOptions::default(), &SilentHost).unwrap();
        let bytes = fs::read(&path).unwrap();
        let header = slmc_formats::GgufHeader::parse(&bytes).unwrap().data_start as usize;
        for _ in 0..N_TRIES {
            let mut damaged = dice.damage(&bytes[..header]);
            damaged.extend_from_slice(&bytes[header..]);
            fs::write(&path, &damaged).unwrap();
            if try_it(&path, folder.path()) { n_opened += 1 } else { n_refused += 1 }
        }
    }
    assert!(n_opened > 0 && n_refused > 0, "{n_opened} {n_refused}: the damage is not damaging");
}

#[test]
fn folders_with_damaged_files() {
    let mut dice = Dice(2);
    let (mut n_opened, mut n_refused) = (0, 0);
    let folder = tempfile::tempdir().unwrap();
    let (gguf, path) = (folder.path().join("model.gguf"), folder.path().join("model"));
    let original = checkpoint(every_spec().remove(1), Some(bpe()));
    // By way of GGUF, so that there is a sidecar too.
    write_gguf(&original, &gguf, &WriteOptions::default(), &SilentHost).unwrap();
    write_hf_folder(&open(&gguf).unwrap(), &path, &WriteOptions::default(), &SilentHost).unwrap();
    let files =
        ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "slmc.json"];
    for file in files {
        let sound = fs::read(path.join(file)).unwrap();
        for _ in 0..N_TRIES {
            fs::write(path.join(file), dice.damage(&sound)).unwrap();
            if try_it(&path, folder.path()) { n_opened += 1 } else { n_refused += 1 }
        }
        fs::write(path.join(file), &sound).unwrap();
    }
    assert!(n_opened > 0 && n_refused > 0, "{n_opened} {n_refused}: the damage is not damaging");
}
