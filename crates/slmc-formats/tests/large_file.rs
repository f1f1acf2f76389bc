//! Opening a file far larger than memory costs its header, no more.
//!
//! Alone in its process: the peak of resident memory is everyone's.
#![cfg(target_os = "linux")]

mod common;

use std::fs;

use common::Raw;
use slmc_formats::{GgufHeader, map_file};

/// Peak resident memory of this process so far, in bytes.
fn peak_rss_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn fourteen_gigabytes_open_at_once() {
    const N_BYTES: u64 = 14_000_000_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.gguf");
    let header = Raw::gguf(2, 0).tensor("a", &[32, 200_000_000], 8, 0).tensor("b", &[4], 0, 6_800_000_000);
    fs::write(&path, header.0).unwrap();
    // The file system stores no zeros that were never written.
    fs::File::options().write(true).open(&path).unwrap().set_len(N_BYTES).unwrap();
    let before = peak_rss_bytes();
    let file = map_file(&path).unwrap();
    let header = GgufHeader::parse(&file).unwrap();
    let last = &file[header.tensor_range(header.tensor("b").unwrap())];
    assert_eq!(last, [0; 16]);
    let grown = peak_rss_bytes() - before;
    assert_eq!(file.len() as u64, N_BYTES);
    assert!(grown < 8 << 20, "opening took {grown} bytes of resident memory");
}
