//! Keys and values of the tokens so far, of every block.

use slmc_kernels::cached::{Cached, CachedHead, key_place, padded, to_bytes};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half precision: half the memory, and half the bytes that attention reads.
    #[default]
    F16,
    /// Single precision: as computed.
    F32,
    /// Bytes, with a scale for each key and each value of a head: little more than half of `F16`.
    Int8,
}

/// A number as the cache keeps it.
pub(crate) trait Element: Copy + Default + Send + Sync {
    /// Whether numbers are multiples of a scale of their key or value.
    const SCALED: bool = false;
    /// Converts a key or a value, and returns its scale.
    fn narrow(numbers: &[f32], kept: &mut [Self]) -> f32;
    fn cached<'a>(numbers: &'a [Self], scales: &'a [f32]) -> Cached<'a>;
}

impl Element for f32 {
    fn narrow(numbers: &[f32], kept: &mut [Self]) -> f32 {
        kept.copy_from_slice(numbers);
        1.0
    }
    fn cached<'a>(numbers: &'a [Self], _: &'a [f32]) -> Cached<'a> {
        Cached::F32(numbers)
    }
}

impl Element for u16 {
    fn narrow(numbers: &[f32], kept: &mut [Self]) -> f32 {
        slmc_kernels::to_halves(numbers, kept);
        1.0
    }
    fn cached<'a>(numbers: &'a [Self], _: &'a [f32]) -> Cached<'a> {
        Cached::F16(numbers)
    }
}

impl Element for i8 {
    const SCALED: bool = true;
    fn narrow(numbers: &[f32], kept: &mut [Self]) -> f32 {
        to_bytes(numbers, kept)
    }
    fn cached<'a>(numbers: &'a [Self], scales: &'a [f32]) -> Cached<'a> {
        Cached::Int8 { numbers, scales }
    }
}

/// Keys and values of one block, head after head, each as [`CachedHead`] has them.
#[derive(Debug)]
pub(crate) struct Layer<T> {
    keys: Vec<T>,
    values: Vec<T>,
    /// Of keys and of values, `[n_heads, capacity]` each; empty where numbers have none.
    scales: [Vec<f32>; 2],
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
    Int8(Vec<Layer<i8>>),
}

impl Layers {
    /// Room for `n_layers` blocks of `n_heads` heads. Pages are the system's until they are written to, so a long
    /// context that stays short costs little.
    pub fn new(kv: KvType, n_layers: usize, n_heads: usize, size: HeadSize) -> Self {
        match kv {
            KvType::F16 => Self::F16((0..n_layers).map(|_| Layer::new(n_heads, size)).collect()),
            KvType::F32 => Self::F32((0..n_layers).map(|_| Layer::new(n_heads, size)).collect()),
            KvType::Int8 => Self::Int8((0..n_layers).map(|_| Layer::new(n_heads, size)).collect()),
        }
    }
}

impl<T: Element> Layer<T> {
    fn new(n_heads: usize, size: HeadSize) -> Self {
        let n = n_heads * size.capacity;
        let [keys, values] = [n * size.d, n * padded(size.d)].map(|n| vec![T::default(); n]);
        let scales = [(); 2].map(|()| vec![0.0; if T::SCALED { n } else { 0 }]);
        Self { keys, values, scales, size }
    }

    /// What attention reads of a head.
    pub fn head(&self, head: usize) -> CachedHead<'_> {
        let HeadSize { d, capacity } = self.size;
        let places = head * capacity..(head + 1) * capacity;
        let of = |width: usize| places.start * width..places.end * width;
        let [key_scales, value_scales] =
            [0, 1].map(|of| if T::SCALED { &self.scales[of][places.clone()] } else { &[] });
        CachedHead {
            keys: T::cached(&self.keys[of(d)], key_scales),
            values: T::cached(&self.values[of(padded(d))], value_scales),
            d,
        }
    }

    /// Every head's keys and values, to be written: `[keys, values]`.
    pub fn heads_mut(&mut self) -> impl Iterator<Item = HeadMut<'_, T>> {
        let HeadSize { d, capacity } = self.size;
        let keys = self.keys.chunks_exact_mut(capacity * d);
        let values = self.values.chunks_exact_mut(capacity * padded(d));
        let none = || std::iter::repeat_with(|| &mut [] as &mut [f32]);
        let [key_scales, value_scales] =
            self.scales.each_mut().map(|scales| scales.chunks_exact_mut(capacity).chain(none()));
        keys.zip(values).zip(key_scales.zip(value_scales)).map(
            move |((keys, values), (of_keys, of_values))| HeadMut {
                keys,
                values,
                scales: [of_keys, of_values],
                d,
            },
        )
    }
}

/// A head to be written.
pub(crate) struct HeadMut<'a, T> {
    keys: &'a mut [T],
    values: &'a mut [T],
    scales: [&'a mut [f32]; 2],
    d: usize,
}

/// Numbers of a head that are converted where no room has to be made for them.
const AT_ONCE: usize = 256;

impl<T: Element> HeadMut<'_, T> {
    /// Keeps a key and a value, each `[d]`, at a position.
    pub fn keep(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let d = self.d;
        let mut room = [T::default(); AT_ONCE];
        let mut larger = Vec::new();
        let kept = if d > AT_ONCE {
            larger.resize(d, T::default());
            &mut larger[..]
        } else {
            &mut room[..d]
        };
        let of_key = T::narrow(key, kept);
        let (first, apart) = key_place(position, d);
        let places = self.keys[first..].iter_mut().step_by(apart);
        places.zip(&*kept).for_each(|(place, number)| *place = *number);
        let of_value = T::narrow(value, &mut self.values[position * padded(d)..][..d]);
        if T::SCALED {
            self.scales[0][position] = of_key;
            self.scales[1][position] = of_value;
        }
    }
}
