//! What writers refuse, and what an unfinished file leaves behind: nothing.

use std::{collections::BTreeMap, fs, io::Write as _, path::Path};

use slmc_formats::{
    AtomicDir, AtomicFile, Existing, GgufWriter, PlannedSafeTensor, PlannedTensor, SafetensorsWriter,
    gguf::Value,
};
use slmc_ir::Format;

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn plan(name: &str, dims: &[u64], format: Format) -> PlannedTensor {
    PlannedTensor { name: name.into(), dims: dims.into(), format }
}

#[track_caller]
fn refused(metadata: &[(String, Value)], tensors: &[PlannedTensor], expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let error = GgufWriter::create(&folder.path().join("x.gguf"), metadata, tensors).unwrap_err().to_string();
    assert!(error.contains(expected), "`{error}` does not contain `{expected}`");
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn gguf_plans_that_no_reader_would_take() {
    let text = |key: &str, value: &str| (key.to_owned(), Value::String(value.to_owned()));
    refused(&[text("a", "1"), text("a", "2")], &[], "metadata key `a` is there twice");
    refused(&[text("", "1")], &[], "is empty");
    refused(&[text("general.alignment", "32")], &[], "`general.alignment`");
    refused(&[("general.alignment".into(), Value::U32(24))], &[], "`general.alignment` is 24");
    refused(&[("general.alignment".into(), Value::U32(0))], &[], "`general.alignment` is 0");
    let t = || plan("t", &[32], Format::Q4_0);
    refused(&[], &[t(), t()], "tensor `t` is there twice");
    refused(&[], &[plan("", &[1], Format::F32)], "is empty");
    refused(&[], &[plan(&"n".repeat(64), &[1], Format::F32)], "name of 64 bytes");
    refused(&[], &[plan("t", &[33], Format::Q4_0)], "not whole q4_0 blocks");
    refused(&[], &[plan("t", &[], Format::F32)], "0 dimensions");
    refused(&[], &[plan("t", &[1; 5], Format::F32)], "5 dimensions");
    refused(&[], &[plan("t", &[4, 0], Format::F32)], "none may be 0");
    refused(&[], &[plan("t", &[u64::MAX], Format::F32)], "more bytes than a file can hold");
}

#[test]
fn gguf_tensors_must_be_as_planned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let tensors = [plan("a", &[32], Format::Q4_0), plan("b", &[2], Format::F32)];
    let mut writer = GgufWriter::create(&path, &[], &tensors).unwrap();
    let error = writer.tensor(&[0; 17]).unwrap_err().to_string();
    assert!(error.contains("tensor `a` is given 17 bytes where shape and type call for 18"), "{error}");
    writer.tensor(&[0; 18]).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("1 of 2 tensors were written"), "{error}");
    assert!(entries(folder.path()).is_empty());

    let mut writer = GgufWriter::create(&path, &[], &tensors[..1]).unwrap();
    writer.tensor(&[0; 18]).unwrap();
    let error = writer.tensor(&[0; 18]).unwrap_err().to_string();
    assert!(error.contains("all 1 planned tensors"), "{error}");
    writer.finish().unwrap();
    assert_eq!(entries(folder.path()), ["x.gguf"]);
}

#[test]
fn safetensors_plans_that_no_reader_would_take() {
    let refused = |tensors: &[(&str, Format, &[usize])], expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        let plan = |&(name, format, shape): &(&str, Format, &[usize])| PlannedSafeTensor {
            name: name.into(),
            format,
            shape: shape.into(),
        };
        let tensors: Vec<_> = tensors.iter().map(plan).collect();
        let path = folder.path().join("x.safetensors");
        let error = SafetensorsWriter::create(&path, &BTreeMap::new(), &tensors).unwrap_err().to_string();
        assert!(error.contains(expected), "`{error}` does not contain `{expected}`");
        assert!(entries(folder.path()).is_empty());
    };
    refused(&[("t", Format::Q4_0, &[32])], "planned as q4_0");
    refused(&[("t", Format::F32, &[1]), ("t", Format::F32, &[1])], "`t` is there twice");
    refused(&[("__metadata__", Format::F32, &[1])], "`__metadata__` is there twice");
    refused(&[("", Format::F32, &[1])], "a name of 0 bytes");
    refused(&[("t", Format::F32, &[1; 9])], "9 dimensions");
    refused(&[("t", Format::F32, &[usize::MAX, 2])], "more bytes than a file can hold");
}

#[test]
fn files_appear_when_complete() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    fs::write(&path, "old").unwrap();
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(entries(folder.path()).len(), 2);
    drop(file);
    assert_eq!(entries(folder.path()), ["a.txt"]);
    let mut file = AtomicFile::create(&path).unwrap();
    file.put(b"new").unwrap();
    file.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(entries(folder.path()), ["a.txt"]);
}

#[cfg(unix)]
#[test]
fn a_file_that_is_synced_as_it_grows_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let piece: Vec<u8> = (0..3_000_001_u32).map(|i| (i % 251) as u8).collect();
    let mut file = AtomicFile::create(&path).unwrap();
    for n in 0..16 {
        match n % 2 {
            0 => file.put(&piece).unwrap(),
            _ => file.write_all(&piece).unwrap(),
        }
    }
    // One that is given up while it is being synced leaves nothing behind.
    let mut other = AtomicFile::create(&folder.path().join("y")).unwrap();
    (0..6).for_each(|_| other.put(&piece).unwrap());
    drop(other);
    file.commit().unwrap();
    assert!(fs::read(&path).unwrap() == piece.repeat(16));
    assert_eq!(entries(folder.path()), ["x"]);
}

#[test]
fn rights_are_those_of_a_plain_create() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    let [plain, atomic] = ["plain", "atomic"].map(|name| folder.path().join(name));
    fs::write(&plain, "").unwrap();
    AtomicFile::create(&atomic).unwrap().commit().unwrap();
    assert_eq!(mode(&atomic), mode(&plain));
    let [plain, atomic] = ["plain_dir", "atomic_dir"].map(|name| folder.path().join(name));
    fs::create_dir(&plain).unwrap();
    AtomicDir::create(&atomic, Existing::Refuse).unwrap().commit().unwrap();
    assert_eq!(mode(&atomic), mode(&plain));
}

#[test]
fn paths_without_place_or_name_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent").join("a.txt");
    let error = AtomicFile::create(&absent).unwrap_err().to_string();
    assert!(error.contains("a.txt"), "{error}");
    let error = AtomicFile::create(Path::new("/")).unwrap_err().to_string();
    assert!(error.contains("ends in no name"), "{error}");
    // A folder stands where the file should be.
    let error = AtomicFile::create(folder.path()).unwrap().commit().unwrap_err().to_string();
    assert!(error.contains("cannot rename to"), "{error}");
}

#[test]
fn folders_appear_when_complete() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("model");
    let fill = |existing, text: &str| {
        let folder = AtomicDir::create(&target, existing)?;
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/a.txt"), text).unwrap();
        Ok::<_, slmc_formats::FileError>(folder)
    };
    drop(fill(Existing::Refuse, "dropped").unwrap());
    assert!(entries(place.path()).is_empty());
    fs::create_dir(&target).unwrap(); // an empty folder is no obstacle
    fill(Existing::Refuse, "first").unwrap().commit().unwrap();
    assert_eq!(fs::read(target.join("sub/a.txt")).unwrap(), b"first");
    let error = fill(Existing::Refuse, "second").unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    fs::write(target.join("stale.txt"), "").unwrap();
    fill(Existing::Replace, "second").unwrap().commit().unwrap();
    assert_eq!(fs::read(target.join("sub/a.txt")).unwrap(), b"second");
    assert_eq!(entries(&target), ["sub"]);
    assert_eq!(entries(place.path()), ["model"]);
}

#[test]
fn a_folder_filled_meanwhile_is_kept() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("model");
    let folder = AtomicDir::create(&target, Existing::Refuse).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("theirs.txt"), "").unwrap();
    assert!(folder.commit().is_err());
    assert_eq!(entries(&target), ["theirs.txt"]);
    assert_eq!(entries(place.path()), ["model"]);
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(AtomicDir::create(&file, Existing::Replace).is_err());
}
