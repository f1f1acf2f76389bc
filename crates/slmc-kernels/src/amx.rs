//! Intel's AMX (Intel 64 and IA-32 manual, volume 1, chapter 18): leave to use the tiles, and a thread's own.
//!
//! Rust has no stable intrinsics for them yet. What multiplies them is one piece of assembly each, so that no code of
//! the compiler's lies between the tiles' first use and their last.

#![allow(unsafe_code)]

/// Proof that the CPU has tiles of bf16, and that the system saves them when it switches threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HalfTiles(());

/// Proof that the CPU has tiles of bytes, and that the system saves them when it switches threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteTiles(());

/// Bytes of a row, and rows, of each of the eight tiles.
#[repr(C, align(64))]
pub(crate) struct Shapes([u8; 64]);

impl Shapes {
    /// Palette 1, whose tiles have at most sixteen rows of 64 bytes.
    pub const fn new(shapes: [(u8, u8); 8]) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            assert!(shapes[tile].0 <= 64 && shapes[tile].1 <= 16);
            bytes[16 + 2 * tile] = shapes[tile].0;
            bytes[48 + tile] = shapes[tile].1;
            tile += 1;
        }
        Self(bytes)
    }
}

/// The tiles of this thread, set up; dropping them gives their state back.
pub(crate) struct Tiles(());

impl HalfTiles {
    pub fn detect() -> Option<Self> {
        (*FOUND).filter(|found| found.half).map(|_| Self(()))
    }

    /// Sets this thread's tiles up.
    #[inline]
    pub fn begin(self, shapes: &'static Shapes) -> Tiles {
        // SAFETY: the value proves that there are tiles, and leave to use them.
        unsafe { configure(shapes) }
    }
}

impl ByteTiles {
    #[inline]
    pub fn detect() -> Option<Self> {
        (*FOUND).filter(|found| found.bytes).map(|_| Self(()))
    }

    /// Sets this thread's tiles up.
    #[inline]
    pub fn begin(self, shapes: &'static Shapes) -> Tiles {
        // SAFETY: the value proves that there are tiles, and leave to use them.
        unsafe { configure(shapes) }
    }
}

/// What tiles may hold.
#[derive(Clone, Copy)]
struct Found {
    half: bool,
    bytes: bool,
}

/// Asked once: it takes a VM some time to answer.
static FOUND: std::sync::LazyLock<Option<Found>> = std::sync::LazyLock::new(find);

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn find() -> Option<Found> {
    use std::arch::x86_64::__cpuid_count;
    if __cpuid_count(0, 0).eax < 7 {
        return None;
    }
    // CPUID leaf 7, EDX: bit 22 is AMX-BF16, 24 AMX-TILE, 25 AMX-INT8.
    let edx = __cpuid_count(7, 0).edx;
    let has = |bit: u32| edx >> bit & 1 == 1;
    (has(24) && is_permitted()).then(|| Found { half: has(22), bytes: has(25) })
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn find() -> Option<Found> {
    None
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

/// # Safety
/// The CPU must have tiles, and the system must have given leave to use them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline]
unsafe fn configure(shapes: &'static Shapes) -> Tiles {
    // SAFETY: the caller's; the instruction reads 64 bytes.
    unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, readonly)) };
    Tiles(())
}

/// # Safety
/// Never called: nothing proves that there are tiles.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
unsafe fn configure(_shapes: &'static Shapes) -> Tiles {
    unreachable!("`find` finds no tiles here")
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: as in `configure`.
        unsafe { std::arch::asm!("tilerelease", options(nomem, nostack)) };
    }
}
