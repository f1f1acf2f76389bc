//! A baseline's predictions on a text, kept in a file: measuring a second model against the same baseline then costs the
//! second model only.
//!
//! Layout, little-endian: `SLMCBASE`, u32 version, u32 vocab_size, u64 rows, 64 bytes of key (lower-case hex of what the
//! predictions follow from), the rows, and the SHA-256 of all that. A row: f64 negative log-likelihood of the token that
//! came, u32 likeliest token, u32 `n_head`, one byte for each token of the vocabulary, `n_head` u16. A byte of 255 sends to
//! the next of the u16: `-ln p` in steps of 9.2 / 65535. Any other byte is `-ln p - 9.2` in steps of 0.05, ends at 254: a
//! token with `p < 1e-4` needs no more, and all that lie beyond the last step share less than 1e-5. KL from such rows is
//! within 1e-4 of KL from the logits themselves (tests), in a quarter of their bytes.

use std::{io, path::Path};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use slmc_formats::{AtomicFile, FileError, map_file};
use slmc_ir::{Host, LanguageModel};

use crate::{
    EvalError, EvalText, Windowing,
    log_softmax::{argmax, exp_of_non_positive, log_sum_exp},
    perplexity::predictions,
    windows::windows,
};

const MAGIC: &[u8; 8] = b"SLMCBASE";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 4 + 8 + KEY_BYTES;
const KEY_BYTES: usize = 64;
const DIGEST_BYTES: usize = 32;
/// Bytes of a row before its codes.
const ROW_HEADER_BYTES: usize = 8 + 4 + 4;
/// `-ln p` up to which a token's probability is kept in 16 bits.
const HEAD_DEPTH: f32 = 9.2;
const HEAD_STEP: f32 = HEAD_DEPTH / 65535.0;
const TAIL_STEP: f32 = 0.05;
/// Sends to the list of 16-bit levels.
const IN_HEAD: u8 = 255;
/// The last code of the tail.
const DEEPEST: u8 = 254;
/// Codes looked at together: fixed, so that sums do not depend on the machine.
const LANES: usize = 8;

/// Why a file is no baseline that can be used.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// It is not there or cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its bytes are not those that were written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It was made from something else.
    #[error("it is of another baseline, text or setting")]
    Other,
}

/// A baseline's predictions, mapped from a file.
#[derive(Clone, Debug)]
pub struct Baseline {
    bytes: Bytes,
    vocab_size: usize,
    rows: Vec<Row>,
}

/// What the baseline thought before one token.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Where the codes begin.
    codes: usize,
    n_head: usize,
    nll: f64,
    top: usize,
}

/// How a model's prediction differs from the baseline's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RowDivergence {
    /// KL(base || model), in nats.
    pub kld: f64,
    pub same_top: bool,
}

impl Baseline {
    /// Runs the baseline over a text and keeps what it predicts in a file. `key` says what the predictions follow from:
    /// 64 hex digits.
    ///
    /// # Errors
    /// When the text is too short, the model fails, the file cannot be written, or the user stops it: then no file is left.
    pub fn record(
        model: &mut dyn LanguageModel,
        text: &EvalText,
        windowing: Windowing,
        key: &str,
        path: &Path,
        host: &dyn Host,
    ) -> Result<(), EvalError> {
        let windows = windows(text.tokens().len(), windowing, model.context_len())?;
        let n_rows: usize = windows.iter().map(|window| window.end - window.scored).sum();
        let mut file =
            Writer { file: AtomicFile::create(path).map_err(EvalError::Cache)?, hash: Sha256::new() };
        file.put(&header(model.vocab_size(), n_rows, key)).map_err(EvalError::Cache)?;
        host.begin("baseline", windows.len() as u64, "chunks");
        for (done, window) in windows.iter().enumerate() {
            if host.stop_requested() {
                host.end();
                let (total, unit) = (windows.len(), "chunks".to_owned());
                return Err(EvalError::Stopped { done, total, unit, kept: false });
            }
            let rows = predictions(model, text, window, &|target, row| {
                let token = text.tokens()[target] as usize;
                encode(row, token).ok_or(EvalError::NotFinite { token_index: target })
            })?;
            rows.iter().try_for_each(|encoded| file.put(encoded)).map_err(EvalError::Cache)?;
            host.advance_to(done as u64 + 1, "");
        }
        host.end();
        file.finish().map_err(EvalError::Cache)
    }

    /// The predictions kept as `KEY.base` in a folder; where they are not there, or damaged, the baseline is run and they are kept.
    ///
    /// # Errors
    /// Those of `load`, which gives the baseline, and of [`Baseline::record`]; when the file cannot be read.
    pub fn kept<E: From<EvalError>>(
        folder: &Path,
        key: &str,
        text: &EvalText,
        windowing: Windowing,
        load: &mut dyn FnMut() -> Result<Box<dyn LanguageModel>, E>,
        host: &dyn Host,
    ) -> Result<Self, E> {
        let path = folder.join(format!("{key}.base"));
        match Self::open(&path, key) {
            Ok(baseline) => return Ok(baseline),
            Err(error) if error.is_absence() => {}
            Err(error) => host.warn(&format!("{}: {error}: the baseline is run again", path.display())),
        }
        let make = std::fs::create_dir_all(folder).map_err(FileError::when("make", folder));
        make.map_err(EvalError::Cache)?;
        Self::record(&mut *load()?, text, windowing, key, &path, host)?;
        Self::open(&path, key).map_err(|error| EvalError::Baseline { path, error }.into())
    }

    /// Opens such a file and checks every byte of it.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or was made under another key.
    pub fn open(path: &Path, key: &str) -> Result<Self, BaselineError> {
        let bytes = map_file(path)?;
        if bytes.len() < HEADER_BYTES + DIGEST_BYTES {
            return Err(BaselineError::Damaged("it ends before its header does"));
        }
        let content = &bytes[..bytes.len() - DIGEST_BYTES];
        if content[..8] != *MAGIC || number::<4>(content, 8) != u64::from(VERSION) {
            return Err(BaselineError::Damaged("it does not begin as such a file does"));
        }
        if content[24..HEADER_BYTES] != *key.as_bytes() {
            return Err(BaselineError::Other);
        }
        if Sha256::digest(content)[..] != bytes[content.len()..] {
            return Err(BaselineError::Damaged("its checksum is another"));
        }
        let vocab_size = number::<4>(content, 12) as usize;
        let rows = find_rows(content, vocab_size, number::<8>(content, 16))?;
        Ok(Self { bytes, vocab_size, rows })
    }

    /// Length of a row of logits.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The negative log-likelihood of each scored token, in nats, in the order of the text.
    pub fn nlls(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        self.rows.iter().map(|row| row.nll)
    }

    /// Compares a model's row of logits with the baseline's row `index`; `None` when the logits are not finite.
    ///
    /// # Panics
    /// When there is no such row, or `logits` has another length than the vocabulary.
    pub(crate) fn compare(
        &self,
        index: usize,
        logits: &[f32],
        log_sum: f64,
        tables: &Tables,
    ) -> RowDivergence {
        assert_eq!(logits.len(), self.vocab_size, "a row of the baseline's vocabulary");
        let row = self.rows[index];
        let codes = &self.bytes[row.codes..row.codes + self.vocab_size];
        let head = &self.bytes[row.codes + self.vocab_size..][..2 * row.n_head];
        let mut sums = tables.tail_sums(codes, logits);
        let mut levels = head.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        for (code, &logit) in codes.iter().zip(logits) {
            if *code == IN_HEAD {
                let log_p = -HEAD_STEP * f32::from(levels.next().unwrap_or(u16::MAX));
                sums.add(exp_of_non_positive(log_p), log_p, logit);
            }
        }
        // With p as stored, which sums to `mass`: sum of (p / mass) (ln (p / mass) - ln q).
        let kld = (sums.p_log_p - sums.p_logit) / sums.mass - sums.mass.ln() + log_sum;
        RowDivergence { kld: kld.max(0.0), same_top: argmax(logits) == row.top }
    }
}

/// Probabilities of the tail's codes.
pub(crate) struct Tables {
    p: [f32; 256],
    p_log_p: [f32; 256],
}

#[derive(Clone, Copy, Default)]
struct Sums {
    mass: f64,
    p_log_p: f64,
    p_logit: f64,
}

impl Sums {
    fn add(&mut self, p: f32, log_p: f32, logit: f32) {
        self.mass += f64::from(p);
        self.p_log_p += f64::from(p) * f64::from(log_p);
        self.p_logit += f64::from(p) * f64::from(logit);
    }
}

impl Tables {
    pub(crate) fn new() -> Self {
        let log_p = |code: usize| -HEAD_DEPTH - TAIL_STEP * (code as f32 + 0.5);
        let p = |code: usize| if code == IN_HEAD as usize { 0.0 } else { log_p(code).exp() };
        Self { p: std::array::from_fn(p), p_log_p: std::array::from_fn(|code| p(code) * log_p(code)) }
    }

    /// The sums over all tokens outside the head.
    fn tail_sums(&self, codes: &[u8], logits: &[f32]) -> Sums {
        let mut lanes = [Sums::default(); LANES];
        for (codes, logits) in codes.chunks(LANES).zip(logits.chunks(LANES)) {
            for ((sums, &code), &logit) in lanes.iter_mut().zip(codes).zip(logits) {
                let p = self.p[usize::from(code)];
                sums.mass += f64::from(p);
                sums.p_log_p += f64::from(self.p_log_p[usize::from(code)]);
                sums.p_logit += f64::from(p * logit);
            }
        }
        lanes.iter().fold(Sums::default(), |all, lane| Sums {
            mass: all.mass + lane.mass,
            p_log_p: all.p_log_p + lane.p_log_p,
            p_logit: all.p_logit + lane.p_logit,
        })
    }
}

struct Writer {
    file: AtomicFile,
    hash: Sha256,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.hash.update(bytes);
        self.file.put(bytes)
    }

    fn finish(mut self) -> Result<(), FileError> {
        let digest = self.hash.finalize();
        self.file.put(&digest)?;
        self.file.commit()
    }
}

fn header(vocab_size: usize, n_rows: usize, key: &str) -> Vec<u8> {
    assert_eq!(key.len(), KEY_BYTES, "a key is a SHA-256 in hex");
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((vocab_size as u32).to_le_bytes());
    bytes.extend((n_rows as u64).to_le_bytes());
    bytes.extend(key.as_bytes());
    bytes
}

/// A row of the file from a row of logits; `None` when they are not finite or the token is not among them.
fn encode(logits: &[f32], token: usize) -> Option<Vec<u8>> {
    let log_sum = log_sum_exp(logits)?;
    let nll = log_sum - f64::from(*logits.get(token)?);
    let mut codes = Vec::with_capacity(ROW_HEADER_BYTES + logits.len() + 2048);
    let mut head: Vec<u16> = Vec::new();
    codes.extend(nll.to_le_bytes());
    codes.extend((argmax(logits) as u32).to_le_bytes());
    codes.extend([0; 4]);
    let log_sum = log_sum as f32;
    for &logit in logits {
        let depth = (log_sum - logit).max(0.0);
        if depth <= HEAD_DEPTH {
            codes.push(IN_HEAD);
            head.push((depth / HEAD_STEP + 0.5) as u16);
        } else {
            codes.push(((depth - HEAD_DEPTH) / TAIL_STEP).min(f32::from(DEEPEST)) as u8);
        }
    }
    codes[ROW_HEADER_BYTES - 4..ROW_HEADER_BYTES].copy_from_slice(&(head.len() as u32).to_le_bytes());
    codes.extend(head.iter().flat_map(|level| level.to_le_bytes()));
    Some(codes)
}

/// Where each row lies. The checksum held, so a fault here is a file that was made wrong; still, nothing is believed.
fn find_rows(content: &[u8], vocab_size: usize, n_rows: u64) -> Result<Vec<Row>, BaselineError> {
    let damaged = BaselineError::Damaged("its rows do not fill it");
    let mut rows = Vec::new();
    let mut at = HEADER_BYTES;
    while at < content.len() {
        let codes = at + ROW_HEADER_BYTES;
        if codes > content.len() {
            return Err(damaged);
        }
        let n_head = number::<4>(content, at + 12) as usize;
        let end = codes.checked_add(vocab_size).and_then(|end| end.checked_add(n_head.checked_mul(2)?));
        let end = end.filter(|&end| end <= content.len());
        let Some(end) = end else { return Err(damaged) };
        let nll = f64::from_bits(number::<8>(content, at));
        rows.push(Row { codes, n_head, nll, top: number::<4>(content, at + 8) as usize });
        at = end;
    }
    if rows.len() as u64 == n_rows { Ok(rows) } else { Err(damaged) }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

impl BaselineError {
    /// Whether there simply is no such file yet.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::File(error) if error.source.kind() == io::ErrorKind::NotFound)
    }
}
