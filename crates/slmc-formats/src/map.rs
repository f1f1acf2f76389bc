//! Files as bytes without reading them: the one place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use bytes::Bytes;
use memmap2::Mmap;

use crate::FileError;

/// Maps a file into memory; pages are read when they are touched. An empty file gives empty bytes.
///
/// The mapping lives as long as any slice of the result. Another process that shortens the file
/// meanwhile makes reads of the lost part fault (`SIGBUS`), as for every program that maps files.
///
/// # Errors
/// When the path is not a plain file or the system refuses to open or map it.
pub fn map_file(path: &Path) -> Result<Bytes, FileError> {
    // Asked before opening: opening a pipe would wait for its writer.
    let about = fs::metadata(path).map_err(FileError::when("open", path))?;
    if !about.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file");
        return Err(FileError { action: "open", path: path.to_owned(), source });
    }
    let file = File::open(path).map_err(FileError::when("open", path))?;
    let n_bytes = file.metadata().map_err(FileError::when("open", path))?.len();
    if n_bytes == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private to this process and read-only, and its only handle goes into
    // `Bytes`, which keeps it alive for every slice. That the file's content does not change underneath
    // is the contract of model files: slmc replaces them by rename, never in place.
    let map = unsafe { Mmap::map(&file) }.map_err(FileError::when("map", path))?;
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn maps_what_is_there() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert!(map_file(file.path()).unwrap().is_empty());
        file.write_all(b"weights").unwrap();
        let bytes = map_file(file.path()).unwrap();
        let slice = bytes.slice(2..4);
        drop(bytes);
        assert_eq!(&slice[..], b"ig");
    }

    #[test]
    fn errors_name_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let message = map_file(folder.path()).unwrap_err().to_string();
        assert!(message.contains("not a plain file"), "{message}");
        let absent = folder.path().join("absent.gguf");
        let message = map_file(&absent).unwrap_err().to_string();
        assert!(message.contains("absent.gguf"), "{message}");
    }
}
