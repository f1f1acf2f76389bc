//! Two streams in one batch, in a fixed proportion.

use crate::{Batch, Batches};

/// Batches whose rows come from two streams: of any `n` rows from the first on, `⌊n · share⌋` are the second's. A pure
/// function of the index, as [`Batches`] are.
pub struct Mixture {
    first: Batches,
    second: Batches,
    share: f64,
}

/// Streams that do not go into one batch.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MixtureError {
    /// The share is not one.
    #[error("the share of the second stream is {0}: it is between 0 and 1")]
    Share(f64),
    /// The batches differ in size.
    #[error("batches of {first:?} and of {second:?} rows and tokens do not mix")]
    Sizes {
        /// Rows and tokens of the first stream's batches.
        first: [usize; 2],
        /// Those of the second's.
        second: [usize; 2],
    },
}

impl Mixture {
    /// Mixes two streams of batches of one size.
    ///
    /// # Errors
    /// When the sizes differ, or `share` is not between 0 and 1.
    pub fn new(first: Batches, second: Batches, share: f64) -> Result<Self, MixtureError> {
        if !(0.0..=1.0).contains(&share) {
            return Err(MixtureError::Share(share));
        }
        if first.sizes() != second.sizes() {
            return Err(MixtureError::Sizes { first: first.sizes(), second: second.sizes() });
        }
        Ok(Self { first, second, share })
    }

    /// The first stream.
    pub fn first(&self) -> &Batches {
        &self.first
    }

    /// Batch number `index`, from 0 without end.
    pub fn batch(&self, index: u64) -> Batch {
        let mut batch = self.first.empty_batch(self.first.has_mask() || self.second.has_mask());
        let n_rows = u128::from(index) * batch.batch_size as u128;
        for row in n_rows..n_rows + batch.batch_size as u128 {
            let before = of_second(row, self.share);
            if of_second(row + 1, self.share) > before {
                self.second.push_place(before, &mut batch);
            } else {
                self.first.push_place(row - before, &mut batch);
            }
        }
        batch
    }
}

/// Rows of the second stream among the first `n`.
fn of_second(n: u128, share: f64) -> u128 {
    (n as f64 * share).floor() as u128
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::PackedTokens;

    fn batches(first: u32, n: u32, batch_size: usize) -> Batches {
        let tokens = Arc::new(PackedTokens::from_tokens((first..first + n).collect()));
        Batches::new(tokens, 4, batch_size, 3).unwrap()
    }

    fn rows(batches: impl Fn(u64) -> Batch, n: u64) -> Vec<Vec<u32>> {
        (0..n).flat_map(|i| batches(i).inputs.chunks(4).map(<[u32]>::to_vec).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn rows_come_in_the_proportion_and_in_each_streams_own_order() {
        for share in [0.0, 0.25, 0.3, 0.5, 1.0] {
            let mixture = Mixture::new(batches(0, 101, 3), batches(1000, 41, 3), share).unwrap();
            let all = rows(|i| mixture.batch(i), 40);
            let (second, first): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|row| row[0] >= 1000);
            assert_eq!(second.len(), (120.0 * share).floor() as usize, "{share}");
            assert_eq!(first[..], rows(|i| batches(0, 101, 3).batch(i), 40)[..first.len()]);
            assert_eq!(second[..], rows(|i| batches(1000, 41, 3).batch(i), 40)[..second.len()]);
            assert_eq!(mixture.batch(17), mixture.batch(17));
        }
    }

    #[test]
    fn what_does_not_mix_is_said() {
        let bad = Mixture::new(batches(0, 41, 3), batches(0, 41, 3), 1.5);
        assert_eq!(bad.err(), Some(MixtureError::Share(1.5)));
        let bad = Mixture::new(batches(0, 41, 3), batches(0, 41, 2), 0.5);
        assert_eq!(bad.err(), Some(MixtureError::Sizes { first: [3, 4], second: [2, 4] }));
    }
}
