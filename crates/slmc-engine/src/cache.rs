//! Keys and values of the tokens so far, of every block.

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
    fn narrow(x: f32) -> Self;
    /// The numbers as f32: themselves, or converted into `room`.
    fn widen<'a>(numbers: &'a [Self], room: &'a mut [f32]) -> &'a [f32];
}

impl Element for f32 {
    fn narrow(x: f32) -> Self {
        x
    }
    fn widen<'a>(numbers: &'a [Self], _room: &'a mut [f32]) -> &'a [f32] {
        numbers
    }
}

impl Element for u16 {
    fn narrow(x: f32) -> Self {
        slmc_blocks::f32_to_f16(x)
    }
    fn widen<'a>(numbers: &'a [Self], room: &'a mut [f32]) -> &'a [f32] {
        let room = &mut room[..numbers.len()];
        for (wide, &bits) in room.iter_mut().zip(numbers) {
            *wide = slmc_blocks::f16_to_f32(bits);
        }
        room
    }
}

/// Keys and values of one block, each `[n_kv_heads, capacity, d_head]`.
#[derive(Debug)]
pub(crate) struct Layer<T> {
    pub keys: Vec<T>,
    pub values: Vec<T>,
}

/// Keys and values of every block.
#[derive(Debug)]
pub(crate) enum Layers {
    F16(Vec<Layer<u16>>),
    F32(Vec<Layer<f32>>),
}

impl Layers {
    /// Room for `n_layers` blocks of `n` keys' and `n` values' numbers. Pages are the system's until they are
    /// written to, so a long context that stays short costs little.
    pub fn new(kv: KvType, n_layers: usize, n: usize) -> Self {
        match kv {
            KvType::F16 => Self::F16((0..n_layers).map(|_| Layer::new(n)).collect()),
            KvType::F32 => Self::F32((0..n_layers).map(|_| Layer::new(n)).collect()),
        }
    }
}

impl<T: Element> Layer<T> {
    fn new(n: usize) -> Self {
        Self { keys: vec![T::default(); n], values: vec![T::default(); n] }
    }
}
