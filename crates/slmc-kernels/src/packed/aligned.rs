//! Memory for laid-out weights: beginning on cache lines, and in huge pages where the system has them.
//!
//! Weights are read once a token from end to end. With pages of 4 KiB the CPU's look-ahead stops at every page's end,
//! and reading is a third slower; huge pages must be asked for, and only pieces of megabytes can have them. So
//! the matrices of a model share one [`Store`].

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use memmap2::{MmapMut, MmapOptions};

/// Bytes of a cache line, and of the widest register.
pub(super) const LINE: usize = 64;
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Memory that many matrices share, handed out from the front and freed with the last of them.
///
/// It costs what is used, rounded up to huge pages, not what is asked for.
#[derive(Clone, Debug)]
pub struct Store {
    map: Arc<Map>,
}

#[derive(Debug)]
struct Map {
    /// Never touched but through `data`: parts of it are written while others are read.
    _map: MmapMut,
    data: *mut u8,
    len: usize,
    used: AtomicUsize,
}

// SAFETY: every part of the mapping is handed out once, to one writer, and is only read afterwards.
#[allow(unsafe_code)]
unsafe impl Send for Map {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Map {}

impl Store {
    /// Room for `n_bytes` of laid-out weights; see [`PackedMatrix::bytes_for`](super::PackedMatrix::bytes_for).
    ///
    /// # Errors
    /// When the system has no such room.
    pub fn new(n_bytes: usize) -> std::io::Result<Self> {
        let len = n_bytes.checked_add(HUGE).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mut map = MmapOptions::new().len(len).map_anon()?;
        // Without huge pages it is slower, not wrong.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let data = map.as_mut_ptr();
        let first = data.align_offset(HUGE).min(HUGE);
        let map = Map { data, len, used: AtomicUsize::new(first), _map: map };
        Ok(Self { map: Arc::new(map) })
    }

    /// Where `n_bytes` begin that nobody else has or gets; nothing when there is no room for them.
    fn take(&self, n_bytes: usize) -> Option<usize> {
        let n_bytes = n_bytes.checked_next_multiple_of(LINE)?;
        let end = |used: usize| used.checked_add(n_bytes).filter(|&end| end <= self.map.len);
        self.map.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end).ok()
    }
}

/// Bytes that begin on a cache line, whole cache lines, written once.
#[derive(Clone)]
pub(crate) struct AlignedBytes {
    memory: Memory,
    len: usize,
}

#[derive(Clone)]
enum Memory {
    Own(Arc<Vec<CacheLine>>),
    Shared { store: Store, first: usize },
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; LINE]);

impl AlignedBytes {
    /// `n_records` times `record` bytes, rounded up to whole lines, zeros that `fill` writes over: in the store, or in
    /// memory of their own when it has no room. Nothing when they are more than can be addressed.
    pub(crate) fn new(
        n_records: usize,
        record: usize,
        store: Option<&Store>,
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<Self> {
        let len = n_records.checked_mul(record).filter(|&n| n <= isize::MAX as usize - LINE)?;
        let len = len.next_multiple_of(LINE);
        if let Some((store, first)) = store.and_then(|store| Some((store, store.take(len)?))) {
            // SAFETY: `take` gave these bytes of the mapping to this call alone, and they are zero as mapped.
            #[allow(unsafe_code)]
            fill(unsafe { std::slice::from_raw_parts_mut(store.map.data.add(first), len) });
            return Some(Self { memory: Memory::Shared { store: store.clone(), first }, len });
        }
        let mut lines = vec![CacheLine([0; LINE]); len / LINE];
        // SAFETY: a cache line is its bytes without padding, and the vector's are one after the other.
        #[allow(unsafe_code)]
        fill(unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) });
        Some(Self { memory: Memory::Own(Arc::new(lines)), len })
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        let data = match &self.memory {
            Memory::Own(lines) => lines.as_ptr().cast::<u8>(),
            Memory::Shared { store, first } => store.map.data.wrapping_add(*first).cast_const(),
        };
        // SAFETY: as many bytes were written there, nobody writes them again, and the memory lives as long as `self`.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(data, self.len)
        }
    }
}

impl std::fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBytes({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_store_are_apart_and_outlive_it() {
        let store = Store::new(1000).unwrap();
        let parts: Vec<_> = (1..=5_u8)
            .map(|i| {
                AlignedBytes::new(3, 50 * usize::from(i), Some(&store), |bytes| {
                    assert!(bytes.iter().all(|&b| b == 0));
                    bytes.fill(i);
                })
            })
            .collect();
        drop(store);
        for (i, part) in (1..=5_u8).zip(parts) {
            let part = part.unwrap();
            assert_eq!(part.as_slice(), vec![i; (150 * usize::from(i)).next_multiple_of(LINE)]);
            assert!(part.as_slice().as_ptr().cast::<CacheLine>().is_aligned());
        }
    }

    #[test]
    fn what_has_no_room_gets_its_own() {
        let store = Store::new(0).unwrap();
        let large = AlignedBytes::new(3, HUGE, Some(&store), |bytes| bytes.fill(7)).unwrap();
        assert!(matches!(large.memory, Memory::Own(_)));
        assert!(large.as_slice().iter().all(|&b| b == 7));
        assert!(AlignedBytes::new(usize::MAX, 2, Some(&store), |_| {}).is_none());
        assert!(Store::new(usize::MAX).is_err());
    }
}
