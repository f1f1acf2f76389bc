//! Files and folders that appear under their final name only when complete.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use tempfile::{NamedTempFile, TempDir};

use crate::FileError;

const BUFFER_BYTES: usize = 1 << 20;
/// Bytes after which what was written begins to be made durable.
const SYNC_BYTES: usize = 16 << 20;

/// A file being written: it lies beside its final place under another name until [`AtomicFile::commit`].
/// Dropped before that, it leaves nothing behind and the old file, if any, untouched.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    writer: BufWriter<NamedTempFile>,
    ahead: SyncAhead,
}

/// Makes durable what was written while the rest is being made: the disk works beside the processor, and little is left
/// to wait for at the end.
#[derive(Debug, Default)]
struct SyncAhead {
    n_bytes: usize,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl SyncAhead {
    fn wrote(&mut self, n_bytes: usize, file: &File) -> io::Result<()> {
        self.n_bytes += n_bytes;
        if self.n_bytes < SYNC_BYTES || self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return Ok(());
        }
        self.finish()?;
        let file = file.try_clone()?;
        // Where there is no thread to be had all is synced at the end.
        self.running = thread::Builder::new().spawn(move || file.sync_data()).ok();
        self.n_bytes = 0;
        Ok(())
    }

    /// A failure to sync is said once: whoever asked first must hand it on.
    fn finish(&mut self) -> io::Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        running.join().unwrap_or_else(|_| Err(io::Error::other("the thread that synced the file ended")))
    }
}

impl AtomicFile {
    /// Begins a file that will be `path`. The folder must exist.
    ///
    /// # Errors
    /// When `path` names no file, or the temporary file cannot be made in its folder.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let folder = folder_of(path)?;
        let file = temporary(0o666).tempfile_in(folder).map_err(FileError::when("create", path))?;
        let writer = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { path: path.to_owned(), writer, ahead: SyncAhead::default() })
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all of `bytes`; the error names the file.
    ///
    /// # Errors
    /// When the system cannot write, as on a full disk.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let written = self.writer.write_all(bytes);
        let written = written.and_then(|()| self.ahead.wrote(bytes.len(), self.writer.get_ref().as_file()));
        written.map_err(FileError::when("write", &self.path))
    }

    /// Makes the content durable, then gives the file its name, replacing what had it.
    ///
    /// # Errors
    /// When the system cannot write or rename; then the temporary file is removed.
    pub fn commit(self) -> Result<(), FileError> {
        let Self { path, writer, mut ahead } = self;
        ahead.finish().map_err(FileError::when("write", &path))?;
        let file = writer.into_inner().map_err(|e| FileError::when("write", &path)(e.into_error()))?;
        file.as_file().sync_all().map_err(FileError::when("write", &path))?;
        file.persist(&path).map_err(|e| FileError::when("rename to", &path)(e.error))?;
        sync_folder(folder_of(&path)?)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n_bytes = self.writer.write(bytes)?;
        self.ahead.wrote(n_bytes, self.writer.get_ref().as_file())?;
        Ok(n_bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// What to do with a folder that is already there and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone and fail.
    Refuse,
    /// Put the new one in its place.
    Replace,
}

/// A folder being written: files go to [`AtomicDir::path`], and [`AtomicDir::commit`] gives it its name.
/// Dropped before that, it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicDir {
    target: PathBuf,
    folder: TempDir,
    existing: Existing,
}

impl AtomicDir {
    /// Begins a folder that will be `target`. Its parent must exist.
    ///
    /// # Errors
    /// When `target` is a file, or a folder with something in it that `existing` does not let go, or the
    /// temporary folder cannot be made beside it.
    pub fn create(target: &Path, existing: Existing) -> Result<Self, FileError> {
        let parent = folder_of(target)?;
        check_target(target, existing)?;
        let folder = temporary(0o777).tempdir_in(parent).map_err(FileError::when("create", target))?;
        Ok(Self { target: target.to_owned(), folder, existing })
    }

    /// The folder to write into meanwhile.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes every file in it durable, then gives the folder its name.
    ///
    /// # Errors
    /// When the target has filled up since, or the system cannot write or rename.
    pub fn commit(self) -> Result<(), FileError> {
        let Self { target, folder, existing } = self;
        sync_tree(folder.path())?;
        check_target(&target, existing)?;
        let parent = folder_of(&target)?.to_owned();
        let renamed = FileError::when("rename to", &target);
        if is_filled(&target)? {
            // The old folder steps aside first and is deleted (by `aside`'s drop) once the new one is in place.
            let aside = temporary(0o777).tempdir_in(&parent).map_err(FileError::when("replace", &target))?;
            let old = aside.path().join("old");
            fs::rename(&target, &old).map_err(FileError::when("replace", &target))?;
            if let Err(error) = fs::rename(folder.path(), &target) {
                // Best effort: the error that matters is the one already at hand.
                let _ = fs::rename(&old, &target);
                return Err(renamed(error));
            }
        } else {
            if target.is_dir() {
                fs::remove_dir(&target).map_err(FileError::when("replace", &target))?;
            }
            fs::rename(folder.path(), &target).map_err(renamed)?;
        }
        // It has moved: nothing is left under the temporary name to delete.
        let _ = folder.keep();
        sync_folder(&parent)
    }
}

fn check_target(target: &Path, existing: Existing) -> Result<(), FileError> {
    let refuse = |why| {
        let source = io::Error::new(io::ErrorKind::AlreadyExists, why);
        Err(FileError { action: "create", path: target.to_owned(), source })
    };
    if target.exists() && !target.is_dir() {
        return refuse("a file of that name is in the way");
    }
    if existing == Existing::Refuse && is_filled(target)? {
        return refuse("the folder is there and not empty; name another or ask to replace it");
    }
    Ok(())
}

fn is_filled(folder: &Path) -> Result<bool, FileError> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::when("read", folder)(error)),
    }
}

/// The folder that holds `path`.
fn folder_of(path: &Path) -> Result<&Path, FileError> {
    if path.file_name().is_none() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path ends in no name");
        return Err(FileError { action: "create", path: path.to_owned(), source });
    }
    match path.parent() {
        Some(folder) if folder != Path::new("") => Ok(folder),
        _ => Ok(Path::new(".")),
    }
}

/// Temporary names in the project's style, with the rights that a plain `create` would give.
fn temporary(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".slmc-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

fn sync_tree(folder: &Path) -> Result<(), FileError> {
    for entry in fs::read_dir(folder).map_err(FileError::when("read", folder))? {
        let entry = entry.map_err(FileError::when("read", folder))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(FileError::when("read", folder))?);
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            let file = File::options().append(true).open(&path).map_err(FileError::when("open", &path))?;
            file.sync_all().map_err(FileError::when("write", &path))?;
        }
    }
    sync_folder(folder)
}

/// Makes a rename inside the folder durable. Only Unix can open a folder for that.
fn sync_folder(folder: &Path) -> Result<(), FileError> {
    #[cfg(unix)]
    File::open(folder).and_then(|f| f.sync_all()).map_err(FileError::when("write", folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}
