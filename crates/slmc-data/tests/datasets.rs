//! The manifests that slmc ships, and what happens when a dataset's files are not what a manifest says.

use std::path::{Path, PathBuf};

use slmc_data::{DataError, Documents, Manifest, Split, sha256_bytes};

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

#[test]
fn every_manifest_is_whole() {
    for path in shipped() {
        let manifest = Manifest::read(&path).unwrap();
        assert_eq!(path.file_stem().unwrap().to_str().unwrap(), manifest.name);
        assert!(manifest.files.iter().all(|file| file.split.is_some()), "{}", manifest.name);
        assert!(!manifest.licence.is_empty() && !manifest.source.is_empty() && !manifest.get.is_empty());
    }
}

#[test]
fn what_is_measured_on_is_never_trained_on() {
    let test_only = ["wikitext-2-raw-test", "lambada", "hellaswag", "piqa"];
    for path in shipped() {
        let manifest = Manifest::read(&path).unwrap();
        let of = |split| manifest.files.iter().filter(move |file| file.split == Some(split));
        if test_only.contains(&manifest.name.as_str()) {
            assert_eq!(of(Split::Test).count(), manifest.files.len(), "{}", manifest.name);
        }
        if manifest.name == "books" {
            let held_out: Vec<&str> = of(Split::Test).map(|file| file.path.as_str()).collect();
            assert_eq!(
                held_out,
                [
                    "text/arthur-conan-doyle_the-adventures-of-sherlock-holmes.txt",
                    "text/charlotte-bronte_jane-eyre.txt"
                ]
            );
            assert_eq!(of(Split::Train).count(), 16);
        }
    }
}

#[test]
#[ignore = "needs the data: SLMC_DATA"]
fn the_files_are_those_of_the_manifests() {
    let root = std::env::var_os("SLMC_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from);
    assert!(root.is_dir(), "no data at {}: set SLMC_DATA", root.display());
    for path in shipped() {
        let manifest = Manifest::read(&path).unwrap();
        for file in &manifest.files {
            manifest.locate(file, &path, Some(&root)).unwrap();
        }
        let is_task = manifest.note.is_some_and(|note| note.contains("multiple-choice"));
        if !is_task {
            let documents = Documents::open(&path, Some(&root)).unwrap();
            assert!(documents.iter().collect::<Result<Vec<_>, _>>().is_ok_and(|all| !all.is_empty()));
        }
    }
}

/// A folder with `a.txt`, `b.jsonl` and a manifest of both.
fn dataset() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let files =
        [("a.txt", "one text\n", "train"), ("sub/b.jsonl", "{\"text\": \"x\"}\n{\"text\": \"y\"}\n", "test")];
    let mut toml =
        "name = \"d\"\nsource = \"s\"\nlicence = \"MIT\"\nget = \"ask the librarian\"\n".to_owned();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    for (path, text, split) in files {
        std::fs::write(folder.path().join(path), text).unwrap();
        let sha256 = sha256_bytes(text.as_bytes());
        toml += &format!(
            "[[file]]\npath = \"{path}\"\nsha256 = \"{sha256}\"\nn_bytes = {}\nsplit = \"{split}\"\n",
            text.len()
        );
    }
    std::fs::write(folder.path().join("d.toml"), toml).unwrap();
    folder
}

fn open(folder: &tempfile::TempDir) -> Result<Documents, DataError> {
    Documents::open(&folder.path().join("d.toml"), None)
}

#[test]
fn a_manifest_names_documents_and_their_parts() {
    let folder = dataset();
    let documents: Vec<_> = open(&folder).unwrap().iter().map(Result::unwrap).collect();
    let found: Vec<_> = documents.iter().map(|d| (d.id.as_str(), d.split)).collect();
    let expected = [
        ("a.txt", Some(Split::Train)),
        ("sub/b.jsonl:1", Some(Split::Test)),
        ("sub/b.jsonl:2", Some(Split::Test)),
    ];
    assert_eq!(found, expected);
    let inputs = open(&folder).unwrap().inputs("data").unwrap();
    assert_eq!(
        (inputs[0].path.as_str(), inputs[0].sha256.as_str()),
        ("a.txt", &*sha256_bytes(b"one text\n"))
    );
}

#[test]
fn a_missing_file_says_where_to_get_it() {
    let folder = dataset();
    std::fs::remove_file(folder.path().join("a.txt")).unwrap();
    let error = open(&folder).unwrap_err().to_string();
    assert!(error.contains("a.txt") && error.contains("ask the librarian"), "{error}");
}

#[test]
fn another_file_under_the_name_is_refused() {
    let folder = dataset();
    std::fs::write(folder.path().join("a.txt"), "two text\n").unwrap();
    let error = open(&folder).unwrap_err();
    assert!(matches!(error, DataError::Changed { .. }), "{error}");
    assert!(error.to_string().contains("ask the librarian"), "{error}");
}

#[test]
fn the_data_root_comes_first() {
    let (beside, root) = (dataset(), dataset());
    let documents = Documents::open(&beside.path().join("d.toml"), Some(root.path())).unwrap();
    assert!(documents.paths().all(|path| path.starts_with(root.path())));
}

#[test]
fn bad_manifests_are_refused() {
    let folder = dataset();
    let path = folder.path().join("d.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let refused = |from: &str, to: &str, expected: &str| {
        std::fs::write(&path, good.replace(from, to)).unwrap();
        let error = open(&folder).unwrap_err().to_string();
        assert!(error.contains(expected), "{to}: {error}");
    };
    refused("path = \"a.txt\"", "path = \"../a.txt\"", "must be relative");
    refused("path = \"a.txt\"", "path = \"/etc/passwd\"", "must be relative");
    refused("licence", "license", "unknown field");
    refused("split = \"train\"", "split = \"training\"", "unknown variant");
    refused("sha256 = \"", "sha256 = \"X", "64 lower-case hex");
    refused(&good, "name = \"d\"", "missing field");
}

#[test]
fn a_folder_is_read_in_order_of_names() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.txt", "a.txt", "c.bin", "d.json"] {
        std::fs::write(folder.path().join(name), if name == "d.json" { "[{\"text\": \"t\"}]" } else { name })
            .unwrap();
    }
    let documents = Documents::open(folder.path(), None).unwrap();
    let ids: Vec<_> = documents.iter().map(|document| document.unwrap().id).collect();
    assert_eq!(ids, ["a.txt", "b.txt", "d.json:1"]);
}

#[test]
fn what_is_no_data_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| Documents::open(&folder.path().join(name), None).map(drop);
    assert!(matches!(open("nothing.txt"), Err(DataError::Read { .. })));
    assert!(matches!(open(""), Err(DataError::EmptyFolder(_))));
    std::fs::write(folder.path().join("x.parquet"), "").unwrap();
    assert!(matches!(open("x.parquet"), Err(DataError::UnknownKind(_))));
    std::fs::write(folder.path().join("x.txt"), b"ok\xFF").unwrap();
    let documents = Documents::open(&folder.path().join("x.txt"), None).unwrap();
    let error = documents.iter().next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::NotUtf8 { at: 2, .. }), "{error}");
}
