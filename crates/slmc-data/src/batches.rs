//! Training batches as a pure function of seed and index, so that training resumes at any step.
//!
//! The stream is cut into windows of `seq_len + 1` tokens that overlap by one, so every token but the first is a
//! target once; what fills no window at the stream's end is left out. Each epoch visits every window once, in an order drawn from `(seed, epoch)`; the orders of the
//! epochs stand one after the other, and batch `i` takes places `i * batch_size ..` of that endless row.

use std::sync::{Arc, Mutex, PoisonError};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use slmc_ir::TokenId;

use crate::{PackedRows, PackedTokens};

/// Most tokens in a batch.
const MAX_BATCH_TOKENS: usize = 1 << 30;

/// Data from which no batch can be cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A size of zero.
    #[error("seq_len and batch_size must be at least 1, but are {seq_len} and {batch_size}")]
    Empty {
        /// Tokens of a row.
        seq_len: usize,
        /// Rows of a batch.
        batch_size: usize,
    },
    /// More tokens than a batch may have.
    #[error(
        "{batch_size} rows of {seq_len} tokens are more than the {MAX_BATCH_TOKENS} that a batch may have"
    )]
    TooLarge {
        /// Tokens of a row.
        seq_len: usize,
        /// Rows of a batch.
        batch_size: usize,
    },
    /// Fewer tokens than one window.
    #[error("the data has {n_tokens} tokens, fewer than the {} of one row: use more data or a smaller seq_len", .seq_len.saturating_add(1))]
    TooShort {
        /// Tokens there are.
        n_tokens: usize,
        /// Tokens of a row.
        seq_len: usize,
    },
    /// No token is learnt from.
    #[error("no token of the data is learnt from: are there no assistant's turns or completions?")]
    NothingScored,
}

/// One training batch; all arrays are row by row, `[batch_size, seq_len]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The tokens that go in.
    pub inputs: Vec<TokenId>,
    /// The token after each of them.
    pub targets: Vec<TokenId>,
    /// Whether each target counts; `None` where all do. No row is wholly `false`.
    pub loss_mask: Option<Vec<bool>>,
    /// Where in its row each position's document begins: attention looks no further back. `None` where it looks across
    /// borders.
    pub starts: Option<Vec<u32>>,
    /// Rows.
    pub batch_size: usize,
    /// Tokens of a row.
    pub seq_len: usize,
}

/// Cuts a stream into batches.
pub struct Batches {
    tokens: Arc<PackedTokens>,
    /// First token of each window that holds something to learn.
    windows: Vec<usize>,
    /// Beside the tokens, where in its row each one's document begins.
    starts: Option<Vec<u32>>,
    seq_len: usize,
    batch_size: usize,
    seed: u64,
    /// The orders of the last two epochs asked for: only to save time, never part of the result.
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

impl Batches {
    /// Batches of `batch_size` rows of `seq_len` tokens.
    ///
    /// # Errors
    /// When the stream is shorter than one row, or nothing in it is learnt from.
    pub fn new(
        tokens: Arc<PackedTokens>,
        seq_len: usize,
        batch_size: usize,
        seed: u64,
    ) -> Result<Self, BatchError> {
        if seq_len == 0 || batch_size == 0 {
            return Err(BatchError::Empty { seq_len, batch_size });
        }
        let n_tokens = tokens.tokens().len();
        let n_windows = n_tokens.saturating_sub(1) / seq_len;
        if n_windows == 0 {
            return Err(BatchError::TooShort { n_tokens, seq_len });
        }
        if seq_len.checked_mul(batch_size).is_none_or(|n| n > MAX_BATCH_TOKENS) {
            return Err(BatchError::TooLarge { seq_len, batch_size });
        }
        let has_target = |&start: &usize| match tokens.scored() {
            None => true,
            Some(scored) => scored[start + 1..=start + seq_len].contains(&true),
        };
        // More than 2^32 windows would not fit a machine's memory as tokens either.
        let windows: Vec<usize> =
            (0..n_windows.min(u32::MAX as usize)).map(|i| i * seq_len).filter(has_target).collect();
        if windows.is_empty() {
            return Err(BatchError::NothingScored);
        }
        Ok(Self { tokens, windows, starts: None, seq_len, batch_size, seed, orders: Mutex::new(Vec::new()) })
    }

    /// Batches of `batch_size` rows of whole documents.
    ///
    /// # Errors
    /// When there is no row.
    pub fn of_rows(rows: PackedRows, batch_size: usize, seed: u64) -> Result<Self, BatchError> {
        let PackedRows { tokens, scored, starts, seq_len, .. } = rows;
        if seq_len == 0 || batch_size == 0 {
            return Err(BatchError::Empty { seq_len, batch_size });
        }
        if seq_len.checked_mul(batch_size).is_none_or(|n| n > MAX_BATCH_TOKENS) {
            return Err(BatchError::TooLarge { seq_len, batch_size });
        }
        let windows: Vec<usize> = (0..tokens.len()).step_by(seq_len + 1).take(u32::MAX as usize).collect();
        if windows.is_empty() {
            return Err(BatchError::NothingScored);
        }
        let (tokens, starts) = (Arc::new(PackedTokens::from_scored(tokens, scored)), Some(starts));
        Ok(Self { tokens, windows, starts, seq_len, batch_size, seed, orders: Mutex::new(Vec::new()) })
    }

    /// Windows in the stream, each seen once an epoch.
    pub fn n_windows(&self) -> u64 {
        self.windows.len() as u64
    }

    /// Batches until every window was seen at least once; the last one may begin the next epoch.
    pub fn n_batches_per_epoch(&self) -> u64 {
        self.n_windows().div_ceil(self.batch_size as u64)
    }

    /// Tokens that go in with each batch.
    pub fn n_tokens_per_batch(&self) -> u64 {
        (self.seq_len as u64).saturating_mul(self.batch_size as u64)
    }

    /// Rows of a batch, and tokens of a row.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        [self.batch_size, self.seq_len]
    }

    /// Whether some tokens are not learnt from.
    pub(crate) fn has_mask(&self) -> bool {
        self.tokens.scored().is_some()
    }

    /// Batch number `index`, from 0 without end. The same for the same data, sizes and seed, on any machine, in any
    /// order of asking.
    pub fn batch(&self, index: u64) -> Batch {
        self.batch_of(index, &|place| place)
    }

    /// Batch number `index` of the windows that the first epoch comes to last, the last one first: what a training has not come
    /// to yet, as long as both together are less than an epoch.
    pub fn batch_from_the_end(&self, index: u64) -> Batch {
        // Beyond the epoch's beginning from its end again.
        let n_windows = u128::from(self.n_windows());
        self.batch_of(index, &|n| n_windows - 1 - n % n_windows)
    }

    /// The rows of a batch, each at the place that its number is given.
    fn batch_of(&self, index: u64, place_of: &dyn Fn(u128) -> u128) -> Batch {
        let first = u128::from(index) * self.batch_size as u128;
        let mut batch = self.empty_batch(self.has_mask());
        (first..first + self.batch_size as u128).for_each(|row| self.push_place(place_of(row), &mut batch));
        batch
    }

    /// A batch with room for its rows.
    pub(crate) fn empty_batch(&self, has_mask: bool) -> Batch {
        let n_elements = self.batch_size * self.seq_len;
        Batch {
            inputs: Vec::with_capacity(n_elements),
            targets: Vec::with_capacity(n_elements),
            loss_mask: has_mask.then(|| Vec::with_capacity(n_elements)),
            starts: self.starts.is_some().then(|| Vec::with_capacity(n_elements)),
            batch_size: self.batch_size,
            seq_len: self.seq_len,
        }
    }

    /// Adds the window at a place of the endless row of epochs.
    pub(crate) fn push_place(&self, place: u128, batch: &mut Batch) {
        let n_windows = u128::from(self.n_windows());
        // Epochs beyond 2^64 repeat; no training gets there.
        let order = self.order((place / n_windows) as u64);
        let start = self.windows[order[(place % n_windows) as usize] as usize];
        self.push_row(start, batch);
    }

    fn push_row(&self, start: usize, batch: &mut Batch) {
        let end = start + self.seq_len;
        batch.inputs.extend_from_slice(&self.tokens.tokens()[start..end]);
        batch.targets.extend_from_slice(&self.tokens.tokens()[start + 1..=end]);
        if let (Some(to), Some(starts)) = (&mut batch.starts, &self.starts) {
            to.extend_from_slice(&starts[start..end]);
        }
        if let Some(mask) = &mut batch.loss_mask {
            match self.tokens.scored() {
                Some(scored) => mask.extend_from_slice(&scored[start + 1..=end]),
                None => mask.extend(std::iter::repeat_n(true, self.seq_len)),
            }
        }
    }

    /// The order in which an epoch visits the windows.
    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(known, _)| *known == epoch) {
            return order.clone();
        }
        let order = Arc::new(shuffled(self.windows.len(), self.seed, epoch));
        if orders.len() == 2 {
            orders.remove(0);
        }
        orders.push((epoch, order.clone()));
        order
    }
}

/// The numbers below `n` in an order drawn from seed and epoch (Fisher and Yates). Written out here, not taken
/// from a library, because the order is part of what a run's seed promises.
fn shuffled(n: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(epoch);
    let mut order: Vec<u32> = (0..n as u32).collect();
    for last in (1..n).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
    order
}

/// A number below `bound`, each equally likely (Lemire 2019, arXiv:1805.10941).
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= bound.wrapping_neg() % bound {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(n_tokens: u32, seq_len: usize, batch_size: usize, seed: u64) -> Batches {
        let tokens = Arc::new(PackedTokens::from_tokens((0..n_tokens).collect()));
        Batches::new(tokens, seq_len, batch_size, seed).unwrap()
    }

    #[test]
    fn targets_are_the_next_tokens() {
        let batch = batches(41, 4, 3, 7).batch(5);
        assert_eq!(batch.inputs.len(), 12);
        assert_eq!(batch.targets, batch.inputs.iter().map(|t| t + 1).collect::<Vec<_>>());
        assert_eq!(batch.loss_mask, None);
    }

    #[test]
    fn an_epoch_sees_each_window_once() {
        // 10 windows, batches of 3: epochs end inside a batch.
        let batches = batches(41, 4, 3, 7);
        assert_eq!((batches.n_windows(), batches.n_batches_per_epoch()), (10, 4));
        let starts: Vec<u32> = (0..10)
            .flat_map(|i| batches.batch(i).inputs.chunks(4).map(|r| r[0]).collect::<Vec<_>>())
            .collect();
        for epoch in starts.chunks(10) {
            let mut seen = epoch.to_vec();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).map(|i| i * 4).collect::<Vec<_>>());
        }
        assert_ne!(starts[..10], starts[10..20], "each epoch has its own order");
    }

    #[test]
    fn from_the_end_come_the_windows_that_an_epoch_comes_to_last() {
        // 10 windows, batches of 3.
        let batches = batches(41, 4, 3, 7);
        let rows = |batch: Batch| batch.inputs.chunks(4).map(<[u32]>::to_vec).collect::<Vec<_>>();
        let there: Vec<_> = (0..4).flat_map(|i| rows(batches.batch(i))).take(10).collect();
        let back: Vec<_> = (0..4).flat_map(|i| rows(batches.batch_from_the_end(i))).collect();
        assert!(back[..10].iter().eq(there.iter().rev()));
        assert_eq!(back[10..], back[..2], "and then from the end again");
    }

    #[test]
    fn a_batch_depends_on_seed_and_index_alone() {
        let forward = batches(4001, 8, 5, 1);
        let backward = batches(4001, 8, 5, 1);
        let all: Vec<Batch> = (0..300).map(|i| forward.batch(i)).collect();
        for i in (0..300).rev() {
            assert_eq!(backward.batch(i), all[i as usize]);
        }
        assert_ne!(batches(4001, 8, 5, 2).batch(0), all[0]);
    }

    #[test]
    fn the_order_is_pinned() {
        // Runs made by earlier versions must resume. The values are those of an independent ChaCha8 in Python.
        assert_eq!(shuffled(8, 0, 0), PINNED[0]);
        assert_eq!(shuffled(8, 0, 1), PINNED[1]);
        assert_eq!(shuffled(8, 1, 0), PINNED[2]);
    }
    const PINNED: [[u32; 8]; 3] =
        [[3, 2, 7, 5, 0, 1, 4, 6], [7, 4, 0, 2, 3, 1, 5, 6], [6, 1, 0, 7, 5, 4, 2, 3]];

    #[test]
    fn a_batch_may_be_larger_than_the_data() {
        let batch = batches(9, 4, 5, 3).batch(0);
        assert_eq!(batch.inputs.len(), 20);
        let twos = batch.inputs.chunks(4).filter(|row| row[0] == 4).count();
        assert!((2..=3).contains(&twos));
    }

    #[test]
    fn data_without_a_window_is_refused() {
        let tokens = Arc::new(PackedTokens::from_tokens(vec![1; 8]));
        let new = |seq_len, batch_size| Batches::new(tokens.clone(), seq_len, batch_size, 0).err();
        assert_eq!(new(8, 1), Some(BatchError::TooShort { n_tokens: 8, seq_len: 8 }));
        assert_eq!(new(7, 1), None);
        assert_eq!(new(0, 1), Some(BatchError::Empty { seq_len: 0, batch_size: 1 }));
        assert!(new(usize::MAX, 1).is_some());
        assert_eq!(new(7, usize::MAX), Some(BatchError::TooLarge { seq_len: 7, batch_size: usize::MAX }));
    }
}
