//! Products of bytes on AMX: 16 rows and 16 outputs, 64 inputs at a time, with one instruction.
//!
//! The intrinsics are not stable, so the instructions are written out.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::panel::{LANES, OUTPUTS};
use super::rows::{GROUP, STEP, TILE};

/// Bits of `CPUID.7.0:EDX`: AMX-TILE and AMX-INT8.
const FEATURES: u32 = 1 << 24 | 1 << 25;
/// Bits of XCR0: the system saves the configuration of tiles, and their data.
const STATE: u64 = 1 << 17 | 1 << 18;

/// Whether this process may use the instructions. Linux gives the permission when it is first asked.
pub(super) fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| has_features() && is_permitted())
}

fn has_features() -> bool {
    #[target_feature(enable = "xsave")]
    fn saves() -> bool {
        // SAFETY: the processor has the instruction.
        unsafe { _xgetbv(0) & STATE == STATE }
    }
    let most = __cpuid_count(0, 0).eax;
    // OSXSAVE: the system has turned the instruction on.
    let state = std::arch::is_x86_feature_detected!("xsave") && __cpuid_count(1, 0).ecx >> 27 & 1 == 1;
    // SAFETY: the processor has XSAVE, and the system uses it.
    most >= 7 && __cpuid_count(7, 0).edx & FEATURES == FEATURES && state && unsafe { saves() }
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
pub(super) struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// Eight tiles of 16 rows of 64 bytes.
    ///
    /// # Panics
    /// If the instructions are [not there](is_there).
    pub fn new() -> Self {
        assert!(is_there(), "the processor has no AMX");
        let (mut bytes_of_row, mut rows) = ([0; 16], [0; 16]);
        bytes_of_row[..8].fill(STEP as u16);
        rows[..8].fill(GROUP as u8);
        let configuration = Configuration { palette: 1, start_row: 0, reserved: [0; 14], bytes_of_row, rows };
        // SAFETY: the process may use the instruction, and the configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) };
        Self(PhantomData)
    }

    /// The sums of the products of two groups of rows with `steps` steps, and a panel. The second group is `distance` bytes after the first.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn multiply(
        &self,
        rows: &[u8],
        distance: usize,
        steps: usize,
        panel: &[i8],
        sums: &mut [[i32; OUTPUTS]; 2 * GROUP],
    ) {
        assert!(steps > 0 && panel.len() == steps * STEP * OUTPUTS);
        assert!(rows.len() >= distance + steps * TILE);
        let (row, panel) = (rows.as_ptr(), panel.as_ptr());
        // SAFETY: this thread has configured the tiles. `steps` times 1024 bytes of each group and of each vector of the panel, and
        // 32 rows of 128 bytes of sums are there, by the checks and by their type.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{row} + {step}*1]",
                "tileloadd tmm6, [{weights} + {step}*1]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{other_weights} + {step}*1]",
                "tdpbusd tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{other_row} + {step}*1]",
                "tdpbusd tmm2, tmm5, tmm6",
                "tdpbusd tmm3, tmm5, tmm7",
                "add {row}, {tile}",
                "add {other_row}, {tile}",
                "add {weights}, {tile}",
                "add {other_weights}, {tile}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + {half_line}], tmm1",
                "tilestored [{sums} + {line}*1 + {lower}], tmm2",
                "tilestored [{sums} + {line}*1 + {lower} + {half_line}], tmm3",
                row = inout(reg) row => _,
                other_row = inout(reg) row.add(distance) => _,
                weights = inout(reg) panel => _,
                other_weights = inout(reg) panel.add(steps * TILE) => _,
                steps = inout(reg) steps => _,
                step = in(reg) STEP,
                line = in(reg) size_of::<[i32; OUTPUTS]>(),
                sums = in(reg) sums.as_mut_ptr(),
                tile = const TILE,
                half_line = const size_of::<[i32; LANES]>(),
                lower = const GROUP * size_of::<[i32; OUTPUTS]>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the process may use the instruction.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
