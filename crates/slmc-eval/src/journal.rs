//! What is done of an evaluation, kept while the rest runs: whoever is stopped goes on where they were.
//!
//! A file of lines: the name of what is evaluated, then one line of JSON for each unit (a window of a text, an item of a task)
//! in their order. A line that is not whole, as a power cut leaves it, counts as not there.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use slmc_data::sha256_bytes;
use slmc_formats::FileError;
use slmc_ir::Host;

use crate::EvalError;

/// What takes less time is not kept: it is done again as fast.
const WORTH_KEEPING: Duration = Duration::from_secs(5);
/// Files of evaluations that nobody went on with are deleted after so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest file that is read: beyond it, what is kept counts as nothing.
const MAX_BYTES: u64 = 1 << 30;
const ENDING: &str = "evaluation.jsonl";

/// The name of what follows from these parts, in this order: 64 hex digits.
pub fn key_of(parts: &[&str]) -> String {
    let text: String = parts.iter().map(|part| format!("{}:{part}\n", part.len())).collect();
    sha256_bytes(text.as_bytes())
}

/// Units of an evaluation that are done.
#[derive(Debug, Default)]
pub struct Journal {
    place: Option<Place>,
    /// Lines of the run before that were not yet asked for, the next last.
    kept: Vec<String>,
    /// Lines that are not in the file yet.
    waiting: String,
    began: Option<Duration>,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    name: String,
    /// Held by this process alone, once there is something in it.
    file: Option<File>,
    /// Bytes of what counts.
    n_bytes: u64,
}

impl Journal {
    /// Keeps nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// The journal of an evaluation in a folder, which is made when there is something to keep. `parts` say all that its units
    /// follow from; what is kept of an evaluation of other parts is never seen.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or another process writes to it.
    pub fn open(folder: &Path, parts: &[&str]) -> Result<Self, FileError> {
        let name = key_of(parts);
        let path = folder.join(format!("{}.{ENDING}", &name[..32]));
        let mut place = Place { path, name, file: None, n_bytes: 0 };
        let mut kept = place.read()?;
        kept.reverse();
        Ok(Self { place: Some(place), kept, ..Self::default() })
    }

    /// Units that a run before has done.
    pub fn n_kept(&self) -> usize {
        self.kept.len()
    }

    /// Does `n` units of work: those that are kept are only taken in. `make(i)` does one; `is_whole(i, unit)` says whether what
    /// was kept can be one; `take(unit)` adds it to the result and gives a live figure.
    ///
    /// # Errors
    /// Those of `make`; when the user stops: what is done is then kept where it can be.
    pub(crate) fn each<T: Serialize + DeserializeOwned>(
        &mut self,
        work: Work<'_>,
        host: &dyn Host,
        is_whole: &dyn Fn(usize, &T) -> bool,
        make: &mut dyn FnMut(usize) -> Result<T, EvalError>,
        take: &mut dyn FnMut(T) -> String,
    ) -> Result<(), EvalError> {
        let Work { what, unit, n } = work;
        let mut done = 0;
        while done < n
            && let Some(made) = self.next(&|made| is_whole(done, made), host)
        {
            take(made);
            done += 1;
        }
        if done > 0 {
            host.warn(&format!(
                "{what}: {done} of {n} {unit} were done by a run before this one, which goes on with them"
            ));
        }
        // What was kept took no time, and would make the rest look as if it took none.
        let n_before = done;
        self.began = Some(host.elapsed());
        host.begin(what, (n - n_before) as u64, unit);
        for done in n_before..n {
            if host.stop_requested() {
                host.end();
                let kept = self.keep(host);
                return Err(EvalError::Stopped { done, total: n, unit: unit.to_owned(), kept });
            }
            let made = make(done)?;
            self.put(&made, host);
            let note = take(made);
            host.advance_to((done + 1 - n_before) as u64, &note);
        }
        host.end();
        Ok(())
    }

    /// The next unit of the run before. From one on that is not whole, none counts.
    fn next<T: DeserializeOwned>(&mut self, is_whole: &dyn Fn(&T) -> bool, host: &dyn Host) -> Option<T> {
        let (line, place) = (self.kept.pop()?, self.place.as_mut()?);
        let made = serde_json::from_str(&line).ok().filter(is_whole);
        if made.is_none() {
            let rest = self.kept.iter().chain([&line]).map(|line| line.len() as u64 + 1).sum::<u64>();
            self.kept.clear();
            let cut = place.cut(place.n_bytes.saturating_sub(rest));
            self.go_on_without(cut, host);
        }
        made
    }

    fn put<T: Serialize>(&mut self, made: &T, host: &dyn Host) {
        let (Some(place), Ok(line)) = (&self.place, serde_json::to_string(made)) else { return };
        self.waiting += &line;
        self.waiting.push('\n');
        let took = host.elapsed().saturating_sub(self.began.unwrap_or_default());
        if place.file.is_some() || took >= WORTH_KEEPING {
            self.keep(host);
        }
    }

    /// Writes what is done; says whether there is a file to go on from. Where it cannot be written the host is told why, and
    /// nothing is kept from then on.
    pub fn keep(&mut self, host: &dyn Host) -> bool {
        let Some(place) = &mut self.place else { return false };
        let kept = place.append(&std::mem::take(&mut self.waiting));
        self.go_on_without(kept, host);
        self.place.is_some()
    }

    fn go_on_without(&mut self, outcome: Result<(), FileError>, host: &dyn Host) {
        if let Err(error) = outcome {
            host.warn(&format!("{error}: what is done of this evaluation is not kept"));
            self.place = None;
        }
    }

    /// The result is in the caller's hands: nothing needs to be kept any more.
    pub fn finish(self) {
        if let Some(Place { path, file: Some(_), .. }) = &self.place {
            // What stays is found again by nothing but the same evaluation, which it would only make faster.
            drop(fs::remove_file(path));
        }
    }
}

/// Units of work.
#[derive(Clone, Copy)]
pub(crate) struct Work<'a> {
    pub what: &'a str,
    pub unit: &'a str,
    pub n: usize,
}

impl Place {
    fn error(&self, action: &'static str, error: std::io::Error) -> FileError {
        FileError::when(action, &self.path)(error)
    }

    /// The whole lines of a run before, if they are of this evaluation.
    fn read(&mut self) -> Result<Vec<String>, FileError> {
        let mut options = OpenOptions::new();
        let file = match options.read(true).append(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.error("open", error)),
        };
        let busy = |e: fs::TryLockError| self.error("lock (does the same evaluation run already?)", e.into());
        file.try_lock().map_err(busy)?;
        let n_bytes = file.metadata().map_err(|e| self.error("read", e))?.len();
        let bytes = if n_bytes > MAX_BYTES {
            Vec::new()
        } else {
            fs::read(&self.path).map_err(|e| self.error("read", e))?
        };
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let text = std::str::from_utf8(&bytes[..whole]).unwrap_or_default();
        self.file = Some(file);
        let mut lines = text.lines();
        if lines.next() != Some(self.name.as_str()) {
            self.cut(0)?;
            self.append("")?;
            return Ok(Vec::new());
        }
        let lines = lines.map(str::to_owned).collect();
        self.cut(whole as u64)?;
        Ok(lines)
    }

    /// Leaves the first `n_bytes`.
    fn cut(&mut self, n_bytes: u64) -> Result<(), FileError> {
        if let Some(file) = &self.file {
            file.set_len(n_bytes).map_err(|e| self.error("write", e))?;
        }
        self.n_bytes = n_bytes;
        Ok(())
    }

    fn append(&mut self, lines: &str) -> Result<(), FileError> {
        let mut all = String::new();
        if self.file.is_none() {
            let folder = self.path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder).map_err(|e| self.error("make the folder of", e))?;
            delete_forgotten(folder);
            let file = OpenOptions::new().create_new(true).append(true).open(&self.path);
            let file = file.map_err(|e| self.error("create", e))?;
            file.try_lock().map_err(|e| self.error("lock", e.into()))?;
            self.file = Some(file);
        }
        if self.n_bytes == 0 {
            all = format!("{}\n", self.name);
        }
        all += lines;
        if let Some(file) = &mut self.file {
            file.write_all(all.as_bytes()).map_err(FileError::when("write", &self.path))?;
        }
        self.n_bytes += all.len() as u64;
        Ok(())
    }
}

/// Deletes what nobody went on with; whatever cannot be deleted stays.
fn delete_forgotten(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_one = entry.file_name().to_string_lossy().ends_with(ENDING);
        let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = modified.and_then(|modified| modified.elapsed().ok());
        if is_one && age.is_some_and(|age| age > FORGOTTEN_AFTER) {
            drop(fs::remove_file(entry.path()));
        }
    }
}
