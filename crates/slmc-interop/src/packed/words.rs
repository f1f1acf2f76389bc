//! Levels in 32-bit words, and matrices turned over.

/// Levels of a word of `bits` each: only whole ones.
pub(super) const fn per_word(bits: u8) -> usize {
    32 / bits as usize
}

/// Packs each row of `[rows, columns]` into words, the last one filled with zeros: `[rows, ⌈columns / per word⌉]`.
/// Place `i` of a word, from its low bits up, holds the word's column `order(i)`.
pub(super) fn pack(levels: &[u8], columns: usize, bits: u8, order: impl Fn(usize) -> usize) -> Vec<u32> {
    let n = per_word(bits);
    let mut words = Vec::with_capacity(levels.len().div_ceil(n));
    for row in levels.chunks_exact(columns.max(1)) {
        for run in row.chunks(n) {
            let level = |i: usize| run.get(order(i)).map_or(0, |&level| u32::from(level));
            words.push((0..n).fold(0, |word, i| word | level(i) << (i * usize::from(bits))));
        }
    }
    words
}

/// The levels that [`pack`] packed.
pub(super) fn unpack(words: &[u32], columns: usize, bits: u8, order: impl Fn(usize) -> usize) -> Vec<u8> {
    let n = per_word(bits);
    let mask = ((1_u32 << bits) - 1) as u8;
    let words_a_row = columns.div_ceil(n).max(1);
    let mut levels = Vec::with_capacity(words.len() / words_a_row * columns);
    for row in words.chunks_exact(words_a_row) {
        let first = levels.len();
        levels.resize(first + columns, 0);
        for (run, word) in levels[first..].chunks_mut(n).zip(row) {
            for i in 0..n {
                if let Some(level) = run.get_mut(order(i)) {
                    *level = (word >> (i * usize::from(bits))) as u8 & mask;
                }
            }
        }
    }
    levels
}

/// `[rows, columns]` as `[columns, rows]`.
pub(super) fn transpose<T: Copy>(numbers: &[T], columns: usize) -> Vec<T> {
    let rows = numbers.len().checked_div(columns).unwrap_or(0);
    let mut out = Vec::with_capacity(numbers.len());
    for column in 0..columns {
        out.extend((0..rows).map(|row| numbers[row * columns + column]));
    }
    out
}

/// Words as bytes, little-endian.
pub(super) fn to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Bytes as words.
pub(super) fn from_bytes(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// Scales as f16; they are exact in it.
pub(super) fn half_bytes(scales: &[f32]) -> Vec<u8> {
    scales.iter().flat_map(|&scale| slmc_blocks::f32_to_f16(scale).to_le_bytes()).collect()
}

/// f16 as numbers.
pub(super) fn from_halves(bytes: &[u8]) -> Vec<f32> {
    from_halves_of(bytes, slmc_blocks::f16_to_f32)
}

/// Numbers of 16 bits, by what their bits stand for.
pub(super) fn from_halves_of(bytes: &[u8], number: impl Fn(u16) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|half| number(u16::from_le_bytes(*half))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_filled_from_their_low_bits() {
        let levels: Vec<u8> = (0..10).chain(5..15).collect();
        let words = pack(&levels, 10, 4, |i| i);
        assert_eq!(words, [0x7654_3210, 0x98, 0xcba9_8765, 0xed]);
        assert_eq!(unpack(&words, 10, 4, |i| i), levels);
        let awq = [0, 2, 4, 6, 1, 3, 5, 7];
        let words = pack(&levels[..8], 8, 4, |i| awq[i]);
        assert_eq!(words, [0x7531_6420]);
        assert_eq!(unpack(&words, 8, 4, |i| awq[i]), levels[..8]);
        assert_eq!(pack(&[1, 2, 3, 255], 4, 8, |i| i), [0xff03_0201]);
    }

    #[test]
    fn a_matrix_turned_over_twice_is_itself() {
        let numbers = [1, 2, 3, 4, 5, 6];
        assert_eq!(transpose(&numbers, 3), [1, 4, 2, 5, 3, 6]);
        assert_eq!(transpose(&transpose(&numbers, 3), 2), numbers);
    }
}
