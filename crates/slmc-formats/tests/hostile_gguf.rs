//! GGUF files made to break a reader: each must give the error that names its fault.

mod common;

use common::{Raw, small_gguf};
use slmc_formats::GgufHeader;

#[track_caller]
fn check(name: &str, bytes: Vec<u8>, expected: &str) {
    let error = match GgufHeader::parse(&bytes) {
        Ok(header) => panic!("{name}: accepted as {header:?}"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(expected), "{name}: `{error}` does not contain `{expected}`");
    assert!(error.len() < 600 && !error.contains(char::is_control), "{name}: unfit to print: {error:?}");
}

#[test]
fn the_small_file_itself_is_sound() {
    let file = small_gguf();
    let header = GgufHeader::parse(&file).unwrap();
    assert_eq!(header.metadata.len(), 8);
    let ranges: Vec<_> = header.tensors.iter().map(|t| header.tensor_range(t)).collect();
    let start = header.data_start as usize;
    assert_eq!(ranges, [start..start + 36, start + 64..start + 96, start + 96..start + 160]);
    assert_eq!(ranges[2].end, file.len());
    let mut version_2 = file.clone();
    version_2[4] = 2;
    assert_eq!(GgufHeader::parse(&version_2).unwrap().version, 2);
}

#[test]
fn preamble() {
    check("empty", vec![], "the magic: 4 bytes needed at offset 0, 0 left");
    check("other magic", Raw::default().bytes(b"GGML").u32(3).u64(0).u64(0).0, "not a GGUF file");
    check("safetensors", common::small_safetensors(), "not a GGUF file");
    check("version 1", Raw::default().bytes(b"GGUF").u32(1).u32(0).u32(0).0, "GGUF version 1");
    check("version 4", Raw::default().bytes(b"GGUF").u32(4).u64(0).u64(0).0, "GGUF version 4");
    check("big-endian", Raw::default().bytes(b"GGUF").bytes(&[0, 0, 0, 3]).u64(0).u64(0).0, "big-endian");
    check("huge tensor count", Raw::gguf(u64::MAX, 0).0, "the number of tensors is 18446744073709551615");
    check("huge metadata count", Raw::gguf(0, 1 << 60).0, "the number of metadata entries is");
    check("counts without content", Raw::gguf(1, 0).0, "length of name of tensor 0: 8 bytes needed");
}

#[test]
fn metadata() {
    let raw = || Raw::gguf(0, 1);
    check("endless key", raw().u64(u64::MAX).0, "length of metadata key 0 is 18446744073709551615");
    check("long key", raw().u64(65_536).0, "more than the limit of 65535");
    check("empty key", raw().text("").u32(0).bytes(&[0]).0, "metadata key 0 at offset 24 is empty");
    check("key not UTF-8", raw().u64(2).bytes(&[0xc3, 0x28]).u32(0).bytes(&[0]).0, "is not UTF-8");
    check("type 13", raw().text("k").u32(13).u64(0).0, "metadata `k` at offset 33 has value type 13");
    check("type -1", raw().text("k").u32(u32::MAX).u64(0).0, "value type 4294967295");
    check("cut value", raw().text("k").u32(10).u32(0).0, "metadata `k`: 8 bytes needed at offset 37, 4 left");
    check("bool 2", raw().text("k").u32(7).bytes(&[2]).0, "is a bool of value 2");
    check("endless string", raw().text("k").u32(8).u64(u64::MAX).0, "18446744073709551615 bytes needed");
    check(
        "string over the end",
        raw().text("k").u32(8).u64(5).bytes(b"abcd").0,
        "5 bytes needed at offset 45",
    );
    check("string not UTF-8", raw().text("k").u32(8).u64(1).bytes(&[0xff]).0, "metadata `k` at offset 45");
    let twice = Raw::gguf(0, 2).meta_u32("k", 1).meta_u32("k", 2);
    check("key twice", twice.0, "metadata key `k` is there twice");
    let nasty = raw().text("\u{1b}[2J").u32(99);
    check("key that clears the screen", nasty.0, "`\\u{1b}[2J`");
    check("key of 65535 bytes", raw().text(&"k".repeat(65_535)).u32(99).0, "… (65535 bytes)");
}

#[test]
fn arrays() {
    let raw = |id: u32, n: u64| Raw::gguf(0, 1).text("k").u32(9).u32(id).u64(n);
    check("type 99", raw(99, 1).0, "has value type 99");
    check("endless bytes", raw(0, u64::MAX).0, "18446744073709551615 bytes needed");
    check("count times size overflows", raw(12, 1 << 61).u64(0).0, "18446744073709551615 bytes needed");
    check("numbers over the end", raw(4, 3).u64(0).0, "12 bytes needed at offset 49, 8 left");
    check("endless strings", raw(8, u64::MAX).text("a").0, "length of metadata `k`: 8 bytes needed");
    check("endless arrays", raw(9, u64::MAX).0, "metadata `k`: 4 bytes needed");
    check("bool 255 inside", raw(7, 2).bytes(&[1, 255]).0, "is a bool of value 255");
    check("text not UTF-8", raw(8, 1).u64(1).bytes(&[0x80]).0, "is not UTF-8");
    let deep = (0..100_000).fold(raw(9, 1), |raw, _| raw.u32(9).u64(1));
    check("100000 arrays in one another", deep.0, "nesting of metadata `k` is 5, more than the limit of 4");
}

#[test]
fn alignments() {
    let with = |n| Raw::gguf(0, 1).meta_u32("general.alignment", n).0;
    check("alignment 0", with(0), "`general.alignment` is 0");
    check("alignment 3", with(3), "`general.alignment` is 3");
    check("alignment 2^31", with(1 << 31), "`general.alignment` is 2147483648");
    let text = Raw::gguf(0, 1).text("general.alignment").u32(8).text("32");
    check("alignment as text", text.0, "`general.alignment` is of value type 8");
    let wide = Raw::gguf(0, 1).text("general.alignment").u32(10).u64(32);
    check("alignment as u64", wide.0, "`general.alignment` is of value type 10");
}

#[test]
fn tensors() {
    let one = |dims: &[u64], id, offset| Raw::gguf(1, 0).tensor("t", dims, id, offset).data(64).0;
    check("long name", Raw::gguf(1, 0).text(&"n".repeat(65)).0, "length of name of tensor 0 is 65");
    check(
        "empty name",
        Raw::gguf(1, 0).tensor("", &[1], 0, 0).data(4).0,
        "name of tensor 0 at offset 24 is empty",
    );
    check("name not UTF-8", Raw::gguf(1, 0).u64(1).bytes(&[0xff]).0, "name of tensor 0 at offset 32");
    check("no dimension", one(&[], 0, 0), "tensor `t` has 0 dimensions");
    check("5 dimensions", one(&[1; 5], 0, 0), "tensor `t` has 5 dimensions");
    let many = Raw::gguf(1, 0).text("t").u32(u32::MAX).data(64);
    check("2^32 dimensions", many.0, "tensor `t` has 4294967295 dimensions");
    check("dimension 0", one(&[4, 0], 0, 0), "none may be 0");
    check("product overflows", one(&[1 << 32, 1 << 32], 0, 0), "more bytes than a file can hold");
    check("bytes overflow", one(&[1 << 62], 0, 0), "more bytes than a file can hold");
    check("product wraps to 0", one(&[1 << 32, 1 << 32, 2], 1, 0), "more bytes than a file can hold");
    check("part of a block", one(&[33, 32], 2, 0), "rows of 33 weights, not whole q4_0 blocks of 32");
    check("blocks across rows", one(&[128, 2], 12, 0), "rows of 128 weights, not whole q4_k blocks of 256");
    check("unread type", one(&[256], 16, 0), "ggml type 16 (IQ2_XXS)");
    check("type of no name", one(&[256], 4_000_000_000, 0), "ggml type 4000000000 (unknown)");
    check("offset off the grid", one(&[4], 0, 8), "data offset 8, not a multiple of the alignment 32");
    check("offset past the end", one(&[4], 0, 1 << 40), "ends at byte 1099511627856 of a file of 128");
    check("offset overflows", one(&[4], 0, u64::MAX - 31), "ends at byte 18446744073709551664");
    check("larger than the file", one(&[1 << 20], 0, 0), "tensor `t` ends at byte");
    check("one number short", one(&[17], 0, 0), "ends at byte 132 of a file of 128");
}

#[test]
fn tensors_together() {
    let two = |a: (&str, u64), b: (&str, u64)| {
        Raw::gguf(2, 0).tensor(a.0, &[16], 0, a.1).tensor(b.0, &[16], 0, b.1).data(128).0
    };
    check("name twice", two(("t", 0), ("t", 64)), "tensor `t` is there twice");
    check("same place", two(("a", 0), ("b", 0)), "tensors `a` and `b` overlap");
    check("half over", two(("a", 32), ("b", 0)), "tensors `b` and `a` overlap");
    let count = Raw::gguf(3, 0).tensor("a", &[16], 0, 0).tensor("b", &[16], 0, 64);
    check("one info too few", count.0, "name of tensor 2");
}

#[test]
fn every_prefix_is_refused() {
    let file = small_gguf();
    for n in 0..file.len() {
        assert!(
            GgufHeader::parse(&file[..n]).is_err(),
            "the first {n} of {} bytes were accepted",
            file.len()
        );
    }
}

#[test]
fn damaged_bytes_never_lead_outside() {
    let file = small_gguf();
    for at in 0..file.len() {
        for damage in [0x01, 0x20, 0x80, 0xff] {
            let mut damaged = file.clone();
            damaged[at] ^= damage;
            if let Ok(header) = GgufHeader::parse(&damaged) {
                for tensor in &header.tensors {
                    assert_eq!(damaged[header.tensor_range(tensor)].len() as u64, tensor.n_bytes);
                }
            }
        }
    }
}
