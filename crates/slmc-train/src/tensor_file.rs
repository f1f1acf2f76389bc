//! Tensors of a checkpoint in a safetensors file, f32 throughout: written and read one tensor at a time, so
//! that a checkpoint never takes a second copy of the model in memory.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::TrainError;

/// Longest header that is read: far above any model's list of tensors.
const MAX_HEADER_BYTES: u64 = 1 << 26;

/// One tensor of a file: its name and its dimensions.
pub(crate) type Entry = (String, Vec<usize>);

/// Writes the file and waits until it is on the disk; returns its length in bytes. `read(i)` gives the numbers
/// of `entries[i]` when their turn comes.
pub(crate) fn write(
    path: &Path,
    entries: &[Entry],
    mut read: impl FnMut(usize) -> Result<Vec<f32>, TrainError>,
) -> Result<u64, TrainError> {
    let header = header(path, entries)?;
    let io = || TrainError::io(path);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io())?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io())?;
    file.write_all(&header).map_err(io())?;
    let mut n_bytes = 8 + header.len() as u64;
    for (index, (name, shape)) in entries.iter().enumerate() {
        let numbers = read(index)?;
        if numbers.len() != shape.iter().product::<usize>() {
            let message =
                format!("tensor `{name}` has {} numbers where its shape is {shape:?}", numbers.len());
            return Err(TrainError::checkpoint(path, message));
        }
        for chunk in numbers.chunks(1 << 16) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
            file.write_all(&bytes).map_err(io())?;
            n_bytes += bytes.len() as u64;
        }
    }
    let file = file.into_inner().map_err(|e| e.into_error()).map_err(io())?;
    file.sync_all().map_err(io())?;
    Ok(n_bytes)
}

/// The JSON header, padded with spaces to eight bytes.
fn header(path: &Path, entries: &[Entry]) -> Result<Vec<u8>, TrainError> {
    let mut offset = 0;
    let mut infos = Vec::with_capacity(entries.len());
    for (name, shape) in entries {
        let end = offset + shape.iter().product::<usize>() * 4;
        infos.push((
            name.clone(),
            TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (offset, end) },
        ));
        offset = end;
    }
    let metadata = Metadata::new(None, infos).map_err(|e| TrainError::checkpoint(path, e))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| TrainError::checkpoint(path, e))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok(json)
}

/// A file whose header has been read and found to fit its length.
pub(crate) struct TensorFile {
    path: PathBuf,
    data_start: u64,
    metadata: Metadata,
}

impl TensorFile {
    /// Reads and checks the header; the numbers stay on the disk.
    pub(crate) fn open(path: &Path) -> Result<Self, TrainError> {
        let mut file = File::open(path).map_err(TrainError::io(path))?;
        let n_bytes = file.metadata().map_err(TrainError::io(path))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(TrainError::io(path))?;
        let n_header = u64::from_le_bytes(length);
        if n_header > MAX_HEADER_BYTES.min(n_bytes) {
            return Err(TrainError::checkpoint(path, format!("a header of {n_header} bytes in {n_bytes}")));
        }
        let mut header = vec![0; n_header as usize];
        file.read_exact(&mut header).map_err(TrainError::io(path))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| TrainError::checkpoint(path, e))?;
        let expected = 8 + n_header + metadata.data_len() as u64;
        if n_bytes != expected {
            return Err(TrainError::checkpoint(
                path,
                format!("{n_bytes} bytes where the header says {expected}"),
            ));
        }
        Ok(Self { path: path.to_owned(), data_start: 8 + n_header, metadata })
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// One tensor: its shape and its numbers.
    pub(crate) fn read(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), TrainError> {
        let missing = || TrainError::checkpoint(&self.path, format!("there is no tensor `{name}`"));
        let info = self.metadata.info(name).ok_or_else(missing)?;
        if info.dtype != Dtype::F32 {
            return Err(TrainError::checkpoint(&self.path, format!("tensor `{name}` is not f32")));
        }
        let (start, end) = info.data_offsets;
        let mut file = File::open(&self.path).map_err(TrainError::io(&self.path))?;
        file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(TrainError::io(&self.path))?;
        let mut bytes = vec![0; end - start];
        file.read_exact(&mut bytes).map_err(TrainError::io(&self.path))?;
        let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok((info.shape.clone(), numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join("t.safetensors");
        let entries = vec![("b".to_owned(), vec![2, 3]), ("a".to_owned(), vec![1])];
        let n_bytes = write(&path, &entries, |i| Ok(vec![i as f32 + 0.5; [6, 1][i]])).unwrap();
        assert_eq!(n_bytes, std::fs::metadata(&path).unwrap().len());
        path
    }

    #[test]
    fn tensors_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let file = TensorFile::open(&path).unwrap();
        assert!(file.has("a") && !file.has("c"));
        assert_eq!(file.read("b").unwrap(), (vec![2, 3], vec![0.5; 6]));
        assert_eq!(file.read("a").unwrap(), (vec![1], vec![1.5]));
        assert!(file.read("c").is_err());
        let bytes = std::fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("b").unwrap().shape(), [2, 3]);
    }

    #[test]
    fn damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(TensorFile::open(&path).is_err(), "{length} bytes of {}", bytes.len());
        }
        let mut huge = bytes.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(&path, huge).unwrap();
        assert!(TensorFile::open(&path).is_err());
    }

    #[test]
    fn numbers_must_fit_the_shape() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let entries = vec![("a".to_owned(), vec![2])];
        assert!(write(&path, &entries, |_| Ok(vec![1.0])).is_err());
    }
}
