//! Products of bf16 in tiles.

#![allow(unsafe_code)]

use super::panels::Tile;
use crate::{
    amx::{HalfTiles, Shapes},
    matrix::Update,
};

/// Lines of a tile.
pub(crate) const LINES: usize = 16;
/// Numbers of the inner size that a tile holds of each line.
pub(crate) const STEP: usize = 32;
/// Rows and columns of what four tiles of sums make.
pub(crate) const SQUARE: usize = 2 * LINES;

/// The tiles of this thread, set up for sixteen rows of 64 bytes.
pub(crate) struct Tiles {
    _held: crate::amx::Tiles,
}

impl Tiles {
    /// Sets this thread's tiles up; dropping them gives their state back.
    pub fn begin(units: HalfTiles) -> Self {
        static SHAPES: Shapes = Shapes::new([(64, 16); 8]);
        Self { _held: units.begin(&SHAPES) }
    }

    /// Two panels of rows times two of columns: 32 × 32 sums over `n_steps` tiles of each.
    #[inline]
    pub fn multiply(&self, left: [&[Tile]; 2], right: [&[Tile]; 2], n_steps: usize) -> Square {
        let mut square = Square::default();
        self.multiply_in(left, right, n_steps, &mut square, Update::Set);
        square
    }

    /// As [`Tiles::multiply`], to a square that is there.
    #[inline]
    pub fn multiply_in(
        &self,
        left: [&[Tile]; 2],
        right: [&[Tile]; 2],
        n_steps: usize,
        square: &mut Square,
        update: Update,
    ) {
        // SAFETY: the square has as many lines of as many sums.
        unsafe { self.multiply_to(left, right, n_steps, square.0.as_mut_ptr().cast(), SQUARE, update) };
    }

    /// As [`Tiles::multiply`], to lines of [`SQUARE`] sums that are `stride` apart. The panels of rows pass by the first-level
    /// cache, where those of columns then stay: whoever multiplies the same columns by many rows gains a quarter.
    ///
    /// # Safety
    /// `out` must be a place for [`SQUARE`] such lines that nobody else looks at.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline]
    pub unsafe fn multiply_to(
        &self,
        left: [&[Tile]; 2],
        right: [&[Tile]; 2],
        n_steps: usize,
        out: *mut f32,
        stride: usize,
        update: Update,
    ) {
        assert!(n_steps > 0 && left.iter().chain(&right).all(|panel| panel.len() >= n_steps));
        // SAFETY: this thread's tiles are set up as long as `self` lives; each panel has `n_steps` tiles of 1024 bytes,
        // and sixteen lines of 64 bytes, `stride` numbers apart, are written at each quarter of the caller's square.
        unsafe {
            std::arch::asm!(
                "test {adds:e}, {adds:e}",
                "jnz 3f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 2f",
                "3:",
                "tileloadd tmm0, [{out} + {wide}]",
                "tileloadd tmm1, [{out} + {wide} + 64]",
                "tileloadd tmm2, [{lower} + {wide}]",
                "tileloadd tmm3, [{lower} + {wide} + 64]",
                "2:",
                "tileloaddt1 tmm4, [{a0} + {row}]",
                "tileloadd tmm6, [{b0} + {row}]",
                "tileloadd tmm7, [{b1} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloaddt1 tmm5, [{a1} + {row}]",
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
                out = in(reg) out,
                lower = in(reg) out.wrapping_add(LINES * stride),
                row = in(reg) 64_usize,
                wide = in(reg) 4 * stride,
                adds = in(reg) u32::from(update == Update::Add),
                options(nostack),
            );
        }
    }

    /// Elsewhere there are none, and no value of the type exists.
    ///
    /// # Safety
    /// Never called.
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    pub unsafe fn multiply_to(
        &self,
        _left: [&[Tile]; 2],
        _right: [&[Tile]; 2],
        _n_steps: usize,
        _out: *mut f32,
        _stride: usize,
        _update: Update,
    ) {
        unreachable!("no tiles here")
    }
}

/// Sums on cache lines.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Square([[f32; SQUARE]; SQUARE]);

impl Default for Square {
    fn default() -> Self {
        Self([[0.0; SQUARE]; SQUARE])
    }
}

impl std::ops::DerefMut for Square {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl std::ops::Deref for Square {
    type Target = [[f32; SQUARE]; SQUARE];
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
