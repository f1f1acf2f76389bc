//! The 6-bit scales and minimums of Q4_K and Q5_K: eight of each in 12 bytes.

/// Scale and minimum of group `group` (0 to 7). Bytes 0-3 and 4-7 hold the first four scales and minimums in
/// their low six bits; the others have four bits in bytes 8-11 and two in the tops of the first eight.
#[inline(always)]
pub(crate) fn scale_and_min(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4,
            (packed[group + 4] >> 4) | (packed[group] >> 6) << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

/// Adds scale and minimum of a group, six bits each, to bytes that are zero where they go.
#[inline(always)]
pub(crate) fn put_scale_and_min(packed: &mut [u8], group: usize, scale: u8, min: u8) {
    if group < 4 {
        packed[group] |= scale & 63;
        packed[group + 4] |= min & 63;
    } else {
        packed[group + 4] = (scale & 15) | min << 4;
        packed[group - 4] |= (scale >> 4 & 3) << 6;
        packed[group] |= (min >> 4 & 3) << 6;
    }
}
