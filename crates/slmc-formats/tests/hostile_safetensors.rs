//! safetensors files and shard indices made to break a reader: each must give the error that names its fault.

mod common;

use common::{safetensors, small_safetensors};
use slmc_formats::{SafetensorsHeader, ShardIndex};

#[track_caller]
fn expect(name: &str, result: Result<impl std::fmt::Debug, impl std::error::Error>, expected: &str) {
    let error = match result {
        Ok(header) => panic!("{name}: accepted as {header:?}"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(expected), "{name}: `{error}` does not contain `{expected}`");
    assert!(error.len() < 600 && !error.contains(char::is_control), "{name}: unfit to print: {error:?}");
}

#[track_caller]
fn check(name: &str, bytes: Vec<u8>, expected: &str) {
    expect(name, SafetensorsHeader::parse(&bytes), expected);
}

#[track_caller]
fn check_json(name: &str, json: &str, n_data: usize, expected: &str) {
    check(name, safetensors(json, n_data), expected);
}

#[track_caller]
fn check_index(name: &str, json: &str, expected: &str) {
    expect(name, ShardIndex::parse(json.as_bytes()), expected);
}

#[test]
fn the_small_file_itself_is_sound() {
    let file = small_safetensors();
    let header = SafetensorsHeader::parse(&file).unwrap();
    let names: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.range.len())).collect();
    assert_eq!(names, [("b", 4), ("w", 12), ("s", 2)]);
    assert_eq!(header.tensors[2].range.end, file.len());
    assert_eq!(header.metadata["format"], "pt");
}

#[test]
fn preamble() {
    check("empty", vec![], "this one has 0 bytes");
    check("7 bytes", vec![0; 7], "this one has 7 bytes");
    check("endless header", u64::MAX.to_le_bytes().to_vec(), "the header claims 18446744073709551615 bytes");
    check("100 MB and one", 100_000_001_u64.to_le_bytes().to_vec(), "the limit is 100000000");
    check("cut header", [&40_u64.to_le_bytes()[..], b"{}"].concat(), "claims 40 bytes of a file of 10");
    check("header of 0 bytes", 0_u64.to_le_bytes().to_vec(), "does not begin with `{`");
    check_json("space before the object", " {}", 0, "does not begin with `{`");
    check_json("a list", "[]", 0, "does not begin with `{`");
    check_json("not JSON", "{nonsense}", 0, "key must be a string");
    check_json("cut JSON", r#"{"a":{"dtype":"F32""#, 0, "EOF while parsing");
    check_json("words after the object", "{} {}", 0, "trailing characters");
    let mut file = safetensors("{\"??\":{}}", 0);
    file[10..12].copy_from_slice(&[0xc3, 0x28]);
    check("name not UTF-8", file, "invalid unicode code point");
    let deep = format!("{{\"__metadata__\":{}", "[".repeat(100_000));
    check_json("100000 lists in one another", &deep, 0, "expected an object");
}

#[test]
fn entries() {
    let t = |body: &str| format!("{{\"t\":{{{body}}}}}");
    check_json("no dtype", &t(r#""shape":[1],"data_offsets":[0,4]"#), 4, "tensor `t`: missing field `dtype`");
    check_json(
        "dtype a number",
        &t(r#""dtype":32,"shape":[1],"data_offsets":[0,4]"#),
        4,
        "tensor `t`: invalid type",
    );
    let i64s = t(r#""dtype":"I64","shape":[1],"data_offsets":[0,8]"#);
    check_json("dtype I64", &i64s, 8, "tensor `t` has unsupported dtype I64");
    let f8 = t(r#""dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]"#);
    check_json("dtype F8", &f8, 4, "tensor `t` has unsupported dtype F8_E4M3");
    let field = t(r#""dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1"#);
    check_json("a field too many", &field, 4, "unknown field `x`");
    let field = t(r#""dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,4]"#);
    check_json("a field twice", &field, 4, "duplicate field `shape`");
    check_json(
        "size -1",
        &t(r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#),
        4,
        "invalid value: integer `-1`",
    );
    check_json(
        "size 1.5",
        &t(r#""dtype":"F32","shape":[1.5],"data_offsets":[0,4]"#),
        4,
        "floating point `1.5`",
    );
    let many = t(&format!(r#""dtype":"F32","shape":[{}1],"data_offsets":[0,4]"#, "1,".repeat(50_000)));
    check_json("50001 dimensions", &many, 4, "expected a list of at most 8 sizes");
    check_json(
        "one offset",
        &t(r#""dtype":"F32","shape":[1],"data_offsets":[0]"#),
        4,
        "expected a tuple of size 2",
    );
    check_json(
        "three offsets",
        &t(r#""dtype":"F32","shape":[1],"data_offsets":[0,4,8]"#),
        4,
        "trailing characters",
    );
    check_json("entry a list", r#"{"t":[]}"#, 0, "tensor `t`: ");
    check_json(
        "empty name",
        r#"{"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        4,
        "a name of 0 bytes",
    );
    let long = format!(r#"{{"{}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#, "n".repeat(1025));
    check_json("long name", &long, 4, "a name of 1025 bytes");
    let nasty = r#"{"\u001b[2J":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#;
    check_json("name that clears the screen", nasty, 8, "`\\u{1b}[2J`");
}

#[test]
fn sizes_and_places() {
    let t = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"t":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    check_json(
        "product overflows",
        &t("[4294967296,4294967296]", 0, 4),
        4,
        "more bytes than a file can hold",
    );
    check_json(
        "overflow times 0",
        &t("[0,4294967296,4294967296]", 0, 0),
        0,
        "more bytes than a file can hold",
    );
    check_json("backwards", &t("[1]", 4, 0), 4, "data offsets 4 to 0, which run backwards");
    check_json(
        "too few bytes",
        &t("[2]", 0, 4),
        4,
        "has 4 bytes of data where its shape and dtype call for 8",
    );
    check_json("hole before", &t("[1]", 4, 8), 8, "begins at data byte 4, not at 0");
    check_json("past the end", &t("[2]", 0, 8), 4, "ends at data byte 8 of 4");
    check_json("bytes of no tensor", &t("[1]", 0, 4), 5, "tensors end at data byte 4 of 5");
    check_json("data without tensor", "{}", 1, "tensors end at data byte 0 of 1");
    let end = u64::MAX - 1;
    check_json("end of the address space", &t("[1]", end - 4, end), 4, "begins at data byte");
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"F16","shape":[2],"data_offsets":{a}}},"b":{{"dtype":"F16","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    check_json("same place", &two("[0,4]", "[0,4]"), 4, "tensor `b` begins at data byte 0, not at 4");
    check_json("half over", &two("[0,4]", "[2,6]"), 6, "tensor `b` begins at data byte 2, not at 4");
    check_json("hole between", &two("[0,4]", "[6,10]"), 10, "tensor `b` begins at data byte 6, not at 4");
}

#[test]
fn names_and_metadata() {
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    check_json("name twice", &format!(r#"{{"t":{entry},"t":{entry}}}"#), 4, "`t` is there twice");
    check_json(
        "name twice, once escaped",
        &format!(r#"{{"t":{entry},"\u0074":{entry}}}"#),
        4,
        "`t` is there twice",
    );
    check_json(
        "metadata twice",
        r#"{"__metadata__":{},"__metadata__":{}}"#,
        0,
        "`__metadata__` is there twice",
    );
    check_json("key twice", r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0, "`a` is there twice");
    check_json("metadata a number", r#"{"__metadata__":{"a":1}}"#, 0, "`__metadata__`: `a`: invalid type");
    check_json("metadata a list", r#"{"__metadata__":[]}"#, 0, "`__metadata__`: invalid type");
    check_json("metadata null", r#"{"__metadata__":null}"#, 0, "`__metadata__`: invalid type");
}

#[test]
fn shard_indices() {
    check_index("empty", "", "EOF while parsing");
    check_index("a list", "[]", "shard index: ");
    check_index("no map", r#"{"metadata":{}}"#, "missing field `weight_map`");
    check_index("empty map", r#"{"weight_map":{}}"#, "names no tensor");
    check_index("map a list", r#"{"weight_map":["a"]}"#, "expected an object");
    check_index("shard a number", r#"{"weight_map":{"a":1}}"#, "`a`: invalid type");
    check_index("tensor twice", r#"{"weight_map":{"a":"x","a":"y"}}"#, "`a` is there twice");
    check_index("map twice", r#"{"weight_map":{"a":"x"},"weight_map":{"a":"y"}}"#, "duplicate field");
    for size in ["-1", "1.5", "\"12\"", "1e300", "null", "[]"] {
        let json = format!(r#"{{"metadata":{{"total_size":{size}}},"weight_map":{{"a":"x"}}}}"#);
        check_index("total_size", &json, "it must be a whole number of bytes");
    }
    let deep = format!(r#"{{"metadata":{{"a":{}"#, "[".repeat(100_000));
    check_index("100000 lists in one another", &deep, "recursion limit exceeded");
    let long = format!("{{\"weight_map\":{{\"a\":\"x\"}}}}{}", " ".repeat(32 << 20));
    check_index("too long", &long, "the limit is 33554432");
}

#[test]
fn shards_stay_in_their_folder() {
    let escapes = [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../model.safetensors",
        "a/b.safetensors",
        "a/../../b",
        "./a",
        "a/",
        r"..\\model.safetensors",
        r"C:\\model.safetensors",
        "C:model.safetensors",
        "file:stream",
        r"\\\\server\\share",
        r"a\u0000b",
        r"a\nb",
        "//a",
    ];
    for shard in escapes {
        check_index(shard, &format!(r#"{{"weight_map":{{"t":"{shard}"}}}}"#), "not a plain file name");
    }
    let long = "x".repeat(256);
    check_index("long", &format!(r#"{{"weight_map":{{"t":"{long}"}}}}"#), "not a plain file name");
}

#[test]
fn a_sound_index() {
    let json = br#"{"metadata":{"total_size":12.0,"by":"me"},"weight_map":{"b":"m-2.safetensors","a":"m-1.safetensors","c":"m-1.safetensors"},"more":0}"#;
    let index = ShardIndex::parse(json).unwrap();
    assert_eq!(index.shards(), ["m-1.safetensors", "m-2.safetensors"]);
    assert_eq!(index.total_size, Some(12));
    assert_eq!(index.metadata["by"], "me");
    for n in 0..json.len() {
        assert!(ShardIndex::parse(&json[..n]).is_err(), "the first {n} bytes were accepted");
    }
}

#[test]
fn every_prefix_is_refused() {
    let file = small_safetensors();
    for n in 0..file.len() {
        assert!(SafetensorsHeader::parse(&file[..n]).is_err(), "the first {n} bytes were accepted");
    }
}

/// What is accepted here, the reference implementation accepts too, and finds in the same places.
#[test]
fn damaged_bytes_agree_with_the_reference() {
    let file = small_safetensors();
    let mut n_accepted = 0;
    for at in 0..file.len() {
        for damage in [0x01, 0x02, 0x08, 0x20, 0x80, 0xff] {
            let mut damaged = file.clone();
            damaged[at] ^= damage;
            let Ok(header) = SafetensorsHeader::parse(&damaged) else { continue };
            n_accepted += 1;
            let reference = ::safetensors::SafeTensors::deserialize(&damaged).unwrap();
            for tensor in &header.tensors {
                let view = reference.tensor(&tensor.name).unwrap();
                assert_eq!(view.data().as_ptr_range(), damaged[tensor.range.clone()].as_ptr_range());
                assert_eq!(view.shape(), tensor.shape);
            }
        }
    }
    assert!(n_accepted > 100, "only {n_accepted} damaged files were sound: the comparison proves little");
}
