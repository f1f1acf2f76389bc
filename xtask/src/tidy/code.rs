//! What library code may say.

use std::collections::BTreeSet;

use super::{
    Finding,
    rust_source::{RustSource, line_of, words},
    tree::{File, Tree},
};

/// The one library file outside slmc-kernels that may hold `unsafe`: it maps files into memory.
const MAP_FILE: &str = "crates/slmc-formats/src/map.rs";

/// Names that other projects give to tensors.
const FOREIGN_NAMES: [&str; 25] = [
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "embed_tokens",
    "input_layernorm",
    "post_attention_layernorm",
    "lm_head",
    "model.layers",
    "model.norm",
    "token_embd",
    "output_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "lora_A",
    "lora_B",
    "base_model.model",
];

/// What reads the surroundings of a program, and who should do it instead.
const SURROUNDINGS: [(&str, &str); 12] = [
    ("println!", "return it, or tell the Host"),
    ("print!", "return it, or tell the Host"),
    ("eprintln!", "return it, or tell the Host"),
    ("eprint!", "return it, or tell the Host"),
    ("dbg!", "remove it"),
    ("std::env", "take it as an argument; only the program reads the environment"),
    ("env::var", "take it as an argument; only the program reads the environment"),
    ("SystemTime", "take the time from the Host"),
    ("Instant", "take the time from the Host"),
    ("thread_rng", "take a seed"),
    ("from_os_rng", "take a seed"),
    ("rand::rng", "take a seed"),
];

/// `unsafe` appears in slmc-kernels and in one file that maps memory, nowhere else.
pub fn unsafe_code(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let allowed = |path: &str| path == MAP_FILE || path.starts_with("crates/slmc-kernels/src/");
    for file in tree.rust().filter(|file| !allowed(&file.path)) {
        let source = RustSource::parse(&file.text);
        for at in words(&source.code, "unsafe") {
            let message = format!("unsafe belongs in slmc-kernels and {MAP_FILE}");
            findings.push(Finding::new(&file.path, line_of(&source.code, at), message));
        }
    }
    findings
}

/// Every library forbids unsafe code (where it may) and undocumented public items.
pub fn crate_attributes(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust().filter(|file| file.path.ends_with("/src/lib.rs")) {
        let Some(library) = file.library() else { continue };
        let code = RustSource::parse(&file.text).code;
        let safety = match library {
            "slmc-kernels" => None,
            "slmc-formats" => Some(("deny", "unsafe_code")),
            _ => Some(("forbid", "unsafe_code")),
        };
        for (level, lint) in safety.into_iter().chain([("deny", "missing_docs")]) {
            if !sets_lint(&code, level, lint) {
                findings.push(Finding::new(&file.path, 0, format!("does not say `#![{level}({lint})]`")));
            }
        }
    }
    findings
}

/// Whether a crate attribute such as `#![deny(missing_docs, unsafe_code)]` names the lint.
fn sets_lint(code: &str, level: &str, lint: &str) -> bool {
    let opening = format!("#![{level}(");
    code.match_indices(&opening).any(|(at, _)| {
        let list = code[at + opening.len()..].split(')').next().unwrap_or_default();
        list.split(',').any(|name| name.trim() == lint)
    })
}

/// What other projects call a tensor is known to slmc-interop alone (and to the independent programs that test it).
pub fn foreign_names(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let looked_at = |path: &str| {
        let ours = ["crates/", "tests/", "benches/", "fuzz/"].iter().any(|folder| path.starts_with(folder));
        ours && !path.starts_with("crates/slmc-interop/") && !path.starts_with("tests/reference/")
    };
    for file in tree.rust().filter(|file| looked_at(&file.path)) {
        for name in FOREIGN_NAMES {
            for at in words(&file.text, name) {
                findings.push(foreign(file, at, name));
            }
        }
        for (at, prefix) in file.text.match_indices("blk.") {
            if file.text[at + prefix.len()..].starts_with(|c: char| c == '{' || c.is_ascii_digit()) {
                findings.push(foreign(file, at, prefix));
            }
        }
    }
    findings
}

fn foreign(file: &File, at: usize, name: &str) -> Finding {
    let message = format!("`{name}` is a foreign tensor name: only slmc-interop knows them, use a TensorKey");
    Finding::new(&file.path, line_of(&file.text, at), message)
}

/// Libraries print nothing and read no environment, clock or global random state.
pub fn no_surroundings(tree: &Tree) -> Vec<Finding> {
    in_shipped_libraries(
        tree,
        |_| true,
        |line| {
            let found = SURROUNDINGS.iter().find(|(word, _)| stands_in(line, word))?;
            Some(format!("`{}` in a library: {}", found.0, found.1))
        },
    )
}

/// Nothing is left for later.
pub fn no_stubs(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let source = RustSource::parse(&file.text);
        for stub in ["todo!", "unimplemented!"] {
            for (at, _) in source.code.match_indices(stub) {
                findings.push(Finding::new(
                    &file.path,
                    line_of(&source.code, at),
                    format!("`{stub}` is a stub"),
                ));
            }
        }
    }
    findings
}

/// An ignored test says why: what it needs, or how long it takes. `cargo xtask test` runs them all.
pub fn ignored_tests(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let source = RustSource::parse(&file.text);
        for (at, _) in source.code.match_indices("#[ignore") {
            if !source.code[at..].starts_with("#[ignore = ") {
                let message = "write `#[ignore = \"needs …\"]`: why the fast loop leaves it out";
                findings.push(Finding::new(&file.path, line_of(&source.code, at), message));
            }
        }
    }
    findings
}

/// Where bytes from outside come in, each possible panic is worth a look.
pub fn panics(tree: &Tree) -> Vec<Finding> {
    let guarded = |library: &str| ["slmc-formats", "slmc-interop", "slmc-blocks"].contains(&library);
    in_shipped_libraries(tree, guarded, |line| {
        let panics = [".unwrap()", ".expect(", "panic!("];
        panics
            .iter()
            .find(|word| line.contains(**word))
            .map(|word| format!("`{word}` on bytes from outside?"))
    })
}

/// Whether `word` occurs in the line and is not part of a longer one: `print!` is not in `println!` or `eprint!`.
fn stands_in(line: &str, word: &str) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let whole_end = word.ends_with('!');
    line.match_indices(word).any(|(at, _)| {
        let after = line[at + word.len()..].chars().next();
        !line[..at].chars().next_back().is_some_and(in_word) && (whole_end || !after.is_some_and(in_word))
    })
}

/// Applies `look` to each line of library code that ships: no tests, no comments, no insides of literals.
fn in_shipped_libraries(
    tree: &Tree,
    chosen: impl Fn(&str) -> bool,
    look: impl Fn(&str) -> Option<String>,
) -> Vec<Finding> {
    let test_files = test_files(tree);
    let mut findings = Vec::new();
    for file in tree.rust().filter(|file| file.library().is_some_and(&chosen)) {
        if test_files.iter().any(|stem| is_file_of(&file.path, stem)) {
            continue;
        }
        let source = RustSource::parse(&file.text);
        let found = source.shipped_lines().filter_map(|(line, code)| Some((line, look(code)?)));
        findings.extend(found.map(|(line, message)| Finding::new(&file.path, line, message)));
    }
    findings
}

/// Paths, without `.rs`, of the modules that are declared under `#[cfg(test)]`.
fn test_files(tree: &Tree) -> BTreeSet<String> {
    let mut stems = BTreeSet::new();
    for file in tree.rust() {
        let path = file.path.trim_end_matches(".rs");
        let is_folder_s = ["lib", "main", "mod"].iter().any(|name| path.ends_with(&format!("/{name}")));
        let folder = if is_folder_s { path.rsplit_once('/').map_or("", |(folder, _)| folder) } else { path };
        let source = RustSource::parse(&file.text);
        stems.extend(source.test_modules().iter().map(|module| format!("{folder}/{module}")));
    }
    stems
}

/// Whether `path` is the module `stem` or inside it.
fn is_file_of(path: &str, stem: &str) -> bool {
    path.strip_prefix(stem).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "crates/slmc-x/src/lib.rs";

    fn lines(findings: Vec<Finding>) -> Vec<(String, usize)> {
        findings.into_iter().map(|f| (f.place, f.line)).collect()
    }

    #[test]
    fn unsafe_outside_its_places_is_found() {
        let text = "#![forbid(unsafe_code)]\n// unsafe to say so\nfn f() { unsafe { g() } }\n";
        let tree = Tree::of(&[(LIB, text), (MAP_FILE, text), ("crates/slmc-kernels/src/dot.rs", text)]);
        assert_eq!(lines(unsafe_code(&tree)), [(LIB.to_owned(), 3)]);
    }

    #[test]
    fn a_library_that_does_not_forbid_is_found() {
        let both = "#![forbid(unsafe_code)]\n#![deny(missing_docs)]\n";
        let tree = Tree::of(&[
            (LIB, "#![deny(missing_docs)]\n// #![forbid(unsafe_code)]\n"),
            ("crates/slmc-y/src/lib.rs", both),
            ("crates/slmc-formats/src/lib.rs", "#![deny(unsafe_code, unused)]\n"),
            ("crates/slmc-z/src/lib.rs", "#![forbid(unsafe_code)]\n#![deny(unused, missing_docs)]\n"),
            ("crates/slmc-kernels/src/lib.rs", "#![deny(missing_docs)]\n"),
        ]);
        let places: Vec<_> = crate_attributes(&tree).into_iter().map(|f| f.place).collect();
        assert_eq!(places, [LIB, "crates/slmc-formats/src/lib.rs"]);
    }

    #[test]
    fn foreign_names_are_found_in_code_strings_and_comments() {
        let text =
            "// like lm_head\nlet a = format!(\"blk.{i}.attn_q.weight\");\nlet attn_kernel = blk.f();\n";
        let tree =
            Tree::of(&[(LIB, text), ("crates/slmc-interop/src/hf.rs", text), ("tests/reference/a.rs", text)]);
        let mut found = lines(foreign_names(&tree));
        found.sort();
        assert_eq!(found, [(LIB.to_owned(), 1), (LIB.to_owned(), 2), (LIB.to_owned(), 2)]);
    }

    #[test]
    fn reading_the_surroundings_is_found() {
        let shipped = "fn f() {\n    println!(\"x\");\n    let t = std::time::Instant::now();\n    let instant_noodles = \"std::env\";\n}\n";
        let tested =
            "#[cfg(test)]\nmod tests {\n    fn g() { eprintln!(\"x\"); }\n}\n#[cfg(test)]\nmod golden;\n";
        let text = format!("{shipped}{tested}");
        let tree = Tree::of(&[
            (LIB, text.as_str()),
            ("crates/slmc-x/src/golden.rs", "fn f() { std::env::var(\"SLMC_MODELS\") }"),
            ("crates/slmc-x/tests/a.rs", "fn f() { println!() }"),
            ("crates/cli/main.rs", "fn f() { println!() }"),
        ]);
        assert_eq!(lines(no_surroundings(&tree)), [(LIB.to_owned(), 2), (LIB.to_owned(), 3)]);
    }

    #[test]
    fn every_word_of_the_surroundings_is_seen() {
        for (word, _) in SURROUNDINGS {
            let text = format!("fn f() {{ {word}(x) }}");
            assert_eq!(no_surroundings(&Tree::of(&[(LIB, &text)])).len(), 1, "{word}");
        }
    }

    #[test]
    fn stubs_are_found() {
        // In two pieces, so that this file has none.
        let text = concat!("fn f() { to", "do!() }\nfn g() { \"to", "do!\" }\n");
        assert_eq!(
            lines(no_stubs(&Tree::of(&[("xtask/src/main.rs", text)]))),
            [("xtask/src/main.rs".to_owned(), 1)]
        );
    }

    #[test]
    fn an_ignored_test_without_a_reason_is_found() {
        let text = "#[ignore]\nfn a() {}\n#[ignore = \"needs the real model: x\"]\nfn c() {}\n";
        let found = lines(ignored_tests(&Tree::of(&[("tests/a.rs", text)])));
        assert_eq!(found, [("tests/a.rs".to_owned(), 1)]);
    }

    #[test]
    fn panics_are_listed_where_bytes_come_in() {
        let text = "fn f() { x.unwrap() }\n#[cfg(test)]\nmod tests {\n    fn g() { x.unwrap() }\n}\n";
        let tree = Tree::of(&[("crates/slmc-formats/src/lib.rs", text), (LIB, text)]);
        assert_eq!(lines(panics(&tree)), [("crates/slmc-formats/src/lib.rs".to_owned(), 1)]);
    }
}
