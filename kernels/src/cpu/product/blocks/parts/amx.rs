//! Products of bf16 on AMX: 16 rows and 16 outputs, 32 inputs at a time, with one instruction.

use std::arch::asm;

use super::split::{NUMBERS, PARTS, ROWS};
use crate::cpu::product::amx::{Tiles, has_bf16};
use crate::cpu::product::panel::{GROUP, LANES, OUTPUTS, STEP, TILE};

/// The sums of a tile.
pub(super) type Sums = [[f32; OUTPUTS]; ROWS];

/// Adds the products of the parts of two groups of rows and a panel to the sums of a tile, the smallest parts of a step first. The second group is
/// `distance` numbers after the first. The panel has whole steps.
///
/// # Panics
/// If a slice is too short, or the processor has no products of bf16 on tiles.
pub(super) fn multiply(_tiles: &Tiles, rows: &[u16], distance: usize, panel: &[u8], sums: &mut Sums) {
    const { assert!(PARTS == 3, "one round of the loop has three parts") };
    let steps = panel.len() / (STEP * OUTPUTS);
    assert!(has_bf16(), "the processor has no AMX-BF16");
    assert!(steps > 0 && panel.len() == steps * STEP * OUTPUTS);
    assert!(rows.len() >= distance + steps * NUMBERS);
    let (row, panel) = (rows.as_ptr(), panel.as_ptr());
    // SAFETY: this thread has configured the tiles, and the processor has the instructions. `steps` times 3072 bytes of each group and
    // 1024 of each vector of the panel, and 32 rows of 128 bytes of sums are there, by the checks and by their type.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {line}*1]",
            "tileloadd tmm1, [{sums} + {line}*1 + {half_line}]",
            "tileloadd tmm2, [{sums} + {line}*1 + {lower}]",
            "tileloadd tmm3, [{sums} + {line}*1 + {lower} + {half_line}]",
            "2:",
            "tileloadd tmm4, [{row} + {step}*1 + {last}]",
            "tileloadd tmm6, [{weights} + {step}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{other_weights} + {step}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{other_row} + {step}*1 + {last}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{row} + {step}*1 + {middle}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{other_row} + {step}*1 + {middle}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{row} + {step}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{other_row} + {step}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {row}, {of_step}",
            "add {other_row}, {of_step}",
            "add {weights}, {middle}",
            "add {other_weights}, {middle}",
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
            line = in(reg) size_of::<[f32; OUTPUTS]>(),
            sums = in(reg) sums.as_mut_ptr(),
            middle = const TILE,
            last = const 2 * TILE,
            of_step = const PARTS * TILE,
            half_line = const size_of::<[f32; LANES]>(),
            lower = const GROUP * size_of::<[f32; OUTPUTS]>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
