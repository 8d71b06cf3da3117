//! Products of integers of 16 bits on NEON, and of bytes where there are instructions for them.
//!
//! An integer of 14 bits is then two bytes, its upper 7 bits and its lower 7 bits, next to each other: vectors of rows fall apart into one of each,
//! which are multiplied with the weights as they are.

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vaddlvq_s32, vdupq_n_s32, vget_low_s16, vld1q_s8, vld1q_s16, vmlal_high_s16, vmlal_s16,
    vreinterpretq_s8_s16, vuzp1q_s8, vuzp2q_s8,
};

use burn_deepspeed_core::data_type::InputBits;

use super::whole::{PAIR, Whole, rest};
use crate::cpu::neon::{add_fours, has_dot};

/// Bits of the lower byte.
const LOWER: u32 = 7;

/// Puts the upper bits of integers of 14 bits into their upper bytes, if bytes are multiplied.
pub fn arrange(row: &mut [i16], bits: InputBits) {
    if has_dot() && bits == InputBits::Fourteen {
        row.iter_mut().for_each(|whole| *whole = (*whole >> LOWER << 8) | (*whole & ((1 << LOWER) - 1)));
    }
}

/// Whether weights stay bytes for any number of rows.
pub fn reads_bytes() -> bool {
    has_dot()
}

/// Rows that are multiplied together.
pub fn most_rows() -> usize {
    PAIR
}

/// The products of the runs and each of the rows, which have their length.
pub fn dot<E: Whole, const N: usize, const M: usize>(
    runs: [&[E]; N],
    rows: [&[i16]; M],
    bits: InputBits,
) -> [[i64; N]; M] {
    if has_dot() {
        let mut bytes = [&[][..]; N];
        for n in 0..N {
            bytes[n] = E::as_bytes(runs[n]).unwrap_or_default();
        }
        return match bits {
            // SAFETY: the processor has the instructions.
            InputBits::Eight => unsafe { of_bytes::<1, N, M>(bytes, rows) },
            // SAFETY: as above.
            InputBits::Fourteen => unsafe { of_bytes::<2, N, M>(bytes, rows) },
        };
    }
    of_words(runs, rows)
}

/// The products by each way that this processor has.
#[cfg(test)]
pub fn every<const N: usize, const M: usize>(
    runs: [&[i8]; N],
    rows: [&[i16]; M],
    bits: InputBits,
) -> Vec<(&'static str, [[i64; N]; M])> {
    let mut found = vec![("the fastest", dot(runs, rows, bits))];
    if bits == InputBits::Eight {
        // These are arranged alike.
        found.push(("words", of_words(runs, rows)));
    }
    found
}

/// Products of words. Each sum has two registers, for the halves of a vector: eight lanes hold the sums of 16384 elements.
#[allow(clippy::needless_range_loop, reason = "several slices at one index")]
fn of_words<E: Whole, const N: usize, const M: usize>(runs: [&[E]; N], rows: [&[i16]; M]) -> [[i64; N]; M] {
    const LANES: usize = 8;
    let len = rows[0].len();
    assert!(runs.iter().all(|run| run.len() == len) && rows.iter().all(|row| row.len() == len));
    let whole = len / LANES * LANES;
    // SAFETY: every 64-bit Arm processor has NEON, and every row and run has the elements of whole vectors.
    unsafe {
        let mut sums = [[[vdupq_n_s32(0); 2]; N]; M];
        for at in (0..whole).step_by(LANES) {
            for n in 0..N {
                let weights = E::load(runs[n], at);
                for m in 0..M {
                    let own = i16::load(rows[m], at);
                    let [low, high] = sums[m][n];
                    sums[m][n] =
                        [vmlal_s16(low, vget_low_s16(weights), vget_low_s16(own)), vmlal_high_s16(high, weights, own)];
                }
            }
        }
        let mut totals = [[0; N]; M];
        for m in 0..M {
            for n in 0..N {
                let [low, high] = sums[m][n];
                totals[m][n] = vaddlvq_s32(low) + vaddlvq_s32(high) + rest(&runs[n][whole..], &rows[m][whole..]);
            }
        }
        totals
    }
}

/// Products of bytes, of rows that have one or two for each element.
#[target_feature(enable = "neon,dotprod")]
#[allow(clippy::needless_range_loop, reason = "several slices at one index")]
fn of_bytes<const P: usize, const N: usize, const M: usize>(runs: [&[i8]; N], rows: [&[i16]; M]) -> [[i64; N]; M] {
    const LANES: usize = 16;
    let len = rows[0].len();
    assert!(runs.iter().all(|run| run.len() == len) && rows.iter().all(|row| row.len() == len));
    let whole = len / LANES * LANES;
    let zero: int32x4_t = vdupq_n_s32(0);
    let mut sums = [[[zero; P]; N]; M];
    for at in (0..whole).step_by(LANES) {
        for m in 0..M {
            // SAFETY: every row has the elements of whole vectors.
            let own: [int8x16_t; 2] = unsafe {
                let first = vreinterpretq_s8_s16(vld1q_s16(rows[m].as_ptr().add(at)));
                let last = vreinterpretq_s8_s16(vld1q_s16(rows[m].as_ptr().add(at + LANES / 2)));
                [vuzp1q_s8(first, last), vuzp2q_s8(first, last)]
            };
            for n in 0..N {
                // SAFETY: every run has the elements of whole vectors.
                let weights = unsafe { vld1q_s8(runs[n].as_ptr().add(at)) };
                for p in 0..P {
                    sums[m][n][p] = add_fours(sums[m][n][p], weights, own[p]);
                }
            }
        }
    }
    let upper_and_lower = |element: i16| if P == 1 { [0, element] } else { [element >> 8, element & 0xff] };
    let mut totals = [[0; N]; M];
    for m in 0..M {
        for n in 0..N {
            let mut total = vaddlvq_s32(sums[m][n][0]);
            if P == 2 {
                total += vaddlvq_s32(sums[m][n][P - 1]) << LOWER;
            }
            for (weight, element) in runs[n][whole..].iter().zip(&rows[m][whole..]) {
                let [upper, lower] = upper_and_lower(*element);
                total += i64::from(*weight) * (i64::from(upper) * (1 << LOWER) + i64::from(lower));
            }
            totals[m][n] = total;
        }
    }
    totals
}
