//! Sharing out the parts of a buffer among a team, without two threads ever holding the same part.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use slmc_kernels::Team;

/// Calls `task(i, chunk)` with each chunk of `len` numbers of `data`; on the calling thread alone when `team` is
/// `None`, and then without allocating.
pub(crate) fn for_chunks<T: Send>(
    team: Option<&Team>,
    data: &mut [T],
    len: usize,
    task: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    let Some(team) = team else {
        data.chunks_mut(len).enumerate().for_each(|(i, chunk)| task(i, chunk));
        return;
    };
    let chunks: Vec<Mutex<&mut [T]>> = data.chunks_mut(len).map(Mutex::new).collect();
    team.run(chunks.len(), &|i| task(i, &mut lock(&chunks[i])));
}

/// Calls `task(i, part)` with each part; on the calling thread alone when `team` is `None`, and then without allocating.
pub(crate) fn for_each_part<T: Send>(
    team: Option<&Team>,
    parts: impl Iterator<Item = T>,
    task: &(dyn Fn(usize, &mut T) + Sync),
) {
    let Some(team) = team else {
        parts.enumerate().for_each(|(i, mut part)| task(i, &mut part));
        return;
    };
    let parts: Vec<Mutex<T>> = parts.map(Mutex::new).collect();
    team.run(parts.len(), &|i| task(i, &mut lock(&parts[i])));
}

/// The lock; what a thread that panicked left is overwritten by whoever comes next.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Any of the slots that nobody works in; there are as many as threads, so one is always free.
pub(crate) fn free_slot<T>(slots: &[Mutex<T>]) -> MutexGuard<'_, T> {
    loop {
        for slot in slots {
            match slot.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(error)) => return error.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        std::hint::spin_loop();
    }
}

/// The first `n` numbers, after making room for them. Allocates only when `n` is more than ever before.
pub(crate) fn sized<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) -> &mut [T] {
    if buffer.len() < n {
        buffer.resize(n, T::default());
    }
    &mut buffer[..n]
}

/// Numbers that begin on a cache line: where the tiles of a product do, too, two threads never write to the same line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    all: Vec<f32>,
    first: usize,
}

impl Lines {
    /// Numbers of a cache line.
    const LINE: usize = 16;

    /// The first `n` numbers, after making room for them. Allocates only when `n` is more than ever before.
    pub fn sized(&mut self, n: usize) -> &mut [f32] {
        if self.all.len() < self.first + n {
            self.all.resize(n + Self::LINE, 0.0);
            let first = self.all.as_ptr().align_offset(Self::LINE * size_of::<f32>());
            // Nothing but speed depends on it, should there be no such place.
            self.first = if first < Self::LINE { first } else { 0 };
        }
        &mut self.all[self.first..self.first + n]
    }
}

impl std::ops::Deref for Lines {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.all[self.first..]
    }
}

impl std::ops::DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.all[self.first..]
    }
}

#[cfg(test)]
mod tests {
    use super::Lines;

    #[test]
    fn lines_begin_on_cache_lines_and_keep_their_length() {
        let mut lines = Lines::default();
        assert!(lines.is_empty());
        for n in [1, 16, 1000, 7, 100_000] {
            let part = lines.sized(n);
            assert_eq!((part.len(), part.as_ptr().addr() % 64), (n, 0));
        }
    }
}
