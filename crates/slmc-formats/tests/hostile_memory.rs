//! Headers that claim what they do not hold: memory follows the bytes that are there, not the claim.
//!
//! One test, alone in its process: the allocator's peak is everyone's.

mod common;

use common::{Raw, safetensors};
use peak_alloc::PeakAlloc;
use slmc_formats::{GgufHeader, SafetensorsHeader, ShardIndex};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// For messages and sets of names.
const SLACK_BYTES: usize = 64 << 10;

/// Most bytes allocated at once while `parse` runs.
fn peak_of(parse: impl FnOnce()) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    parse();
    ALLOCATOR.peak_usage().saturating_sub(before)
}

#[track_caller]
fn check_gguf(name: &str, raw: &Raw) {
    let peak = peak_of(|| assert!(GgufHeader::parse(&raw.0).is_err(), "{name}: accepted"));
    assert!(peak <= raw.0.len() + SLACK_BYTES, "{name}: {peak} bytes for a file of {}", raw.0.len());
}

#[test]
fn claims_cost_nothing() {
    let array = |id: u32, n: u64| Raw::gguf(0, 1).text("k").u32(9).u32(id).u64(n).data(100);
    for id in 0..=12 {
        for n in [1 << 20, 1 << 32, 1 << 61, u64::MAX] {
            check_gguf(&format!("array of {n} of type {id}"), &array(id, n));
        }
    }
    check_gguf("string of 2^40 bytes", &Raw::gguf(0, 1).text("k").u32(8).u64(1 << 40).data(100));
    check_gguf("tensors not there", &Raw::gguf(1 << 17, 0).data(100));
    check_gguf("metadata not there", &Raw::gguf(0, 1 << 16).data(100));
    check_gguf("tensor of 2^60 bytes", &Raw::gguf(1, 0).tensor("t", &[1 << 58], 0, 0).data(100));

    let sizes = format!("{{\"t\":{{\"dtype\":\"F32\",\"shape\":[{}1]", "0,".repeat(1 << 20));
    let file = safetensors(&sizes, 0);
    let peak = peak_of(|| assert!(SafetensorsHeader::parse(&file).is_err()));
    assert!(peak <= SLACK_BYTES, "{peak} bytes for a shape of 2^20 sizes");
    let file = (99_999_999_u64).to_le_bytes();
    let peak = peak_of(|| assert!(SafetensorsHeader::parse(&file).is_err()));
    assert!(peak <= SLACK_BYTES, "{peak} bytes for a header that is not there");

    // What really is there costs a small multiple: maps have overhead for each member.
    let members: String = (0..1 << 18).map(|i| format!("\"{i:x}\":\"\",")).collect();
    let json = format!("{{\"weight_map\":{{{members}\"t\":\"\"}}}}");
    let peak = peak_of(|| assert!(ShardIndex::parse(json.as_bytes()).is_err()));
    assert!(peak <= 20 * json.len(), "{peak} bytes for an index of {}", json.len());
}
