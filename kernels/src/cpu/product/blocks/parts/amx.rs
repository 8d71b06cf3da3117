//! Products of bf16 on AMX: 16 rows and 16 outputs, 32 inputs at a time, with one instruction.

use std::arch::asm;

use super::split::{NUMBERS, PART, PARTS, ROWS, STEPS, TileBlock};
use crate::cpu::product::amx::{Tiles, has_bf16};
use crate::cpu::product::panel::{GROUP, LANES, OUTPUTS, STEP, TILE};
use crate::cpu::stream::LINE;

/// The sums of a tile.
pub(super) type Sums = [[f32; OUTPUTS]; ROWS];

/// Numbers of each part that a step prefetches: two lines.
const AHEAD_OF_STEP: usize = 2 * LINE / size_of::<u16>();
/// Numbers of each part that are prefetched with a whole block.
pub(super) const AHEAD: usize = AHEAD_OF_STEP * STEPS;

/// Adds the products of the parts of a block of rows and a panel to the sums of a tile, the smallest parts of a step first. The panel has the steps
/// of the block. Parts that a step does not have would be zeros, which change no sum but one of -0.
///
/// Prefetches a share of other rows, which are laid out as `rows`: [`AHEAD`] numbers of each part from `ahead` on, a place that need not be
/// valid.
///
/// # Panics
/// If a slice is too short, or the processor has no products of bf16 on tiles.
pub(super) fn multiply(_tiles: &Tiles, rows: TileBlock<'_>, panel: &[u8], ahead: *const u16, sums: &mut Sums) {
    const { assert!(PARTS == 3, "the loop has three parts") };
    let TileBlock { numbers, group, counts } = rows;
    let steps = counts.len();
    assert!(has_bf16(), "the processor has no AMX-BF16");
    assert!(steps > 0 && panel.len() == steps * STEP * OUTPUTS);
    assert!(numbers.len() >= group + (PARTS - 1) * PART + steps * NUMBERS);
    let (row, panel) = (numbers.as_ptr(), panel.as_ptr());
    // SAFETY: this thread has configured the tiles, and the processor has the instructions. `steps` times 1024 bytes of each part of each group and
    // of each vector of the panel, as many counts, and 32 rows of 128 bytes of sums are there, by the checks and by their type.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {line}*1]",
            "tileloadd tmm1, [{sums} + {line}*1 + {half_line}]",
            "tileloadd tmm2, [{sums} + {line}*1 + {lower}]",
            "tileloadd tmm3, [{sums} + {line}*1 + {lower} + {half_line}]",
            "2:",
            "tileloadd tmm6, [{weights} + {step}*1]",
            "tileloadd tmm7, [{other_weights} + {step}*1]",
            "cmp byte ptr [{counts}], 2",
            "jb 4f",
            "je 3f",
            "tileloadd tmm4, [{row} + {step}*1 + {third}]",
            "prefetcht1 [{ahead} + {third}]",
            "prefetcht1 [{ahead} + {third} + {cache_line}]",
            "prefetcht1 [{other_ahead} + {third}]",
            "prefetcht1 [{other_ahead} + {third} + {cache_line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{other_row} + {step}*1 + {third}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "3:",
            "tileloadd tmm4, [{row} + {step}*1 + {second}]",
            "prefetcht1 [{ahead} + {second}]",
            "prefetcht1 [{ahead} + {second} + {cache_line}]",
            "prefetcht1 [{other_ahead} + {second}]",
            "prefetcht1 [{other_ahead} + {second} + {cache_line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{other_row} + {step}*1 + {second}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "4:",
            "tileloadd tmm4, [{row} + {step}*1]",
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{ahead} + {cache_line}]",
            "prefetcht1 [{other_ahead}]",
            "prefetcht1 [{other_ahead} + {cache_line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{other_row} + {step}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {ahead}, {ahead_of_step}",
            "add {other_ahead}, {ahead_of_step}",
            "add {row}, {tile}",
            "add {other_row}, {tile}",
            "add {weights}, {tile}",
            "add {other_weights}, {tile}",
            "inc {counts}",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + {half_line}], tmm1",
            "tilestored [{sums} + {line}*1 + {lower}], tmm2",
            "tilestored [{sums} + {line}*1 + {lower} + {half_line}], tmm3",
            row = inout(reg) row => _,
            other_row = inout(reg) row.add(group) => _,
            weights = inout(reg) panel => _,
            other_weights = inout(reg) panel.add(steps * TILE) => _,
            counts = inout(reg) counts.as_ptr() => _,
            ahead = inout(reg) ahead => _,
            other_ahead = inout(reg) ahead.wrapping_add(group) => _,
            steps = inout(reg) steps => _,
            step = in(reg) STEP,
            line = in(reg) size_of::<[f32; OUTPUTS]>(),
            sums = in(reg) sums.as_mut_ptr(),
            tile = const TILE,
            cache_line = const LINE,
            ahead_of_step = const AHEAD_OF_STEP * size_of::<u16>(),
            second = const PART * size_of::<u16>(),
            third = const 2 * PART * size_of::<u16>(),
            half_line = const size_of::<[f32; LANES]>(),
            lower = const GROUP * size_of::<[f32; OUTPUTS]>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
