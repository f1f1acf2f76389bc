//! Products of packed levels and int8 activations in the tiles of Intel's AMX: sixteen tokens against the sixteen rows
//! of a tile of weights, a block of 32 columns an instruction.
//!
//! The integer sums are exact, and are scaled and added in the order of the columns: the bits are those of [`int8`].
//!
//! [`int8`]: super::int8

use std::{cell::Cell, ops::Range};

use super::{
    ROWS, Simd,
    activations::{GROUP, Quants},
    int8::{self, Operands},
    layout::{BLOCK, Layout},
};
use crate::amx::{ByteTiles, Shapes, Tiles};

/// Tokens that are multiplied at once: rows of a tile.
const TOKENS: usize = GROUP;
/// Tiles of weights of a task.
pub(super) const TILES: usize = 4;
/// Blocks of an inner size whose levels are unpacked at once: beside the activations of sixteen tokens they fit the first-level
/// cache.
const PANEL_BLOCKS: usize = 24;
/// Blocks that one piece of assembly multiplies.
const AT_ONCE: usize = 2;

/// Sixteen rows of 64 bytes of sums, sixteen of 32 of activations, eight of 64 of levels.
static SHAPES: Shapes =
    Shapes::new([(64, 16), (64, 16), (64, 16), (64, 16), (32, 16), (32, 16), (64, 8), (64, 8)]);

/// Levels less their offset of one tile of weights, sixteen rows by four columns in each line: the tile's own layout.
#[repr(C, align(64))]
struct Panel {
    levels: [[[u8; 64]; 8]; PANEL_BLOCKS],
    scales: [[f32; ROWS]; PANEL_BLOCKS],
    mins: [[f32; ROWS]; PANEL_BLOCKS],
}

/// Sums of blocks, token after token.
#[repr(C, align(64))]
struct Dots([[[i32; ROWS]; TOKENS]; AT_ONCE]);

impl Dots {
    const NEW: Self = Self([[[0; ROWS]; TOKENS]; AT_ONCE]);
}

impl Panel {
    const NEW: Self = Self {
        levels: [[[0; 64]; 8]; PANEL_BLOCKS],
        scales: [[0.0; ROWS]; PANEL_BLOCKS],
        mins: [[0.0; ROWS]; PANEL_BLOCKS],
    };

    #[inline(always)]
    fn fill<S: Simd, L: Layout>(&mut self, s: S, operands: &Operands<'_>, tile: usize, blocks: Range<usize>) {
        let (levels, scales) = (operands.tile_levels::<L>(tile), operands.tile_scales::<L>(tile));
        for (i, b) in blocks.enumerate() {
            let groups = L::groups(s, &levels[b * L::LEVELS..][..L::LEVELS]);
            for (group, line) in groups.into_iter().zip(&mut self.levels[i]) {
                s.store_bytes(group, line);
            }
            for level in self.levels[i].as_flattened_mut() {
                *level = level.wrapping_sub(const { L::OFFSET as u8 });
            }
            let scales = &scales[b / L::UNIT * L::SCALES..][..L::SCALES];
            s.store(L::scale(s, scales, b % L::UNIT), &mut self.scales[i]);
            if L::HAS_MINS {
                s.store(L::min(s, scales, b % L::UNIT), &mut self.mins[i]);
            }
        }
    }
}

thread_local! {
    /// Kept for the next task: to fill it with zeros each time would cost a tenth of the product.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// What a task writes before it reads it.
struct Scratch {
    panels: [Panel; TILES],
    dots: [Dots; 2],
}

fn new_scratch() -> Box<Scratch> {
    Box::new(Scratch { panels: [const { Panel::NEW }; TILES], dots: [Dots::NEW; 2] })
}

/// Does `rounds` rounds of products of tiles that are already there, and returns the multiplications and additions of a round.
pub(super) fn products_in_tiles(units: ByteTiles, rounds: u32) -> usize {
    const PRODUCTS: usize = 4;
    let _held = units.begin(&SHAPES);
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if rounds > 0 {
        // SAFETY: this thread's tiles are set up; no memory is touched.
        #[allow(unsafe_code)]
        unsafe {
            std::arch::asm!(
                "2:",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm5, tmm7",
                "tdpbssd tmm2, tmm4, tmm7",
                "tdpbssd tmm3, tmm5, tmm6",
                "dec {n:e}",
                "jnz 2b",
                n = inout(reg) rounds => _,
                options(nostack, nomem),
            );
        }
    }
    PRODUCTS * TOKENS * ROWS * BLOCK * 2
}

/// Whether a layout's blocks are each one sum.
pub(super) const fn takes<L: Layout>() -> bool {
    !L::HALF_SCALES
}

/// Many tokens against some tiles of weights; of the tokens those that do not make sixteen go another way.
#[inline(always)]
pub(super) fn matmul<S: Simd, L: Layout>(
    s: S,
    units: ByteTiles,
    operands: &Operands<'_>,
    tiles: Range<usize>,
    tokens: Range<usize>,
) {
    let whole = tokens.start..tokens.end - tokens.len() % TOKENS;
    if !whole.is_empty() {
        let held = units.begin(&SHAPES);
        let n_stretches = operands.n_blocks.div_ceil(PANEL_BLOCKS);
        let stretch = operands.n_blocks.div_ceil(n_stretches.max(1)).max(1);
        // No closure: it would be compiled for the baseline.
        let mut scratch = SCRATCH.take().unwrap_or_else(new_scratch);
        let Scratch { panels, dots } = &mut *scratch;
        for first in (0..operands.n_blocks).step_by(stretch) {
            let blocks = first..operands.n_blocks.min(first + stretch);
            for (tile, panel) in tiles.clone().zip(&mut *panels) {
                panel.fill::<S, L>(s, operands, tile, blocks.clone());
            }
            // Tokens outside: their rows, which are apart from each other, stay in the first-level cache, and what comes
            // from the second lies in a row.
            for token in whole.clone().step_by(TOKENS) {
                for (tile, panel) in tiles.clone().zip(&*panels) {
                    square::<S, L>(s, &held, operands, panel, [tile, token], &blocks, dots);
                }
            }
        }
        SCRATCH.set(Some(scratch));
    }
    if whole.end < tokens.end {
        for first in tiles.clone().step_by(int8::PANEL_TILES) {
            let tiles = first..tiles.end.min(first + int8::PANEL_TILES);
            int8::matmul::<S, L>(s, operands, tiles, whole.end..tokens.end);
        }
    }
}

/// Sixteen tokens against a panel.
#[allow(clippy::needless_range_loop)] // Indices are what registers are.
#[inline(always)]
fn square<S: Simd, L: Layout>(
    s: S,
    held: &Tiles,
    operands: &Operands<'_>,
    panel: &Panel,
    [tile, first_token]: [usize; 2],
    blocks: &Range<usize>,
    dots: &mut [Dots; 2],
) {
    let n_blocks = operands.n_blocks;
    let x = &operands.x.blocks[first_token * n_blocks..(first_token + TOKENS) * n_blocks];
    let mut sums = [s.splat(0.0); TOKENS];
    for t in 0..TOKENS {
        s.prefetch_to_write(operands.out(first_token + t, tile).as_ptr().cast());
    }
    if blocks.start > 0 {
        for t in 0..TOKENS {
            sums[t] = int8::load(s, operands.out(first_token + t, tile));
        }
    }
    let group = &operands.x.groups[first_token / TOKENS * n_blocks..][blocks.clone()];
    // While the sums of one step are scaled, the tiles make those of the next.
    let step = |b: usize| b..blocks.len().min(b + AT_ONCE);
    let make = |b: usize, dots: &mut Dots| {
        if b < blocks.len() {
            multiply(held, &x[blocks.start + b..], n_blocks, &panel.levels[step(b)], dots);
        }
    };
    let [mut now, mut next] = dots.each_mut();
    make(0, now);
    for b in (0..blocks.len()).step_by(AT_ONCE) {
        make(b + AT_ONCE, next);
        let scales = panel.scales[step(b)].iter().zip(&panel.mins[step(b)]);
        for ((dots, (scale, min)), x) in now.0.iter().zip(scales).zip(&group[step(b)]) {
            let (scale, min) = (s.load(scale), s.load(min));
            for t in 0..TOKENS {
                let dot = s.to_floats(s.load_ints(&dots[t]));
                sums[t] = s.fma(dot, s.mul(scale, s.splat(x.scales[t])), sums[t]);
                if L::HAS_MINS {
                    sums[t] = s.fma(min, s.splat(x.weighted_sums[t]), sums[t]);
                }
            }
        }
        std::mem::swap(&mut now, &mut next);
    }
    for (t, sums) in sums.into_iter().enumerate() {
        int8::store(s, sums, operands.out(first_token + t, tile));
    }
}

/// Sums of one block or two of sixteen tokens, whose rows are `n_blocks` apart.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
fn multiply(_held: &Tiles, x: &[Quants], n_blocks: usize, levels: &[[[u8; 64]; 8]], dots: &mut Dots) {
    const { assert!(std::mem::offset_of!(Quants, quants) == 0) };
    assert!((1..=AT_ONCE).contains(&levels.len()) && x.len() >= (TOKENS - 1) * n_blocks + levels.len());
    let stride = n_blocks * size_of::<Quants>();
    // SAFETY: this thread's tiles are set up as long as `_held` lives; sixteen rows of 32 bytes are read of each block of
    // activations, eight of 64 of levels; `dots` takes sixteen of 64 of each block.
    #[allow(unsafe_code)]
    unsafe {
        if levels.len() == AT_ONCE {
            std::arch::asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tileloadd tmm4, [{x} + {stride}]",
                "tileloadd tmm6, [{levels} + {line}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{x} + {stride} + {next_x}]",
                "tileloadd tmm7, [{levels} + {line} + 512]",
                "tdpbssd tmm1, tmm5, tmm7",
                "tilestored [{dots} + {line}], tmm0",
                "tilestored [{dots} + {line} + 1024], tmm1",
                x = in(reg) x.as_ptr(),
                stride = in(reg) stride,
                levels = in(reg) levels.as_ptr(),
                dots = in(reg) dots.0.as_mut_ptr(),
                line = in(reg) 64_usize,
                next_x = const size_of::<Quants>(),
                options(nostack),
            );
        } else {
            std::arch::asm!(
                "tilezero tmm0",
                "tileloadd tmm4, [{x} + {stride}]",
                "tileloadd tmm6, [{levels} + {line}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tilestored [{dots} + {line}], tmm0",
                x = in(reg) x.as_ptr(),
                stride = in(reg) stride,
                levels = in(reg) levels.as_ptr(),
                dots = in(reg) dots.0.as_mut_ptr(),
                line = in(reg) 64_usize,
                options(nostack),
            );
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn multiply(_held: &Tiles, _x: &[Quants], _n_blocks: usize, _levels: &[[[u8; 64]; 8]], _dots: &mut Dots) {
    unreachable!("no tiles here")
}
