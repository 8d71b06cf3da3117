//! The tiles of AMX. An instruction multiplies 16 rows of 64 bytes with those of 16 outputs.
//!
//! The intrinsics are not stable, so the instructions are written out.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::panel::{GROUP, STEP};

/// Bits of `CPUID.7.0:EDX`.
const AMX_BF16: u32 = 1 << 22;
const AMX_TILE: u32 = 1 << 24;
const AMX_INT8: u32 = 1 << 25;
/// Bits of XCR0: the system saves the configuration of tiles, and their data.
const STATE: u64 = 1 << 17 | 1 << 18;

/// Whether this process may use tiles and the products of bytes.
pub(super) fn has_int8() -> bool {
    features() & AMX_INT8 != 0
}

/// Whether this process may use tiles and the products of bf16.
pub(in crate::cpu) fn has_bf16() -> bool {
    features() & AMX_BF16 != 0
}

/// `CPUID.7.0:EDX`, or 0 if this process may not use tiles. Linux gives the permission when it is first asked.
fn features() -> u32 {
    static FEATURES: OnceLock<u32> = OnceLock::new();
    *FEATURES.get_or_init(|| {
        let features = if saves_tiles() { __cpuid_count(7, 0).edx } else { 0 };
        if features & AMX_TILE != 0 && is_permitted() { features } else { 0 }
    })
}

/// Whether the processor has the leaf of the features, and the system saves tiles.
fn saves_tiles() -> bool {
    #[target_feature(enable = "xsave")]
    fn saves() -> bool {
        // SAFETY: the processor has the instruction.
        unsafe { _xgetbv(0) & STATE == STATE }
    }
    // OSXSAVE: the system has turned the instruction on.
    let state = std::arch::is_x86_feature_detected!("xsave") && __cpuid_count(1, 0).ecx >> 27 & 1 == 1;
    // SAFETY: the processor has XSAVE, and the system uses it.
    __cpuid_count(0, 0).eax >= 7 && state && unsafe { saves() }
}

/// Asks for the data of tiles: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    let (arch_prctl, request, tile_data) = (158u64, 0x1023u64, 18u64);
    let result: i64;
    // SAFETY: the call takes no pointer and changes what this process may use. The kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") arch_prctl => result,
            in("rdi") request,
            in("rsi") tile_data,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

/// The tiles of this thread, while it has them.
pub(in crate::cpu) struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// Eight tiles of 16 rows of 64 bytes.
    ///
    /// # Panics
    /// If the process may not use tiles.
    pub fn new() -> Self {
        Self::of([(GROUP as u8, STEP as u16); 8])
    }

    /// Eight tiles, each of so many rows and bytes of a row.
    ///
    /// # Panics
    /// If the process may not use tiles, or a tile is larger than 16 rows of 64 bytes.
    pub fn of(sizes: [(u8, u16); 8]) -> Self {
        assert!(features() & AMX_TILE != 0, "the processor has no AMX");
        assert!(sizes.iter().all(|(rows, bytes)| usize::from(*rows) <= GROUP && usize::from(*bytes) <= STEP));
        let (mut bytes_of_row, mut rows) = ([0; 16], [0; 16]);
        for (tile, (count, bytes)) in sizes.into_iter().enumerate() {
            (rows[tile], bytes_of_row[tile]) = (count, bytes);
        }
        let configuration = Configuration { palette: 1, start_row: 0, reserved: [0; 14], bytes_of_row, rows };
        // SAFETY: the process may use the instruction, and the configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) };
        Self(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the process may use the instruction.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
