//! Any bytes: an error, or an index whose shards stay in their folder.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use slmc_formats::ShardIndex;

fuzz_target!(|json: &[u8]| {
    let Ok(index) = ShardIndex::parse(json) else { return };
    assert!(!index.weight_map.is_empty());
    for shard in index.shards() {
        let components: Vec<_> = Path::new(shard).components().collect();
        assert!(matches!(components[..], [Component::Normal(name)] if name == shard), "{shard:?}");
    }
});
