//! Products of bytes on NEON. The intrinsics are not stable, so the instruction is written out.

use std::arch::aarch64::{int8x16_t, int32x4_t};
use std::arch::{asm, is_aarch64_feature_detected};

/// Whether the processor multiplies bytes and adds them in fours.
pub(super) fn has_dot() -> bool {
    is_aarch64_feature_detected!("dotprod")
}

/// The sums, with the products of 16 bytes, each four of which belong to a lane.
#[target_feature(enable = "neon,dotprod")]
#[inline]
pub(super) fn add_fours(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction only reads and writes these registers.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
