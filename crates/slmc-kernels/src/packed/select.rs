//! Which kernel multiplies which format on which CPU, and how a product is cut into tasks.

use std::ops::Range;

use slmc_ir::Format;

#[cfg(target_arch = "aarch64")]
use super::simd::neon::Neon;
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2::Avx2, avx512::Avx512};
use super::{
    Activations, HalfKernels, PackedMatrix, Precision, float,
    int8::{self, Operands},
    k_layout::{Q4K, Q5K, Q6K},
    layout::{Iq4Nl, Layout, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0},
    out::SharedOut,
    simd::{ROWS, Simd, portable::Portable},
};
#[cfg(target_arch = "x86_64")]
use super::{half_tiles, int8_tiles};
#[cfg(target_arch = "x86_64")]
use crate::amx::ByteTiles;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::dispatch::allowed;
use crate::matrix::Update;

/// An instruction set that this CPU has.
#[derive(Clone, Copy)]
pub(crate) enum Isa {
    /// Tiles of bytes where there are many tokens, AVX-512 for the rest.
    #[cfg(target_arch = "x86_64")]
    Amx(Avx512, ByteTiles),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    Portable(Portable),
}

impl Isa {
    /// The fastest that the CPU has.
    pub(crate) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(isa) = Avx512::detect().filter(|_| allowed(2)) {
                return ByteTiles::detect().map_or(Self::Avx512(isa), |tiles| Self::Amx(isa, tiles));
            }
            if let Some(isa) = Avx2::detect().filter(|_| allowed(1)) {
                return Self::Avx2(isa);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(isa) = Neon::detect().filter(|_| allowed(1)) {
            return Self::Neon(isa);
        }
        Self::Portable(Portable)
    }

    /// All that the CPU has.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(Self::Avx2));
            all.extend(Avx512::detect().map(Self::Avx512));
            all.extend(Avx512::detect().zip(ByteTiles::detect()).map(|(isa, tiles)| Self::Amx(isa, tiles)));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(Neon::detect().map(Self::Neon));
        all
    }

    /// Tiles of weights that a task of many tokens unpacks.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    fn tiles_per_task(self, matrix: &PackedMatrix, x: &Activations) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(..) if in_levels(matrix, x) && in_byte_tiles(matrix.format()) => int8_tiles::TILES,
            _ => int8::PANEL_TILES,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(..) => "amxint8",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neondot",
            Self::Portable(_) => "portable",
        }
    }
}

/// Calls a macro with the layout of a format, or gives what else there is.
macro_rules! with_layout {
    (@ $format:expr, $layout:ident, $body:expr, $other:expr, $($name:ident)*) => {
        match $format {
            $(slmc_ir::Format::$name => {
                type $layout = $name;
                $body
            })*
            _ => $other,
        }
    };
    ($format:expr, $layout:ident => $body:expr, else $other:expr) => {
        with_layout!(@ $format, $layout, $body, $other, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Iq4Nl Q4K Q5K Q6K)
    };
}

/// Bytes of a tile's levels a block, of its scales a unit, and blocks a unit, of a format that has a layout.
pub(super) fn sizes(format: Format) -> Option<[usize; 3]> {
    with_layout!(format, L => Some([L::LEVELS, L::SCALES, L::UNIT]), else None)
}

/// Lays out the levels of one tile's rows.
pub(super) fn put_levels<'a>(format: Format, rows: impl Iterator<Item = &'a [u8]>, tile: &mut [u8]) {
    fn put<'a, L: Layout>(rows: impl Iterator<Item = &'a [u8]>, tile: &mut [u8]) {
        for (row, bytes) in rows.enumerate() {
            let units = bytes.chunks_exact(L::FORMAT.block_bytes());
            for (unit, levels) in units.zip(tile.chunks_exact_mut(L::UNIT * L::LEVELS)) {
                L::put_levels(unit, row, levels);
            }
        }
    }
    with_layout!(format, L => put::<L>(rows, tile), else unreachable!("only formats with a layout"));
}

/// Lays out the scales of one tile's rows.
pub(super) fn put_scales<'a>(format: Format, rows: impl Iterator<Item = &'a [u8]>, tile: &mut [u8]) {
    fn put<'a, L: Layout>(rows: impl Iterator<Item = &'a [u8]>, tile: &mut [u8]) {
        for (row, bytes) in rows.enumerate() {
            let units = bytes.chunks_exact(L::FORMAT.block_bytes());
            for (unit, scales) in units.zip(tile.chunks_exact_mut(L::SCALES)) {
                L::put_scales(unit, row, scales);
            }
        }
    }
    with_layout!(format, L => put::<L>(rows, tile), else unreachable!("only formats with a layout"));
}

/// Units of a row from `first_unit` on, in the format's own bytes.
pub(super) fn take_units(
    format: Format,
    planes: [&[u8]; 2],
    n_blocks: usize,
    row: usize,
    first_unit: usize,
    bytes: &mut [u8],
) {
    with_layout!(
        format,
        L => int8::take_units::<L>(planes, n_blocks, row, first_unit, bytes),
        else unreachable!("only formats with a layout")
    );
}

/// Whether integers are multiplied with integers.
fn in_levels(matrix: &PackedMatrix, x: &Activations) -> bool {
    matrix.has_levels() && x.precision() == Precision::Int8
}

/// What multiplies levels with bf16, where those are what is multiplied.
#[cfg(target_arch = "x86_64")]
fn in_halves(matrix: &PackedMatrix, x: &Activations) -> Option<HalfKernels> {
    match x.precision() {
        Precision::Half(kernels) if matrix.has_levels() => Some(kernels),
        _ => None,
    }
}

/// What multiplies levels with bf16, and the weights as it takes them.
#[cfg(target_arch = "x86_64")]
pub(super) fn half_weights<'a>(
    matrix: &'a PackedMatrix,
    x: &Activations,
) -> Option<(HalfKernels, half_tiles::Weights<'a>)> {
    let kernels = in_halves(matrix, x)?;
    let decode: half_tiles::Decode =
        with_layout!(matrix.format(), L => half_tiles::decode::<L>, else return None);
    let n_blocks = matrix.n_columns() / super::layout::BLOCK;
    let [levels, scales] = [matrix.levels(), matrix.scales()];
    Some((kernels, half_tiles::Weights { levels, scales, n_rows: matrix.n_rows(), n_blocks, decode }))
}

/// Whether AMX multiplies a format's levels.
#[cfg(target_arch = "x86_64")]
fn in_byte_tiles(format: Format) -> bool {
    with_layout!(format, L => int8_tiles::takes::<L>(), else false)
}

/// Tokens up to which every level is used straight from memory.
const FEW_TOKENS: usize = 4;
/// Bytes of a task of a few tokens: microseconds, so that threads end together.
const TASK_BYTES: usize = 1 << 15;
/// Tokens of a task of many tokens: enough that unpacking a panel is little beside using it.
const TASK_TOKENS: usize = 256;

/// A product cut into tasks, by its shape alone.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    n_tiles: usize,
    n_tokens: usize,
    tiles_per_task: usize,
    tokens_per_task: usize,
    whole: bool,
}

impl Plan {
    pub(super) fn new(isa: Isa, matrix: &PackedMatrix, x: &Activations) -> Self {
        let (n_tiles, n_tokens) = (matrix.n_rows().div_ceil(ROWS), x.n_rows());
        #[cfg(target_arch = "x86_64")]
        if in_halves(matrix, x).is_some() {
            let (tiles_per_task, tokens_per_task) = (half_tiles::TILES, half_tiles::TASK_TOKENS);
            return Self { n_tiles, n_tokens, tiles_per_task, tokens_per_task, whole: false };
        }
        // What is stored as it is multiplied needs no panel for a few tokens.
        let whole =
            n_tokens <= FEW_TOKENS && matrix.best_precision() == x.precision() && matrix.is_laid_out();
        let tile_bytes = matrix.n_bytes() / n_tiles.max(1);
        let tiles_per_task = if whole {
            (TASK_BYTES / tile_bytes.max(1)).max(1).next_multiple_of(float::MATVEC_TILES)
        } else {
            isa.tiles_per_task(matrix, x)
        };
        Self { n_tiles, n_tokens, tiles_per_task, tokens_per_task: TASK_TOKENS, whole }
    }

    /// Tasks in all; none of an empty product.
    pub(super) fn n_tasks(self) -> usize {
        self.n_tiles.div_ceil(self.tiles_per_task) * self.n_tokens.div_ceil(self.tokens_per_task)
    }

    /// Tiles and tokens of a task: all tiles of the first tokens, then of the next, so that a thread's
    /// activations stay in its cache.
    fn task(self, task: usize) -> [Range<usize>; 2] {
        let n_across = self.n_tiles.div_ceil(self.tiles_per_task);
        let (tile, token) = (task % n_across * self.tiles_per_task, task / n_across * self.tokens_per_task);
        [
            tile..self.n_tiles.min(tile + self.tiles_per_task),
            token..self.n_tokens.min(token + self.tokens_per_task),
        ]
    }
}

/// One product: the matrix, the activations, where it goes, and how it is cut.
pub(super) struct Product<'a> {
    pub isa: Isa,
    pub plan: Plan,
    pub matrix: &'a PackedMatrix,
    pub x: &'a Activations,
    pub out: SharedOut<'a, f32>,
    /// What becomes of what `out` holds. Only products in bf16 add to it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub update: Update,
}

impl Product<'_> {
    /// Does one task.
    pub(super) fn run(&self, task: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some((kernels, weights)) = half_weights(self.matrix, self.x) {
            let [tiles, tokens] = self.plan.task(task);
            // SAFETY: the value proves that the CPU has what the function is compiled for.
            #[allow(unsafe_code)]
            return unsafe {
                half_tiles::matmul(kernels, &weights, self.x, &self.out, self.update, tiles, tokens)
            };
        }
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the value proves that the CPU has what the function is compiled for.
            #[allow(unsafe_code)]
            Isa::Amx(s, tiles) => unsafe { self.avx512(s, Some(tiles), task) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            #[allow(unsafe_code)]
            Isa::Avx512(s) => unsafe { self.avx512(s, None, task) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            #[allow(unsafe_code)]
            Isa::Avx2(s) => unsafe { self.avx2(s, task) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            #[allow(unsafe_code)]
            Isa::Neon(s) => unsafe { self.neon(s, task) },
            Isa::Portable(s) => self.portable(s, task),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn avx512(&self, s: Avx512, byte_tiles: Option<ByteTiles>, task: usize) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn levels<L: Layout>(s: Avx512, product: &Product<'_>, task: usize) {
            product.levels::<Avx512, L>(s, task);
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn in_tiles<L: Layout>(s: Avx512, units: ByteTiles, product: &Product<'_>, task: usize) {
            let [tiles, tokens] = product.plan.task(task);
            int8_tiles::matmul::<Avx512, L>(s, units, &product.operands(), tiles, tokens);
        }
        let format = self.matrix.format();
        if let (Some(units), true, false) =
            (byte_tiles, self.in_levels() && in_byte_tiles(format), self.plan.whole)
        {
            with_layout!(format, L => in_tiles::<L>(s, units, self, task), else ());
        } else if self.in_levels() {
            with_layout!(self.matrix.format(), L => levels::<L>(s, self, task), else ());
        } else {
            self.floats(s, task);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2(&self, s: Avx2, task: usize) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn levels<L: Layout>(s: Avx2, product: &Product<'_>, task: usize) {
            product.levels::<Avx2, L>(s, task);
        }
        if self.in_levels() {
            with_layout!(self.matrix.format(), L => levels::<L>(s, self, task), else ());
        } else {
            self.floats(s, task);
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon,dotprod")]
    fn neon(&self, s: Neon, task: usize) {
        #[target_feature(enable = "neon,dotprod")]
        fn levels<L: Layout>(s: Neon, product: &Product<'_>, task: usize) {
            product.levels::<Neon, L>(s, task);
        }
        if self.in_levels() {
            with_layout!(self.matrix.format(), L => levels::<L>(s, self, task), else ());
        } else {
            self.floats(s, task);
        }
    }

    fn portable(&self, s: Portable, task: usize) {
        fn levels<L: Layout>(s: Portable, product: &Product<'_>, task: usize) {
            product.levels::<Portable, L>(s, task);
        }
        if self.in_levels() {
            with_layout!(self.matrix.format(), L => levels::<L>(s, self, task), else ());
        } else {
            self.floats(s, task);
        }
    }

    fn in_levels(&self) -> bool {
        in_levels(self.matrix, self.x)
    }

    fn operands(&self) -> Operands<'_> {
        Operands {
            levels: self.matrix.levels(),
            scales: self.matrix.scales(),
            n_rows: self.matrix.n_rows(),
            n_blocks: self.matrix.n_columns() / super::layout::BLOCK,
            x: self.x,
            out: &self.out,
        }
    }

    #[inline(always)]
    fn levels<S: Simd, L: Layout>(&self, s: S, task: usize) {
        let [tiles, tokens] = self.plan.task(task);
        let operands = self.operands();
        match (self.plan.whole, self.plan.n_tokens) {
            (true, 1) => int8::matvec::<S, L, 1>(s, &operands, tiles),
            (true, 2) => int8::matvec::<S, L, 2>(s, &operands, tiles),
            (true, 3) => int8::matvec::<S, L, 3>(s, &operands, tiles),
            (true, _) => int8::matvec::<S, L, 4>(s, &operands, tiles),
            (false, _) => int8::matmul::<S, L>(s, &operands, tiles, tokens),
        }
    }

    #[inline(always)]
    fn floats<S: Simd>(&self, s: S, task: usize) {
        let [tiles, tokens] = self.plan.task(task);
        let Self { matrix, x, out, .. } = self;
        match (self.plan.whole, self.plan.n_tokens) {
            (true, 1) => float::matvec::<S, 1>(s, matrix, x, out, tiles),
            (true, 2) => float::matvec::<S, 2>(s, matrix, x, out, tiles),
            (true, 3) => float::matvec::<S, 3>(s, matrix, x, out, tiles),
            (true, _) => float::matvec::<S, 4>(s, matrix, x, out, tiles),
            (false, _) => float::matmul(s, matrix, x, out, tiles, tokens),
        }
    }
}
