//! IQ4_NL and IQ4_XS: 4-bit levels that index a table of uneven steps, dense around zero.

use slmc_ir::Format;

use crate::{
    block::{BlockFormat, as_block, as_weights_mut, check_sizes},
    float::{is_scale_finite, scale_at},
};

/// The steps (`kvalues_iq4nl` in ggml).
const STEPS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// 32 weights: an f16 scale, then 16 bytes laid out as in Q4_0: `weight = scale * step[level]`.
pub struct Iq4Nl;
/// 256 weights in 8 groups: f16 scale, 8 high pairs and 8 low halves of the 6-bit group scales, 128 bytes of levels:
/// `weight = scale * (group_scale - 32) * step[level]`.
pub struct Iq4Xs;

const _: () = (check_sizes::<Iq4Nl>(), check_sizes::<Iq4Xs>()).0;

impl BlockFormat for Iq4Nl {
    const FORMAT: Format = Format::Iq4Nl;
    const N_WEIGHTS: usize = 32;
    const N_BYTES: usize = 18;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<18>(block), as_weights_mut::<32>(weights));
        decode_group(scale_at(block, 0), as_block(&block[2..]), weights);
    }

    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0)
    }
}

impl BlockFormat for Iq4Xs {
    const FORMAT: Format = Format::Iq4Xs;
    const N_WEIGHTS: usize = 256;
    const N_BYTES: usize = 136;

    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<136>(block), as_weights_mut::<256>(weights));
        let scale = scale_at(block, 0);
        let high_pairs = u16::from_le_bytes([block[2], block[3]]);
        for (group, run) in weights.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = i32::from(block[4 + group / 2] >> (group % 2 * 4) & 15);
            let high = i32::from(high_pairs >> (group * 2) & 3);
            let group_scale = scale * ((low | high << 4) - 32) as f32;
            let first = 8 + group * 16;
            decode_group(group_scale, as_block(&block[first..first + 16]), run);
        }
    }

    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0)
    }
}

#[inline(always)]
fn decode_group(scale: f32, levels: &[u8; 16], weights: &mut [f32; 32]) {
    for j in 0..16 {
        weights[j] = scale * STEPS[usize::from(levels[j] & 15)];
        weights[j + 16] = scale * STEPS[usize::from(levels[j] >> 4)];
    }
}
