//! Products of bf16 in tiles.

#![allow(unsafe_code)]

use super::panels::Tile;
use crate::amx::{HalfTiles, Shapes};

/// Lines of a tile.
pub(super) const LINES: usize = 16;
/// Numbers of the inner size that a tile holds of each line.
pub(super) const STEP: usize = 32;
/// Rows and columns of what four tiles of sums make.
pub(super) const SQUARE: usize = 2 * LINES;

/// The tiles of this thread, set up for sixteen rows of 64 bytes.
pub(super) struct Tiles {
    _held: crate::amx::Tiles,
}

impl Tiles {
    /// Sets this thread's tiles up; dropping them gives their state back.
    pub fn begin(units: HalfTiles) -> Self {
        static SHAPES: Shapes = Shapes::new([(64, 16); 8]);
        Self { _held: units.begin(&SHAPES) }
    }

    /// Two panels of rows times two of columns: 32 × 32 sums over `n_steps` tiles of each.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline]
    pub fn multiply(&self, left: [&[Tile]; 2], right: [&[Tile]; 2], n_steps: usize) -> Square {
        assert!(n_steps > 0 && left.iter().chain(&right).all(|panel| panel.len() >= n_steps));
        let mut square = Square([[0.0; SQUARE]; SQUARE]);
        // SAFETY: this thread's tiles are set up as long as `self` lives; each panel has `n_steps` tiles of 1024 bytes,
        // and the square takes 16 rows of 64 bytes, 128 bytes apart, at each of its four quarters.
        unsafe {
            std::arch::asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a0} + {row}]",
                "tileloadd tmm6, [{b0} + {row}]",
                "tileloadd tmm7, [{b1} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {n}",
                "jnz 2b",
                "tilestored [{out} + {wide}], tmm0",
                "tilestored [{out} + {wide} + 64], tmm1",
                "tilestored [{lower} + {wide}], tmm2",
                "tilestored [{lower} + {wide} + 64], tmm3",
                a0 = inout(reg) left[0].as_ptr() => _,
                a1 = inout(reg) left[1].as_ptr() => _,
                b0 = inout(reg) right[0].as_ptr() => _,
                b1 = inout(reg) right[1].as_ptr() => _,
                n = inout(reg) n_steps => _,
                out = in(reg) square.0.as_mut_ptr(),
                lower = in(reg) square.0[LINES..].as_mut_ptr(),
                row = in(reg) 64_usize,
                wide = in(reg) 128_usize,
                options(nostack),
            );
        }
        square
    }

    /// Elsewhere there are none, and no value of the type exists.
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    pub fn multiply(&self, _left: [&[Tile]; 2], _right: [&[Tile]; 2], _n_steps: usize) -> Square {
        unreachable!("no tiles here")
    }
}

/// Sums on cache lines.
#[repr(C, align(64))]
pub(super) struct Square([[f32; SQUARE]; SQUARE]);

impl std::ops::Deref for Square {
    type Target = [[f32; SQUARE]; SQUARE];
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
