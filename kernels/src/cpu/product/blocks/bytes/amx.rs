//! Products of a step on AMX: 16 rows and 32 outputs.

use std::arch::asm;

use super::rows::TILE;
use super::shape::Shape;
use super::sums::Products;
use crate::cpu::product::amx::{Tiles, has_int8};
use crate::cpu::product::panel::{GROUP, LANES, OUTPUTS, STEP};

/// The tiles for steps of this many inputs: 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights.
pub(super) fn tiles(shape: Shape) -> Tiles {
    assert!(has_int8(), "the processor has no AMX-INT8");
    let (depth, group) = (shape.depth() as u16, GROUP as u8);
    let fours = (shape.depth() / size_of::<i32>()) as u8;
    let wide = (group, STEP as u16);
    Tiles::of([wide, wide, wide, wide, (group, depth), (group, depth), (fours, STEP as u16), (fours, STEP as u16)])
}

/// Writes the products of a step of a group, whose planes are [`TILE`] bytes apart, and of the two vectors of a panel, `distance` bytes apart.
///
/// # Safety
/// The planes and vectors have the bytes of the step, and this thread the tiles for it.
#[inline(always)]
pub(super) unsafe fn multiply<const N: usize>(
    row: *const u8,
    weights: *const u8,
    distance: usize,
    products: &mut Products<N>,
) {
    const LINE: usize = size_of::<[i32; OUTPUTS]>();
    // SAFETY: the caller guarantees it, and there is room for 16 rows of 128 bytes of each plane.
    unsafe {
        if N == 1 {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tileloadd tmm4, [{row} + {chunk}*1]",
                "tileloadd tmm6, [{weights} + {step}*1]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{other_weights} + {step}*1]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tilestored [{products} + {line}*1], tmm0",
                "tilestored [{products} + {line}*1 + {half_line}], tmm1",
                row = in(reg) row,
                weights = in(reg) weights,
                other_weights = in(reg) weights.add(distance),
                chunk = in(reg) TILE / GROUP,
                step = in(reg) STEP,
                line = in(reg) LINE,
                products = in(reg) products.as_mut_ptr(),
                half_line = const size_of::<[i32; LANES]>(),
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        } else {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tileloadd tmm4, [{row} + {chunk}*1]",
                "tileloadd tmm6, [{weights} + {step}*1]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{other_weights} + {step}*1]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{row} + {chunk}*1 + {plane}]",
                "tdpbusd tmm2, tmm5, tmm6",
                "tdpbusd tmm3, tmm5, tmm7",
                "tilestored [{products} + {line}*1], tmm0",
                "tilestored [{products} + {line}*1 + {half_line}], tmm1",
                "tilestored [{products} + {line}*1 + {lower}], tmm2",
                "tilestored [{products} + {line}*1 + {lower} + {half_line}], tmm3",
                row = in(reg) row,
                weights = in(reg) weights,
                other_weights = in(reg) weights.add(distance),
                chunk = in(reg) TILE / GROUP,
                step = in(reg) STEP,
                line = in(reg) LINE,
                products = in(reg) products.as_mut_ptr(),
                plane = const TILE,
                half_line = const size_of::<[i32; LANES]>(),
                lower = const GROUP * LINE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }
}
