//! The tiles of Intel's AMX. Rust has no stable intrinsics for them yet: the loop is one piece of assembly, so that no
//! code of the compiler's lies between its tiles' first use and their last.

#![allow(unsafe_code)]

use super::panels::Tile;

/// Lines of a tile.
pub(super) const LINES: usize = 16;
/// Numbers of the inner size that a tile holds of each line.
pub(super) const STEP: usize = 32;
/// Rows and columns of what four tiles of sums make.
pub(super) const SQUARE: usize = 2 * LINES;

/// Proof that the CPU has tiles of bf16, and that the system saves them when it switches threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amx(());

/// The tiles of this thread, set up.
pub(super) struct Tiles(());

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl Amx {
    pub fn detect() -> Option<Self> {
        static FOUND: std::sync::LazyLock<Option<Amx>> = std::sync::LazyLock::new(|| {
            use std::arch::x86_64::__cpuid_count;
            // CPUID leaf 7, EDX: bit 22 is AMX-BF16, bit 24 AMX-TILE.
            let tiles = 1 << 22 | 1 << 24;
            let has_leaf = __cpuid_count(0, 0).eax >= 7;
            let has_tiles = has_leaf && __cpuid_count(7, 0).edx & tiles == tiles;
            (has_tiles && is_permitted()).then_some(Amx(()))
        });
        *FOUND
    }

    /// Sets this thread's tiles up; dropping them gives their state back.
    pub fn begin(self) -> Tiles {
        /// Palette 1: sixteen rows of 64 bytes in each of the eight tiles.
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        static CONFIG: Config = {
            let mut bytes = [0; 64];
            bytes[0] = 1;
            let mut tile = 0;
            while tile < 8 {
                bytes[16 + 2 * tile] = 64;
                bytes[48 + tile] = 16;
                tile += 1;
            }
            Config(bytes)
        };
        // SAFETY: `detect` found tiles and was given leave to use them; the instruction reads 64 bytes.
        unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
        Tiles(())
    }
}

/// Asks the system, once for the whole process, to save tiles (`arch_prctl`, `ARCH_REQ_XCOMP_PERM`).
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn is_permitted() -> bool {
    const SYS_ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let answer: i64;
    // SAFETY: the call changes nothing but what threads of this process may do.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    answer == 0
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl Tiles {
    /// Two panels of rows times two of columns: 32 × 32 sums over `n_steps` tiles of each.
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
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: as in `begin`.
        unsafe { std::arch::asm!("tilerelease", options(nomem, nostack)) };
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

/// Elsewhere there are none, and no value of the types exists.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
impl Amx {
    pub fn detect() -> Option<Self> {
        None
    }
    pub fn begin(self) -> Tiles {
        Tiles(())
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
impl Tiles {
    pub fn multiply(&self, _left: [&[Tile]; 2], _right: [&[Tile]; 2], _n_steps: usize) -> Square {
        unreachable!("`detect` finds no tiles here")
    }
}
