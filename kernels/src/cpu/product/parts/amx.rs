//! Products of bf16 on AMX: 16 rows and 16 outputs, 32 inputs at a time, with one instruction.

use std::arch::asm;

use super::pack::{self, PARTS};
use super::split::{self, ROWS, STEPS, TileSteps};
use super::weights::{PANELS, Packed};
use crate::cpu::product::amx::{Tiles, has_bf16};
use crate::cpu::product::panel::{LANES, OUTPUTS, STEP, TILE};

/// The sums of a tile.
pub(super) type Sums = [[f32; OUTPUTS]; ROWS];

/// What products are added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Zero: what the sums were does not matter.
    Zero,
    /// The sums.
    Sums,
}

/// Zeros in the places of the sums, if all of their lines are at the first.
static ZEROS: [f32; LOWER + OUTPUTS] = [0.0; LOWER + OUTPUTS];

/// From the upper 16 rows of the sums to the others, in numbers.
const LOWER: usize = ROWS / 2 * OUTPUTS;

/// Numbers of a step of a part that are prefetched with a panel, so that all panels fetch all of them: four lines.
pub(super) const AHEAD: usize = split::PART / PANELS;

// A part of 32 rows, and one of 32 outputs, has 2048 bytes, and half of it is a tile.

/// Loads a part of the weights.
#[rustfmt::skip]
macro_rules! weights {
    ($part:literal) => {
        concat!(
            "tileloadd tmm6, [{panel} + {stride}*1 + ", $part, "*2048]\n",
            "tileloadd tmm7, [{other_panel} + {stride}*1 + ", $part, "*2048]\n",
        )
    };
}

/// Loads a part of the weights, and multiplies it with the rows that are loaded.
#[rustfmt::skip]
macro_rules! next_weights {
    ($part:literal) => {
        concat!(
            "tileloadd tmm6, [{panel} + {stride}*1 + ", $part, "*2048]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tileloadd tmm7, [{other_panel} + {stride}*1 + ", $part, "*2048]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// Loads a part of the rows, multiplies it with the weights that are loaded, and prefetches four lines of the same part of other rows.
#[rustfmt::skip]
macro_rules! next_rows {
    ($part:literal) => {
        concat!(
            "tileloadd tmm4, [{row} + {stride}*1 + ", $part, "*2048]\n",
            "prefetcht1 [{ahead} + ", $part, "*2048]\n",
            "prefetcht1 [{ahead} + ", $part, "*2048 + 64]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{row} + {stride}*1 + ", $part, "*2048 + 1024]\n",
            "prefetcht1 [{ahead} + ", $part, "*2048 + 128]\n",
            "prefetcht1 [{ahead} + ", $part, "*2048 + 192]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// The steps of a block, with the instructions for the products of a step.
macro_rules! steps {
    ($row:ident, $panel:ident, $packed:ident, $ahead:ident, $counts:ident, ($from:ident, $from_line:ident), $sums:ident, $($products:expr,)*) => {
        asm!(
            "tileloadd tmm0, [{from} + {from_line}*1]",
            "tileloadd tmm1, [{from} + {from_line}*1 + {half_line}]",
            "tileloadd tmm2, [{from} + {from_line}*1 + {lower}]",
            "tileloadd tmm3, [{from} + {from_line}*1 + {lower} + {half_line}]",
            "2:",
            "cmp byte ptr [{counts}], 2",
            $($products,)*
            "add {row}, {row_step}",
            "add {ahead}, {row_step}",
            "add {panel}, {panel_step}",
            "add {other_panel}, {panel_step}",
            "inc {counts}",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + {half_line}], tmm1",
            "tilestored [{sums} + {line}*1 + {lower}], tmm2",
            "tilestored [{sums} + {line}*1 + {lower} + {half_line}], tmm3",
            row = inout(reg) $row => _,
            panel = inout(reg) $panel => _,
            other_panel = inout(reg) $panel.add($packed.vector) => _,
            panel_step = in(reg) $packed.step,
            ahead = inout(reg) $ahead => _,
            counts = inout(reg) $counts.as_ptr() => _,
            steps = inout(reg) $counts.len() => _,
            stride = in(reg) STEP,
            from = in(reg) $from,
            from_line = in(reg) $from_line,
            line = in(reg) LINE,
            sums = in(reg) $sums.as_mut_ptr(),
            row_step = const ROOM * split::PART * size_of::<u16>(),
            half_line = const size_of::<[f32; LANES]>(),
            lower = const LOWER * size_of::<f32>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Adds the products of the parts of a block of rows and a panel to the sums of a tile, or to zero: those of the second and third parts of both with each other
/// are left out, and the others are added in the same order. Parts that a step or the panel does not have would be zeros, which change no sum but one
/// of -0. The panel has the steps of the block.
///
/// Prefetches a share of other rows, which are laid out as `rows`: [`AHEAD`] numbers of each part of each step from `ahead` on, a place that need not
/// be valid.
///
/// # Panics
/// If a slice is too short, or the processor has no products of bf16 on tiles.
#[rustfmt::skip]
pub(super) fn multiply(
    _tiles: &Tiles,
    rows: TileSteps<'_>,
    (panel, packed): (&[u8], Packed),
    ahead: *const u16,
    (start, sums): (Start, &mut Sums),
) {
    const { assert!(split::PARTS == 3 && PARTS == 3, "the loops have three parts") };
    const { assert!(split::PART * size_of::<u16>() == 2048 && pack::PART == 2048 && TILE == 1024, "the loops have these sizes") };
    match rows.room {
        1 => with_room::<1>(rows, (panel, packed), ahead, (start, sums)),
        _ => with_room::<{ split::PARTS }>(rows, (panel, packed), ahead, (start, sums)),
    }
}

/// The same for rows with room for so many parts.
#[rustfmt::skip]
#[inline(always)]
fn with_room<const ROOM: usize>(
    TileSteps { numbers, counts, room }: TileSteps<'_>,
    (panel, packed): (&[u8], Packed),
    ahead: *const u16,
    (start, sums): (Start, &mut Sums),
) {
    const LINE: usize = size_of::<[f32; OUTPUTS]>();
    let steps = counts.len();
    assert!(has_bf16(), "the processor has no AMX-BF16");
    assert!((1..=STEPS).contains(&steps) && room == ROOM && numbers.len() == steps * ROOM * split::PART);
    assert!(ROOM == split::PARTS || counts.iter().all(|count| *count == 1), "parts: {counts:?}, with room for {ROOM}");
    let last = (steps - 1) * packed.step + packed.vector + (packed.parts - 1) * pack::PART;
    assert!((1..=PARTS).contains(&packed.parts) && last + TILE <= panel.len());
    let (row, panel) = (numbers.as_ptr(), panel.as_ptr());
    let (from, from_line) = match start {
        Start::Zero => (ZEROS.as_ptr(), 0),
        Start::Sums => (sums.as_ptr().cast(), LINE),
    };
    // SAFETY: this thread has configured the tiles, and the processor has the instructions. Of each step, the parts of 32 rows, the parts of the panel
    // and a count are there, and 32 rows of 128 bytes of sums, by the checks and by their type.
    unsafe {
        match packed.parts {
            1 => steps!(row, panel, packed, ahead, counts, (from, from_line), sums,
                weights!(0),
                "jb 4f", "je 3f",
                next_rows!(2),
                "3:", next_rows!(1),
                "4:", next_rows!(0),
            ),
            2 => steps!(row, panel, packed, ahead, counts, (from, from_line), sums,
                "jb 4f",
                weights!(0),
                "je 3f",
                next_rows!(2),
                "3:", next_rows!(1),
                next_weights!(1),
                next_rows!(0),
                "jmp 5f",
                "4:", weights!(1), next_rows!(0),
                "5:", next_weights!(0),
            ),
            _ => steps!(row, panel, packed, ahead, counts, (from, from_line), sums,
                "jb 4f",
                weights!(0),
                "je 3f",
                next_rows!(2),
                "3:", next_rows!(1),
                next_weights!(1),
                next_rows!(0),
                "jmp 5f",
                "4:", weights!(1), next_rows!(0),
                "5:", next_weights!(2),
                next_weights!(0),
            ),
        }
    }
}
