//! Keys and values of the tokens so far, of every block.

use slmc_kernels::cached::{Cached, CachedHead, key_place, padded};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half precision: half the memory, and half the bytes that attention reads.
    #[default]
    F16,
    /// Single precision: as computed.
    F32,
}

/// A number as the cache keeps it.
pub(crate) trait Element: Copy + Default + Send + Sync {
    fn narrow(numbers: &[f32], kept: &mut [Self]);
    fn cached(numbers: &[Self]) -> Cached<'_>;
}

impl Element for f32 {
    fn narrow(numbers: &[f32], kept: &mut [Self]) {
        kept.copy_from_slice(numbers);
    }
    fn cached(numbers: &[Self]) -> Cached<'_> {
        Cached::F32(numbers)
    }
}

impl Element for u16 {
    fn narrow(numbers: &[f32], kept: &mut [Self]) {
        slmc_kernels::to_halves(numbers, kept);
    }
    fn cached(numbers: &[Self]) -> Cached<'_> {
        Cached::F16(numbers)
    }
}

/// Keys and values of one block, head after head, each as [`CachedHead`] has them.
#[derive(Debug)]
pub(crate) struct Layer<T> {
    keys: Vec<T>,
    values: Vec<T>,
    size: HeadSize,
}

/// Room of a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadSize {
    pub d: usize,
    /// Positions, whole tiles of them.
    capacity: usize,
}

impl HeadSize {
    /// Room for `capacity` keys of `d` numbers.
    pub fn new(d: usize, capacity: usize) -> Self {
        // A tile has as many keys as a row of values is padded to.
        Self { d, capacity: padded(capacity) }
    }
}

/// Keys and values of every block.
#[derive(Debug)]
pub(crate) enum Layers {
    F16(Vec<Layer<u16>>),
    F32(Vec<Layer<f32>>),
}

impl Layers {
    /// Room for `n_layers` blocks of `n_heads` heads. Pages are the system's until they are written to, so a long
    /// context that stays short costs little.
    pub fn new(kv: KvType, n_layers: usize, n_heads: usize, size: HeadSize) -> Self {
        match kv {
            KvType::F16 => Self::F16((0..n_layers).map(|_| Layer::new(n_heads, size)).collect()),
            KvType::F32 => Self::F32((0..n_layers).map(|_| Layer::new(n_heads, size)).collect()),
        }
    }
}

impl<T: Element> Layer<T> {
    fn new(n_heads: usize, size: HeadSize) -> Self {
        let n = n_heads * size.capacity;
        let [keys, values] = [n * size.d, n * padded(size.d)].map(|n| vec![T::default(); n]);
        Self { keys, values, size }
    }

    /// What attention reads of a head.
    pub fn head(&self, head: usize) -> CachedHead<'_> {
        let HeadSize { d, capacity } = self.size;
        let keys = &self.keys[head * capacity * d..(head + 1) * capacity * d];
        let values = &self.values[head * capacity * padded(d)..(head + 1) * capacity * padded(d)];
        CachedHead { keys: T::cached(keys), values: T::cached(values), d }
    }

    /// Every head's keys and values, to be written: `[keys, values]`.
    pub fn heads_mut(&mut self) -> impl Iterator<Item = HeadMut<'_, T>> {
        let HeadSize { d, capacity } = self.size;
        let keys = self.keys.chunks_exact_mut(capacity * d);
        let values = self.values.chunks_exact_mut(capacity * padded(d));
        keys.zip(values).map(move |(keys, values)| HeadMut { keys, values, d })
    }
}

/// A head to be written.
pub(crate) struct HeadMut<'a, T> {
    keys: &'a mut [T],
    values: &'a mut [T],
    d: usize,
}

/// Numbers of a head that are converted at once.
const AT_ONCE: usize = 64;

impl<T: Element> HeadMut<'_, T> {
    /// Keeps a key and a value, each `[d]`, at a position.
    pub fn keep(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let d = self.d;
        let (first, apart) = key_place(position, d);
        let mut room = [T::default(); AT_ONCE];
        for (i, part) in key.chunks(AT_ONCE).enumerate() {
            let kept = &mut room[..part.len()];
            T::narrow(part, kept);
            let places = self.keys[first + i * AT_ONCE * apart..].iter_mut().step_by(apart);
            places.zip(kept).for_each(|(place, number)| *place = *number);
        }
        T::narrow(value, &mut self.values[position * padded(d)..][..d]);
    }
}
