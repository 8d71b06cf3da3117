//! Products of bytes on NEON: 16 of them, added in fours, with one instruction, or 32 of two rows and two outputs, added in eights.
//!
//! The intrinsics are not stable, so the instructions are written out.

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vcombine_s8, vdupq_n_s32, vget_high_s32, vget_low_s32, vld1_s8, vld1q_s8,
    vreinterpretq_s8_s32, vreinterpretq_s32_s8, vst1_s32, vst1q_s32, vzip1q_s32, vzip2q_s32,
};
use std::arch::{asm, is_aarch64_feature_detected};

use crate::cpu::neon::has_dot;
use crate::cpu::product::panel::{GROUP, LANES, OUTPUTS, STEP, TILE, VECTORS};

/// Rows whose sums are in registers.
const ROWS: usize = 4;
/// Bytes of a row that are added up in a lane.
const FOUR: usize = 4;
/// Outputs of a register.
const WORDS: usize = 4;
/// Registers of a vector of outputs.
const PARTS: usize = LANES / WORDS;

/// Whether the processor multiplies two rows with two outputs.
pub(super) fn has_mmla() -> bool {
    has_dot() && is_aarch64_feature_detected!("i8mm")
}

/// The sums, with the products of four outputs and the bytes `4 · N..4 · N + 4` of a row.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn add_one_four<const N: usize>(mut sums: int32x4_t, weights: int8x16_t, row: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction only reads and writes these registers.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {weights:v}.16b, {row:v}.4b[{n}]",
            sums = inout(vreg) sums,
            weights = in(vreg) weights,
            row = in(vreg) row,
            n = const N,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The sums of two rows and two outputs, with the products of 8 bytes of each.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn add_eights(mut sums: int32x4_t, rows: int8x16_t, weights: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction only reads and writes these registers.
    unsafe {
        asm!(
            "smmla {sums:v}.4s, {rows:v}.16b, {weights:v}.16b",
            sums = inout(vreg) sums,
            rows = in(vreg) rows,
            weights = in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Some rows of a group, and a vector of a panel.
struct Part<'a> {
    /// From the first byte of the first row on.
    rows: &'a [u8],
    steps: usize,
    vector: &'a [i8],
}

impl Part<'_> {
    /// The bytes `at..` of a row in the step, as a pointer that may be read for the rest of the step.
    fn row(&self, step: usize, row: usize, at: usize) -> *const i8 {
        self.rows[step * TILE + row * STEP + at..].as_ptr().cast()
    }

    /// The weights of four outputs of the vector and the bytes `4 · four..` of the step.
    fn weights(&self, step: usize, four: usize, part: usize) -> int8x16_t {
        let at = (step * STEP / FOUR + four) * STEP + part * size_of::<int8x16_t>();
        // SAFETY: the vector has 64 bytes for every four bytes of a row, as `multiply` has checked.
        unsafe { vld1q_s8(self.vector.as_ptr().add(at)) }
    }
}

/// The sums of the products of rows of a group with `steps` steps, and a panel, by pairs of rows or by one.
///
/// # Panics
/// If a slice is too short.
pub(super) fn multiply(pairs: bool, rows: &[u8], steps: usize, panel: &[i8], sums: &mut [[i32; OUTPUTS]]) {
    assert!(sums.len() <= GROUP && rows.len() >= steps * TILE && panel.len() == steps * STEP * OUTPUTS);
    assert!(if pairs { has_mmla() } else { has_dot() }, "the processor has no products of bytes");
    for (at, sums) in sums.chunks_mut(ROWS).enumerate() {
        for (v, vector) in panel.chunks_exact(panel.len() / VECTORS).enumerate() {
            let part = Part { rows: &rows[at * ROWS * STEP..], steps, vector };
            let mut own = [[0; LANES]; ROWS];
            // SAFETY: the processor has the instructions.
            unsafe { if pairs { eights(&part, &mut own) } else { fours(&part, &mut own) } };
            for (sums, own) in sums.iter_mut().zip(own) {
                sums[v * LANES..][..LANES].copy_from_slice(&own);
            }
        }
    }
}

#[target_feature(enable = "neon,dotprod")]
fn fours(part: &Part<'_>, sums: &mut [[i32; LANES]; ROWS]) {
    const BYTES: usize = size_of::<int8x16_t>();
    let mut totals = [[vdupq_n_s32(0); PARTS]; ROWS];
    for step in 0..part.steps {
        for quarter in 0..STEP / BYTES {
            let own: [int8x16_t; ROWS] = std::array::from_fn(|row| {
                // SAFETY: the step has 16 more bytes of the row.
                unsafe { vld1q_s8(part.row(step, row, quarter * BYTES)) }
            });
            macro_rules! add {
                ($($n:literal)*) => {$(
                    for p in 0..PARTS {
                        let weights = part.weights(step, quarter * WORDS + $n, p);
                        for (totals, own) in totals.iter_mut().zip(own) {
                            totals[p] = add_one_four::<$n>(totals[p], weights, own);
                        }
                    }
                )*};
            }
            add!(0 1 2 3);
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (sums, total) in sums.as_chunks_mut::<WORDS>().0.iter_mut().zip(totals) {
            // SAFETY: there is room for four sums.
            unsafe { vst1q_s32(sums.as_mut_ptr(), total) };
        }
    }
}

#[target_feature(enable = "neon,i8mm")]
fn eights(part: &Part<'_>, sums: &mut [[i32; LANES]; ROWS]) {
    const BYTES: usize = 2 * FOUR;
    let mut totals = [[vdupq_n_s32(0); LANES / 2]; ROWS / 2];
    for step in 0..part.steps {
        for eight in 0..STEP / BYTES {
            let own: [int8x16_t; ROWS / 2] = std::array::from_fn(|pair| {
                let [one, other] = [0, 1].map(|row| part.row(step, 2 * pair + row, eight * BYTES));
                // SAFETY: the step has eight more bytes of each row.
                unsafe { vcombine_s8(vld1_s8(one), vld1_s8(other)) }
            });
            for p in 0..PARTS {
                let [first, last] = [0, 1].map(|n| vreinterpretq_s32_s8(part.weights(step, 2 * eight + n, p)));
                // Eight bytes of the first two outputs, and of the last two.
                for (o, weights) in [vzip1q_s32(first, last), vzip2q_s32(first, last)].into_iter().enumerate() {
                    for (totals, own) in totals.iter_mut().zip(own) {
                        totals[2 * p + o] = add_eights(totals[2 * p + o], own, vreinterpretq_s8_s32(weights));
                    }
                }
            }
        }
    }
    for (sums, totals) in sums.as_chunks_mut::<2>().0.iter_mut().zip(totals) {
        let [one, other] = sums;
        for (at, total) in totals.into_iter().enumerate() {
            // SAFETY: there is room for two sums.
            unsafe {
                vst1_s32(one[2 * at..][..2].as_mut_ptr(), vget_low_s32(total));
                vst1_s32(other[2 * at..][..2].as_mut_ptr(), vget_high_s32(total));
            }
        }
    }
}
