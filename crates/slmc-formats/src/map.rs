//! Files as bytes without reading them: the one place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
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
    let map = Arc::new(map);
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    maps.retain(|map| map.strong_count() > 0);
    maps.push(Arc::downgrade(&map));
    Ok(Bytes::from_owner(Owner(map)))
}

/// The files that are mapped: what [`release`] may touch.
static MAPS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

/// What keeps a map alive for the bytes that lie in it.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Says that these bytes are not needed for a while. Where they lie in a mapped file the system takes their pages back;
/// they are read from the file again when they are touched. Bytes elsewhere in memory stay as they are.
pub fn release(bytes: &[u8]) {
    #[cfg(unix)]
    {
        let start = bytes.as_ptr() as usize;
        let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
        for map in maps.iter().filter_map(Weak::upgrade) {
            let first = map.as_ptr() as usize;
            if start < first || start + bytes.len() > first + map.len() {
                continue;
            }
            // SAFETY: the range lies in a map of a file that nobody writes to (see `map_file`): its pages have no
            // content but the file's, which comes back. Where the system refuses, nothing has happened.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start - first, bytes.len())
            };
        }
    }
    #[cfg(not(unix))]
    let _ = bytes;
}

/// As [`release`], of all files that are mapped: once what was wanted of them has been taken.
pub fn release_all() {
    #[cfg(unix)]
    for map in MAPS.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
        // SAFETY: as in `release`.
        let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
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
    fn what_is_released_is_there_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..40_000_u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let bytes = map_file(file.path()).unwrap();
        assert_eq!(bytes[..], content[..]);
        release(&bytes.slice(5..30_000));
        assert_eq!(bytes[..], content[..]);
        release_all();
        assert_eq!(bytes[..], content[..]);
        // Memory of one's own is left alone.
        let own = vec![7_u8; 40_000];
        release(&own);
        assert!(own.iter().all(|&x| x == 7));
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
