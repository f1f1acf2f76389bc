//! Sums over a group in eight lanes, so that they are SIMD and have one order on every machine.

/// Numbers side by side.
pub(super) const LANES: usize = 8;

/// Adds lanes up, in pairs.
#[inline(always)]
pub(super) fn total(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Smallest and largest of some numbers.
#[inline(always)]
pub(super) fn extremes<const N: usize>(numbers: &[f32; N]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for lane in numbers.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            low[i] = if lane[i] < low[i] { lane[i] } else { low[i] };
            high[i] = if lane[i] > high[i] { lane[i] } else { high[i] };
        }
    }
    let (mut smallest, mut largest) = (low[0], high[0]);
    for i in 1..LANES {
        smallest = if low[i] < smallest { low[i] } else { smallest };
        largest = if high[i] > largest { high[i] } else { largest };
    }
    (smallest, largest)
}
