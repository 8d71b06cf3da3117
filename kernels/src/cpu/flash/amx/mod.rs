//! The two products of attention on AMX, for keys and values in bf16: 16 keys, or features, by 16 queries, 32 numbers at a time.
//!
//! Scores and contexts have one query to a lane, as those in f32. So rows of keys are read as they are, values are transposed once for a block, and pairs of
//! rows of queries and of weights are interleaved:
//!
//! ```text
//!                 64 queries                              64 queries
//!               ┌────────────┐ 32 features              ┌────────────┐ 32 keys
//!               │ pairs      │ of up to three parts     │ pairs      │ of two parts
//!               └────────────┘                          └────────────┘
//!  ┌──────────┐ ┌────────────┐              ┌─────────┐ ┌────────────┐
//!  │ 32 keys  │ │ scores     │              │ 32 fea- │ │ contexts   │
//!  └──────────┘ └────────────┘              │ tures   │ └────────────┘
//!  32 features                              └─────────┘ 32 keys
//! ```
//!
//! A query is the exact sum of up to three bf16. A weight is rounded to two, and is off by at most 2^-17 of itself. The instruction takes subnormal numbers
//! for 0 and makes 0 of subnormal results, so that magnitudes below 2^-126 are lost.
//!
//! A product with 0 is no 0 if the other number is not finite. So scores of queries and keys that are not finite are computed in f32, which affects no others,
//! and such values are 0 in the tiles, and added in f32 where their weight is not 0.

mod block;
mod products;
mod queries;
mod weights;

use std::arch::asm;

use crate::cpu::attention::{Attention, Cached};
use crate::cpu::product::amx::{Tiles, has_bf16};
use crate::cpu::product::panel;
pub(super) use block::{Packed, PackedBuffer};
pub(super) use products::{Products, WeightBuffer};
pub(super) use queries::PackedQueries;

/// Lanes of a tile of queries.
pub(super) const LANES: usize = 64;

/// Rows and columns that are multiplied together, and numbers that an instruction adds.
pub(super) const SIDE: usize = 32;

/// Rows, or pairs of rows, of an instruction.
const HALF: usize = 16;

/// Keys whose scores are computed before their values are added: whole steps.
pub(super) const PART: usize = 128;

/// What an instruction multiplies: 16 rows of 32 bf16, or of 16 pairs.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Tile([[u32; HALF]; HALF]);

impl Tile {
    /// The rows as numbers.
    fn numbers(&self) -> &[[u16; SIDE]; HALF] {
        bytemuck::cast_ref(&self.0)
    }

    fn numbers_mut(&mut self) -> &mut [[u16; SIDE]; HALF] {
        bytemuck::cast_mut(&mut self.0)
    }
}

/// The machine for the keys and values of a problem, if the processor has it and a tile of queries has this many lanes.
pub(super) fn machine(problem: &Attention<'_>, lanes: usize) -> Option<Tiles> {
    let is_bf16 = matches!((problem.key, problem.value), (Cached::BF16(_), Cached::BF16(_)));
    let is_available = lanes == LANES && has_bf16() && panel::is_available() && weights::is_available();
    (is_bf16 && is_available).then(Tiles::new)
}

/// Two groups of 16 rows, or columns, of tiles.
#[derive(Clone, Copy)]
struct Groups<'a> {
    /// From the first tile of the first group on.
    tiles: &'a [Tile],
    /// From one group to the next, in tiles.
    stride: usize,
}

/// What to multiply.
#[derive(Clone, Copy)]
struct Shape {
    /// Tiles of a group along the sum.
    steps: usize,
    /// Parts of the columns, which follow each other; rows have one.
    parts: usize,
    /// Whether the sums begin with 0.
    fresh: bool,
}

/// Adds the products of 32 rows and 32 columns to `sums`, which begins with the first of them and has [`LANES`] columns.
///
/// # Panics
/// If a slice is too short, or the processor has no products of bf16 on tiles.
fn multiply(_tiles: &Tiles, rows: Groups<'_>, columns: Groups<'_>, shape: Shape, sums: &mut [f32]) {
    let Shape { steps, parts, fresh } = shape;
    assert!(has_bf16(), "the processor has no AMX-BF16");
    assert!(steps > 0 && parts > 0 && rows.tiles.len() >= rows.stride + steps);
    assert!(columns.tiles.len() >= columns.stride + parts * steps);
    assert!(sums.len() >= (SIDE - 1) * LANES + SIDE);
    let (row, column) = (rows.tiles.as_ptr(), columns.tiles.as_ptr());
    // SAFETY: this thread has configured the tiles, and the processor has the instructions. By the checks each group has its tiles, and 32 rows of 32
    // sums, 256 bytes from each other, are there.
    unsafe {
        asm!(
            "test {left}, {left}",
            "jnz 2f",
            "tileloadd tmm0, [{sums} + {lanes}*1]",
            "tileloadd tmm1, [{sums} + {lanes}*1 + {half_row}]",
            "tileloadd tmm2, [{sums} + {lanes}*1 + {lower}]",
            "tileloadd tmm3, [{sums} + {lanes}*1 + {lower} + {half_row}]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "mov {own}, {row}",
            "mov {other}, {other_row}",
            "mov {left}, {steps}",
            "4:",
            "tileloadd tmm4, [{own} + {line}*1]",
            "tileloadd tmm6, [{column} + {line}*1]",
            "tileloadd tmm7, [{other_column} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{other} + {line}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {own}, {tile}",
            "add {other}, {tile}",
            "add {column}, {tile}",
            "add {other_column}, {tile}",
            "dec {left}",
            "jnz 4b",
            "dec {parts}",
            "jnz 3b",
            "tilestored [{sums} + {lanes}*1], tmm0",
            "tilestored [{sums} + {lanes}*1 + {half_row}], tmm1",
            "tilestored [{sums} + {lanes}*1 + {lower}], tmm2",
            "tilestored [{sums} + {lanes}*1 + {lower} + {half_row}], tmm3",
            left = inout(reg) usize::from(fresh) => _,
            own = out(reg) _,
            other = out(reg) _,
            row = in(reg) row,
            other_row = in(reg) row.add(rows.stride),
            column = inout(reg) column => _,
            other_column = inout(reg) column.add(columns.stride) => _,
            steps = in(reg) steps,
            parts = inout(reg) parts => _,
            line = in(reg) size_of::<[u32; HALF]>(),
            lanes = in(reg) size_of::<[f32; LANES]>(),
            sums = in(reg) sums.as_mut_ptr(),
            tile = const size_of::<Tile>(),
            half_row = const size_of::<[f32; HALF]>(),
            lower = const HALF * size_of::<[f32; LANES]>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
