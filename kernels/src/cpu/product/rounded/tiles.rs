//! Many rows: tiles of 32 rows and 32 outputs, whose sums are integers.
//!
//! ```text
//!                inputs                     32 outputs
//!           ┌──────────────┐             ┌──────────────┐
//!  32 rows  │ bytes        │  ×  panels  │ int8         │ inputs   of the outputs of a task, in the second-level cache
//!           └──────────────┘             └──────────────┘
//! ```

use std::ops::Range;

use burn_deepspeed_core::data_type::InputBits;

use super::engine::{Engine, ROWS, Ready, Sums};
use super::rows::{RoundGroup, Segment, lower_bits, offset};
use super::weights::pack_segment;
use crate::cpu::places::{Places, Taker};
use crate::cpu::product::int8::Int8Matrix;
use crate::cpu::product::panel::{GROUP, OUTPUTS, STEP};
use crate::cpu::product::problem::Product;
use crate::cpu::scratch::{Disjoint, with_scratch};
use crate::cpu::threads;

/// Bytes of the panels of a task.
const PANELS: usize = 512 * 1024;

/// Rows that are rounded at a time, which bounds the memory that a thread keeps for them.
const MOST_ROWS: usize = 1024;

/// The product of rows that were checked.
pub(super) fn product(engine: Engine, problem: &Product<'_, Int8Matrix<'_>>, bits: InputBits, output: &mut Places<'_>) {
    let segments = Segment::all(&problem.matrix);
    output.claim(problem.first..problem.first + problem.matrix.outputs, problem.width);
    for (at, input) in problem.input.chunks(MOST_ROWS * problem.matrix.inputs).enumerate() {
        let problem = Product { input, ..*problem };
        let output = (&*output, at * MOST_ROWS);
        match bits {
            InputBits::Eight => planes::<1>(engine, &problem, bits, &segments, output),
            InputBits::Fourteen => planes::<2>(engine, &problem, bits, &segments, output),
        }
    }
}

/// The same for rows that are all rounded at once, into those of the output from `first_row` on.
fn planes<const N: usize>(
    engine: Engine,
    problem: &Product<'_, Int8Matrix<'_>>,
    bits: InputBits,
    segments: &[Segment],
    (output, first_row): (&Places<'_>, usize),
) {
    let Product { input, matrix, .. } = *problem;
    let (inputs, outputs) = (matrix.inputs, matrix.outputs);
    let (rows, stride) = (input.len() / inputs, Segment::bytes(segments));
    // Tiles are whole. What is after the last row is not read from the sums.
    let plane = rows.next_multiple_of(ROWS) * stride;
    with_scratch(N * plane / 4 + rows, |scratch| {
        let (bytes, scales) = scratch.split_at_mut(N * plane / 4);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(bytes);
        let places = Disjoint::new(bytes);
        threads::each_part(scales, GROUP, |group, scales| {
            with_scratch(inputs.div_ceil(2), |whole| {
                let whole = &mut bytemuck::cast_slice_mut(whole)[..inputs];
                let rows = &input[group * GROUP * inputs..][..scales.len() * inputs];
                // SAFETY: every group has its own place in each plane.
                let place = |n| unsafe { places.part(n * plane + group * GROUP * stride, GROUP * stride) };
                RoundGroup::<N> { rows, bits, segments, whole, planes: std::array::from_fn(place), scales }.run();
            });
        });
        let (bytes, scales) = (&*bytes, &*scales);
        let planes = std::array::from_fn(|n| &bytes[n * plane..][..plane]);
        let fair = outputs.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(OUTPUTS);
        let each = fair.clamp(OUTPUTS, (PANELS / stride / OUTPUTS * OUTPUTS).max(OUTPUTS));
        threads::each(outputs.div_ceil(each), |task| {
            let outputs = task * each..outputs.min((task + 1) * each);
            Task::<N> { engine, problem, segments, planes, stride, scales, outputs, output, first_row }.run();
        });
    });
}

/// Some outputs of all rows.
struct Task<'a, const N: usize> {
    engine: Engine,
    problem: &'a Product<'a, Int8Matrix<'a>>,
    segments: &'a [Segment],
    /// The bytes of the rows, the upper bits first.
    planes: [&'a [u8]; N],
    /// Bytes of a row.
    stride: usize,
    /// The scales of the rows.
    scales: &'a [f32],
    outputs: Range<usize>,
    output: &'a Places<'a>,
    /// The row of the output that the first row becomes.
    first_row: usize,
}

impl<const N: usize> Task<'_, N> {
    fn run(self) {
        let Self { engine, problem, segments, stride, scales, ref outputs, .. } = self;
        let panels = outputs.len().div_ceil(OUTPUTS);
        let engine = engine.ready();
        with_scratch(panels * stride * OUTPUTS / 4, |scratch| {
            let packed: &mut [i8] = bytemuck::cast_slice_mut(scratch);
            let count = panels * segments.len();
            let (mut totals, mut factors) = (Vec::with_capacity(count), Vec::with_capacity(count));
            for (panel, packed) in packed.chunks_exact_mut(stride * OUTPUTS).enumerate() {
                let first = outputs.start + panel * OUTPUTS;
                let own = (first, OUTPUTS.min(outputs.end - first));
                for segment in segments {
                    let place = &mut packed[segment.place * OUTPUTS..][..segment.steps() * STEP * OUTPUTS];
                    totals.push(pack_segment(&problem.matrix, segment, own, place));
                    factors.push(self.factors(segment, own));
                }
            }
            let mut products = [[[0; OUTPUTS]; ROWS]; N];
            let taker = self.output.taker();
            for first_row in (0..scales.len()).step_by(ROWS) {
                for panel in 0..panels {
                    let packed = &packed[panel * stride * OUTPUTS..][..stride * OUTPUTS];
                    let mut sums: Sums<f32> = [[0.0; OUTPUTS]; ROWS];
                    for (at, segment) in segments.iter().enumerate() {
                        self.multiply(&engine, first_row, segment, packed, &mut products);
                        let at = panel * segments.len() + at;
                        pulp::Arch::new().dispatch(Add::<N> {
                            products: &products,
                            totals: &totals[at],
                            factors: &factors[at],
                            sums: &mut sums,
                        });
                    }
                    let first = outputs.start + panel * OUTPUTS;
                    let count = OUTPUTS.min(outputs.end - first);
                    let write = Write { task: &self, taker: &taker, first_row, first, count, sums: &sums };
                    pulp::Arch::new().dispatch(write);
                }
            }
        });
    }

    /// The scales of a segment of some outputs; zeros after the last.
    fn factors(&self, segment: &Segment, (first, count): (usize, usize)) -> [f32; OUTPUTS] {
        std::array::from_fn(|output| match output < count {
            true => self.problem.matrix.run(first + output).1[segment.block],
            false => 0.0,
        })
    }

    /// The sums of the products of a segment of a tile, for each plane; those of rows after the last are unspecified.
    fn multiply(
        &self,
        engine: &Ready,
        first_row: usize,
        segment: &Segment,
        packed: &[i8],
        products: &mut [Sums<i32>; N],
    ) {
        let panel = &packed[segment.place * OUTPUTS..][..segment.steps() * STEP * OUTPUTS];
        for (plane, products) in self.planes.iter().zip(products) {
            let groups = &plane[first_row * self.stride + segment.place * GROUP..];
            let rows = ROWS.min(self.scales.len() - first_row);
            engine.multiply(groups, GROUP * self.stride, rows, segment.steps(), panel, products);
        }
    }
}

/// Writes the sums of a tile, times the scales of its rows, with the bias.
struct Write<'a, const N: usize> {
    task: &'a Task<'a, N>,
    taker: &'a Taker<'a>,
    first_row: usize,
    /// The first output, and how many there are.
    first: usize,
    count: usize,
    sums: &'a Sums<f32>,
}

impl<const N: usize> pulp::WithSimd for Write<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) {
        let Self { task, taker, first_row, first, count, sums } = self;
        let bias = task.problem.bias.map(|bias| &bias[first..][..count]);
        for ((row, scale), sums) in (first_row..).zip(&task.scales[first_row..]).zip(sums) {
            // SAFETY: no other task has these outputs, which are claimed, and this one takes those of a row once.
            let places = unsafe { taker.part(task.problem.place(task.first_row + row, first), count) };
            match bias {
                Some(bias) => {
                    for ((place, sum), bias) in places.iter_mut().zip(sums).zip(bias) {
                        *place = sum * scale + bias;
                    }
                }
                None => places.iter_mut().zip(sums).for_each(|(place, sum)| *place = sum * scale + 0.0),
            }
        }
    }
}

/// Adds the products of a segment, times the scales of its outputs, to the sums of a tile.
struct Add<'a, const N: usize> {
    products: &'a [Sums<i32>; N],
    /// The sums of the weights.
    totals: &'a [i32; OUTPUTS],
    factors: &'a [f32; OUTPUTS],
    sums: &'a mut Sums<f32>,
}

impl<const N: usize> pulp::WithSimd for Add<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) {
        let Self { products, totals, factors, sums } = self;
        for (row, sums) in sums.iter_mut().enumerate() {
            for o in 0..OUTPUTS {
                let upper = products[0][row][o] - offset(N) * totals[o];
                // The sum of two planes has more bits than an integer of 32, and fewer than an f64: it is rounded once.
                let sum = match N {
                    1 => upper as f32,
                    _ => (f64::from(upper) * f64::from(1 << lower_bits(N)) + f64::from(products[N - 1][row][o])) as f32,
                };
                sums[o] += sum * factors[o];
            }
        }
    }
}
