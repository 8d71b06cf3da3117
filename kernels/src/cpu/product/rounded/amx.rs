//! Products of bytes on AMX: 16 rows and 16 outputs, 64 inputs at a time, with one instruction.

use std::arch::asm;

use crate::cpu::product::amx::{Tiles, has_int8};
use crate::cpu::product::panel::{GROUP, LANES, OUTPUTS, STEP, TILE};

/// The sums of the products of two groups of rows with `steps` steps, and a panel. The second group is `distance` bytes after the first.
///
/// Weights are loaded so that they need not stay in the first-level cache: rows do, for the next panel.
///
/// # Panics
/// If a slice is too short, or the processor has no products of bytes on tiles.
pub(super) fn multiply(
    _tiles: &Tiles,
    rows: &[u8],
    distance: usize,
    steps: usize,
    panel: &[i8],
    sums: &mut [[i32; OUTPUTS]; 2 * GROUP],
) {
    assert!(has_int8(), "the processor has no AMX-INT8");
    assert!(steps > 0 && panel.len() == steps * STEP * OUTPUTS);
    assert!(rows.len() >= distance + steps * TILE);
    let (row, panel) = (rows.as_ptr(), panel.as_ptr());
    // SAFETY: this thread has configured the tiles, and the processor has the instructions. `steps` times 1024 bytes of each group and of
    // each vector of the panel, and 32 rows of 128 bytes of sums are there, by the checks and by their type.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{row} + {step}*1]",
            "tileloaddt1 tmm6, [{weights} + {step}*1]",
            "tdpbusd tmm0, tmm4, tmm6",
            "tileloaddt1 tmm7, [{other_weights} + {step}*1]",
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
