//! Products of bf16 on AVX512-BF16: 32 of them, added in pairs, with one instruction. It takes inputs that are bf16 themselves, in one part: three parts
//! would take longer than f32.

use std::arch::x86_64::{
    __cpuid, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::sync::LazyLock;

use super::amx::Start;
use super::split::{self, INPUTS, PART, TileSteps};
use super::weights::Packed;
use crate::cpu::product::panel::{GROUP, LANES, OUTPUTS, STEP, TILE, VECTORS};

/// Rows whose sums are in registers.
const ROWS: usize = 8;

/// Whether the processor has the instruction.
pub(super) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bf16")
}

/// Whether the instruction is faster than two multiply-adds of f32. On Zen 4 and 5 it takes the time of one, by published tables, and on the Intel Xeon
/// that this was measured on the time of four.
pub(super) fn is_fast() -> bool {
    static IS_AMD: LazyLock<bool> = LazyLock::new(|| {
        let vendor = __cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    });
    is_available() && *IS_AMD
}

/// Adds the products of the first rows of a group and a panel to the sums of these rows, or to zero, pair by pair in the order of the inputs. Both have one part.
///
/// # Panics
/// If a slice is too short.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn multiply(
    rows: TileSteps<'_>,
    group: usize,
    panel: (&[u8], Packed),
    (start, sums): (Start, &mut [[f32; OUTPUTS]]),
) {
    assert!(sums.len() <= GROUP);
    let mut first = 0;
    while first < sums.len() {
        let row = group * GROUP + first;
        first += match sums.len() - first {
            ROWS.. => some::<ROWS>(rows, row, panel, (start, &mut sums[first..])),
            4.. => some::<4>(rows, row, panel, (start, &mut sums[first..])),
            _ => some::<1>(rows, row, panel, (start, &mut sums[first..])),
        };
    }
}

/// The same for `N` rows from `first` on; returns `N`.
#[target_feature(enable = "avx512f,avx512bf16")]
fn some<const N: usize>(
    rows: TileSteps<'_>,
    first: usize,
    (panel, packed): (&[u8], Packed),
    (start, sums): (Start, &mut [[f32; OUTPUTS]]),
) -> usize {
    /// Pairs of a row in a step.
    const PAIRS: usize = STEP / size_of::<[u16; 2]>();
    let (numbers, steps, step_numbers) = (rows.numbers, rows.counts.len(), rows.room * PART);
    assert!(first + N <= split::ROWS && numbers.len() == steps * step_numbers && steps > 0);
    assert!((steps - 1) * packed.step + (VECTORS - 1) * packed.vector + TILE <= panel.len());
    let mut totals = [[_mm512_setzero_ps(); VECTORS]; N];
    if start == Start::Sums {
        for (totals, sums) in totals.iter_mut().zip(&*sums) {
            for (total, sums) in totals.iter_mut().zip(sums.as_chunks::<LANES>().0) {
                // SAFETY: there are 16 sums.
                *total = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
            }
        }
    }
    for step in 0..steps {
        for at in 0..PAIRS {
            let own: [__m512i; VECTORS] = std::array::from_fn(|v| {
                // SAFETY: each vector of the panel has a register for every pair of a row.
                unsafe {
                    _mm512_loadu_si512(panel.as_ptr().add(v * packed.vector + step * packed.step + at * STEP).cast())
                }
            });
            for (n, totals) in totals.iter_mut().enumerate() {
                // SAFETY: the tile has this pair.
                let pair = unsafe {
                    let row = numbers.as_ptr().add(step * step_numbers + (first + n) * INPUTS);
                    row.cast::<i32>().add(at).read_unaligned()
                };
                let pair = bf16(_mm512_set1_epi32(pair));
                for v in 0..VECTORS {
                    totals[v] = _mm512_dpbf16_ps(totals[v], pair, bf16(own[v]));
                }
            }
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (sums, total) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(totals) {
            // SAFETY: there is room for 16 sums.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
        }
    }
    N
}

/// The same bits.
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes of any contents.
    unsafe { std::mem::transmute(bits) }
}
