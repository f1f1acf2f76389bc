//! Activations of the calibration set on disk, a file for each place between blocks: what memory does not have to hold.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::PathBuf,
};

use slmc_blocks::{bf16_to_f32, f32_to_bf16};
use slmc_recipe::StageError;

/// A folder of activations in bf16. It goes when this is dropped.
pub struct Spill {
    folder: PathBuf,
}

impl Spill {
    /// An empty one; what an interrupted run had left goes.
    pub fn create(folder: PathBuf) -> Result<Self, StageError> {
        let failed = |e: std::io::Error| StageError::Failed(format!("{}: {e}", folder.display()));
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(failed)?;
        }
        std::fs::create_dir_all(&folder).map_err(failed)?;
        Ok(Self { folder })
    }

    /// Writes numbers at a place of a file, which grows as needed.
    pub fn write(&self, name: &str, first: usize, numbers: &[f32]) -> Result<(), StageError> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|&x| f32_to_bf16(x).to_le_bytes()).collect();
        let path = self.folder.join(name);
        let written =
            File::options().create(true).truncate(false).write(true).open(&path).and_then(|mut file| {
                file.seek(SeekFrom::Start(first as u64 * 2))?;
                file.write_all(&bytes)
            });
        written.map_err(|e| StageError::Failed(format!("{}: {e}", path.display())))
    }

    /// Reads `n` numbers from a place of a file.
    pub fn read(&self, name: &str, first: usize, n: usize) -> Result<Vec<f32>, StageError> {
        let mut bytes = vec![0; n * 2];
        let path = self.folder.join(name);
        let read = File::open(&path).and_then(|mut file| {
            file.seek(SeekFrom::Start(first as u64 * 2))?;
            file.read_exact(&mut bytes)
        });
        read.map_err(|e| StageError::Failed(format!("{}: {e}", path.display())))?;
        Ok(bytes.as_chunks::<2>().0.iter().map(|&bytes| bf16_to_f32(u16::from_le_bytes(bytes))).collect())
    }

    /// Removes a file that is not needed any more.
    pub fn forget(&self, name: &str) {
        let _ = std::fs::remove_file(self.folder.join(name));
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
