//! SHA-256 of files and folders (FIPS 180-4), in lower-case hex: for manifests and lineage.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Deepest folder below the one that is hashed.
const MAX_DEPTH: usize = 32;

/// Of bytes in memory.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Of a file's content, read in pieces.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// Of a file, or of a folder: the hash of the list of its files, one line each (`hash  path`, the form of
/// `sha256sum`), sorted by path, paths relative to the folder and written with `/`.
///
/// # Errors
/// When something in it cannot be read.
pub fn sha256_path(path: &Path) -> io::Result<String> {
    if !path.is_dir() {
        return sha256_file(path);
    }
    let mut files = Vec::new();
    list_files(path, "", 0, &mut files)?;
    files.sort();
    let mut list = Sha256::new();
    for (name, file) in files {
        list.update(format!("{}  {name}\n", sha256_file(&file)?));
    }
    Ok(hex(&list.finalize()))
}

fn list_files(
    folder: &Path,
    prefix: &str,
    depth: usize,
    files: &mut Vec<(String, PathBuf)>,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("folders nest deeper than {MAX_DEPTH}: {}", folder.display())));
    }
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            list_files(&entry.path(), &format!("{name}/"), depth + 1, files)?;
        } else {
            files.push((name, entry.path()));
        }
    }
    Ok(())
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_standard() {
        // FIPS 180-4's example "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_bytes(b"abc"), abc);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "abc").unwrap();
        assert_eq!(sha256_file(&folder.path().join("a")).unwrap(), abc);
    }

    #[test]
    fn a_folder_is_the_list_of_its_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(folder.path().join("sub/b"), "two").unwrap();
        std::fs::write(folder.path().join("a"), "one").unwrap();
        let list = format!("{}  a\n{}  sub/b\n", sha256_bytes(b"one"), sha256_bytes(b"two"));
        assert_eq!(sha256_path(folder.path()).unwrap(), sha256_bytes(list.as_bytes()));
    }
}
