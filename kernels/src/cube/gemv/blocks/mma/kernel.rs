//! The kernel.

use burn_deepspeed_core::block::UNIT_BYTES;
use cubecl::prelude::*;

use super::inputs::{Inputs, Oct, REST_FACTOR};
use super::loader::{Place, begin, loader_of};
use super::sums::write_sums;
use super::tile::{OUTPUTS, SPAN, Tile, UNIT, UNITS};
use super::unit_sums::{add_unit, clear, own_unit, sums_as_right};
use super::weights::{
    block_factors, factor_words, factors, group, group_words, has_block_factors, load, load_factors, minimum_pair, pair,
};
use super::words::{Row, Word, row};
use crate::cube::blocks::factors::Factors;
use crate::cube::blocks::has_minimum;
use crate::cube::direct::Quad;
use crate::cube::fragment::{LANES, Pair, mma};
use crate::cube::gemv::activations::Activations;
use crate::cube::gemv::output::Sizes;

/// Strips of 16 outputs, for all rows of the input.
///
/// ```text
///               a step of 8 spans: 2048 inputs          columns: the rows of the input,
///               plane 0     1      ..     7             up to 8 of 16 bits, or 4 in two parts
///   outputs   ┬ ┌──────────┬──────┬──┬──────┐           ┌───┐
///   16        │ │ a a .. a │      │  │      │           │ b │  lane l: outputs l / 4 and l / 4 + 8,
///             ┴ └──────────┴──────┴──┴──────┘           └───┘  column l / 4, words l % 4 and every fourth after it
/// ```
///
/// The weights are the left operand. The cube loads a step of a strip together, 16 units each, and puts it into shared memory as it is
/// stored; the next step is on its way meanwhile. A lane takes whole words from there, in which the bits of elements are the numbers that
/// tensor cores multiply; see [`weights`](super::weights). The right operand is what [`Inputs`] holds, which every cube makes of the input once.
/// A scale multiplies what two products add up to, with Q6_K one. The partial sums of the planes are added through shared memory. An input that is
/// not finite makes NaN of its row.
///
/// The launch has at most `outputs / 16` cubes along x, rounded up; fewer of them have several strips of 16 outputs each. If shared memory
/// does not hold all inputs, all strips are multiplied with a part of them before the next part is filled in, and there are at most `tile.strips`.
#[cube(launch_unchecked)]
pub(super) fn product_blocks_mma<F: Float, G: Float, E: Float, B: Float, H: Float>(
    activations: &Activations<F, G, E, Oct>,
    matrix: &Array<Vector<u32, Quad>>,
    place: &Place,
    bias: &ComptimeOption<Array<B>>,
    output: &mut Array<F>,
    normed: &mut ComptimeOption<Array<Vector<F, Oct>>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _element_type: StorageType,
    #[define(G)] _gamma_type: StorageType,
    #[define(E)] _beta_type: StorageType,
    #[define(B)] _bias_type: StorageType,
    #[define(H)] _half_type: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(tile.units() as usize));
    let mut staged = SharedMemory::<Vector<u32, Word>>::new_aligned(comptime!(tile.staged() * 4), UNIT_BYTES);
    let mut partial = SharedMemory::<f32>::new(comptime!(tile.partial()));
    let mut inputs = Inputs::<H>::new(tile);

    let mut saved = SharedMemory::<f32>::new(comptime!(tile.saved()));

    let (lane, plane) = (UNIT_POS % LANES, UNIT_POS / LANES);
    let (across, share) = (lane / 4u32, lane % 4u32);
    let own_output = CUBE_POS_X * OUTPUTS;
    let apart = CUBE_COUNT_X * OUTPUTS;

    // The first weights are loaded while the input is made the right operand. After the last ones some are read again, and dropped.
    let mut loader = loader_of(own_output, place, sizes, tile);
    let mut loaded = Array::<Vector<u32, Quad>>::new(comptime!(tile.unit_loads()));
    loader.load(&mut loaded, matrix, 0u32, tile);

    let statistics = activations.statistics(&mut shared, comptime!(tile.exchange()));
    inputs.scale::<F, G, E>(activations, &mut shared, tile);

    // One part is no loop, before which the compiler would compute what comes after its inputs are filled in.
    let parts = if comptime!(tile.single()) { 1u32.runtime() } else { place.spans.div_ceil(tile.spans) };
    #[unroll(tile.single())]
    for part in 0..parts {
        let first = part * tile.spans;
        inputs.fill::<F, G, E>(activations, &statistics, normed, first, &mut shared, tile);
        if comptime!(tile.keeps_sums) {
            sync_cube();
            inputs.sum_units(plane, tile);
        }
        let end = min(first + tile.spans, place.spans);
        let mut slot = UNIT_POS;
        for first_output in range_stepped(own_output, sizes.outputs, apart) {
            let mut rows = Sequence::<Row>::new();
            let mut own_words = Sequence::<Row>::new();
            #[unroll]
            for o in 0..2usize {
                let own = across + comptime!(8 * o as u32);
                let mut byte = plane * comptime!(tile.span_bytes());
                if comptime!(!tile.has_whole_loads()) {
                    byte += begin(first_output + own, place, sizes) % UNIT_BYTES as u32;
                }
                rows.push(row(own * comptime!(4 * tile.pitch()), byte, tile));
                own_words.push(row(own * comptime!(4 * tile.pitch()) + share, byte, tile));
            }
            let mut sums = Array::<f32>::new(comptime!(tile.sums()));
            #[unroll]
            for s in 0..comptime!(tile.sums()) {
                sums[s] = 0.0f32;
                if comptime!(!tile.single()) && first > 0 {
                    sums[s] = saved[(slot + comptime!(s as u32 * tile.units())) as usize];
                }
            }
            for step in range_stepped(first, end, tile.planes) {
                loader.store(&mut staged, &loaded, tile);
                sync_cube();
                if step + tile.planes < end {
                    loader.load(&mut loaded, matrix, step + tile.planes, tile);
                } else if first_output + apart < sizes.outputs {
                    // The first weights of the next outputs.
                    loader.turn_to(first_output + apart, place, sizes, tile);
                    loader.load(&mut loaded, matrix, first, tile);
                } else if comptime!(!tile.single()) {
                    // Those of the next inputs.
                    loader.turn_to(own_output, place, sizes, tile);
                    loader.load(&mut loaded, matrix, min(end, place.spans - 1u32), tile);
                }
                let span = step + plane;
                if comptime!(tile.whole_steps) || span < place.spans {
                    let left = activations.vectors * Oct::value() as u32 - span * SPAN as u32;
                    // The remainder tells the compiler how large addresses become, so that it adds constants to them for free.
                    let in_tile = (span - first) % comptime!(tile.spans.next_power_of_two());
                    multiply::<H>(
                        &mut sums, &inputs, &staged, &rows, &own_words, place.zero, in_tile, left, share, tile,
                    );
                }
                // Before the next step and the next inputs are stored.
                sync_cube();
            }
            if comptime!(tile.single()) || end == place.spans {
                write_sums::<F, B, H>(&sums, &mut partial, &inputs, first_output, bias, output, sizes, tile);
            } else {
                #[unroll]
                for s in 0..comptime!(tile.sums()) {
                    saved[(slot + comptime!(s as u32 * tile.units())) as usize] = sums[s];
                }
            }
            slot += comptime!(tile.sums() as u32 * tile.units());
        }
    }
}

/// Multiplies span `span` of the inputs, of which `left` elements are left in a row, and adds to the sums.
#[cube]
fn multiply<H: Float>(
    sums: &mut Array<f32>,
    inputs: &Inputs<H>,
    staged: &SharedMemory<Vector<u32, Word>>,
    rows: &Sequence<Row>,
    own_words: &Sequence<Row>,
    zero: u32,
    span: u32,
    left: u32,
    share: u32,
    #[comptime] tile: Tile,
) {
    let mut none = SharedMemory::<f32>::new(4usize);
    let fragments = comptime!(tile.fragments());
    let (per_group, group_words) = comptime!((group(tile.format), group_words(tile.format)));
    let factor_words = comptime!(factor_words(tile.format));
    // With Q6_K a product has a scale.
    let split = comptime!(tile.run() < UNIT);
    let mut firsts = Array::<u32>::new(fragments);
    #[unroll]
    for n in 0..fragments {
        firsts[n] = Inputs::<H>::first(span, comptime!(n as u32), tile);
    }

    let mut held = Array::<u32>::new(comptime!((2 * factor_words).max(1)));
    #[unroll]
    for o in 0..2usize {
        load_factors(&mut held, staged, &rows[o], comptime!(o * factor_words), tile);
    }
    // The sums of the span, and of the products with its minima.
    let many = comptime!(tile.sums());
    let mut own = Array::<f32>::new(many);
    #[unroll]
    for s in 0..many {
        own[s] = 0.0f32;
    }
    let mut minima = Array::<Vector<f32, Pair>>::new(comptime!(2 * fragments));
    clear(&mut minima, comptime!(2 * fragments));
    if comptime!(tile.keeps_sums) {
        #[unroll]
        for n in 0..fragments {
            let right = inputs.unit_sums(span, comptime!(n as u32), tile);
            multiply_minima::<H>(&mut minima, &held, &right, share, n, tile);
        }
    }
    // The sums of the inputs of units, if they are not kept.
    let mut unit_sums = Array::<Vector<f32, Pair>>::new(2usize);
    clear(&mut unit_sums, 2usize);
    #[unroll]
    for g in 0..comptime!(UNITS / per_group) {
        let mut words = Array::<u32>::new(comptime!(2 * group_words));
        #[unroll]
        for o in 0..2usize {
            load(&mut words, staged, &rows[o], &own_words[o], share, g, comptime!(o * group_words), tile);
        }
        #[unroll]
        for in_group in 0..per_group {
            let unit = comptime!(g * per_group + in_group);
            let mut right = Array::<Vector<H, Pair>>::new(comptime!(4 * fragments));
            #[unroll]
            for n in 0..fragments {
                let loaded = inputs.right(Inputs::<H>::of_unit(firsts[n], comptime!(unit as u32), tile));
                #[unroll]
                for w in 0..4usize {
                    right[comptime!(4 * n) + w] = loaded[w];
                }
            }
            if comptime!(tile.multiplies_minima() && !tile.keeps_sums) {
                add_unit::<H>(&mut unit_sums, &right, own_unit(), unit, tile);
            }
            let mut c = Array::<Vector<f32, Pair>>::new(comptime!(2 * fragments));
            // The sums of the inputs, where they are products.
            let mut totals = Array::<Vector<f32, Pair>>::new(comptime!(2 * fragments));
            #[unroll]
            for product in 0..2usize {
                let run = comptime!(if split { 2 * unit + product } else { unit });
                if comptime!(split || product == 0) {
                    #[unroll]
                    for n in 0..fragments {
                        let begin = begin_sum::<H>(inputs, span, run, comptime!(n as u32), share, tile);
                        c[2 * n] = begin;
                        c[2 * n + 1] = begin;
                    }
                    clear(&mut totals, comptime!(2 * fragments));
                }
                let mut weights = Array::<Vector<H, Pair>>::new(4usize);
                let mut beside = Array::<Vector<H, Pair>>::new(4usize);
                #[unroll]
                for w in 0..4usize {
                    let from = comptime!(w % 2 * group_words);
                    weights[w] = Vector::reinterpret(pair(&words, in_group, product, comptime!(w >= 2), from, tile));
                    if comptime!(tile.multiplies_totals()) {
                        let mut equal = 0u32.runtime();
                        equal |= comptime!(tile.total_pair(unit, product));
                        beside[w] = Vector::reinterpret(equal);
                    }
                }
                #[unroll]
                for n in 0..fragments {
                    let (from, to) = comptime!((4 * n as u32 + 2 * product as u32, 2 * n as u32));
                    if comptime!(tile.multiplies_totals() && has_minimum(tile.format)) {
                        mma::<H>(&beside, 0u32, &right, from, &mut totals, to, &mut none, false);
                    } else if comptime!(tile.multiplies_totals()) {
                        mma::<H>(&beside, 0u32, &right, from, &mut c, to, &mut none, false);
                    }
                    mma::<H>(&weights, 0u32, &right, from, &mut c, to, &mut none, false);
                }
                if comptime!(split || product == 1) {
                    #[unroll]
                    for o in 0..2usize {
                        let (from, group_from) = comptime!((o * factor_words, o * group_words));
                        let mut factors =
                            factors::<H>(&held, &words, staged, &rows[o], zero, unit, product, from, group_from, tile);
                        if comptime!(!tile.even && !has_block_factors(tile.format)) {
                            // After the end of a row is another one, or anything.
                            let inside = comptime!((unit * UNIT) as u32) < left;
                            factors.scale = select(inside, factors.scale, 0.0f32);
                            factors.minimum = select(inside, factors.minimum, 0.0f32);
                        }
                        add::<H>(&mut own, &c, &totals, inputs, &factors, span, run, share, o, tile);
                    }
                }
            }
        }
    }
    if comptime!(tile.multiplies_minima() && !tile.keeps_sums) {
        #[unroll]
        for n in 0..fragments {
            multiply_minima::<H>(&mut minima, &held, &sums_as_right::<H>(unit_sums[n]), share, n, tile);
        }
    }
    #[unroll]
    for s in 0..many {
        let mut sum = own[s];
        if comptime!(has_block_factors(tile.format)) {
            let (n, o, i) = comptime!((s / tile.lane_rows() / 2, s / tile.lane_rows() % 2, s % tile.lane_rows()));
            let factors = block_factors::<H>(&held, comptime!(o * factor_words), tile);
            sum *= factors.scale;
            if comptime!(tile.multiplies_minima()) {
                sum += of_row(&minima, comptime!(2 * n + o), i, tile) * factors.minimum;
            }
        }
        sums[s] += sum;
    }
}

/// Multiplies the minima of a span with the sums of the inputs of units in fragment `n`.
#[cube]
fn multiply_minima<H: Float>(
    minima: &mut Array<Vector<f32, Pair>>,
    held: &Array<u32>,
    right: &Array<Vector<H, Pair>>,
    share: u32,
    #[comptime] n: usize,
    #[comptime] tile: Tile,
) {
    let mut none = SharedMemory::<f32>::new(4usize);
    let mut left = Array::<Vector<H, Pair>>::new(4usize);
    #[unroll]
    for w in 0..4usize {
        left[w] = Vector::reinterpret(minimum_pair(held, share, comptime!(w % 2 * factor_words(tile.format))));
    }
    mma::<H>(&left, 0u32, right, 0u32, minima, comptime!(2 * n as u32), &mut none, false);
}

/// What the products of all parts of the inputs of row `i` of a lane add up to.
#[cube]
fn of_row(sums: &Array<Vector<f32, Pair>>, #[comptime] at: usize, #[comptime] i: usize, #[comptime] tile: Tile) -> f32 {
    let pair = sums[at];
    let mut sum = pair[i];
    if comptime!(tile.parts() == 2) {
        sum += pair[1] * REST_FACTOR;
    }
    sum
}

/// Where the sum of the inputs of run `run` of a span is, for row `i` of fragment `n` of a lane; the last row after it, whose sums are dropped.
#[cube]
fn total_at(
    span: u32,
    share: u32,
    #[comptime] run: usize,
    #[comptime] n: u32,
    #[comptime] i: u32,
    #[comptime] tile: Tile,
) -> u32 {
    let row = min((4u32 * n + share) * tile.lane_columns() + i, comptime!(tile.rows - 1));
    span * comptime!((SPAN / tile.run()) as u32) + row * tile.totals_row() + comptime!(run as u32)
}

/// What the products of a run are added to: what the format subtracts from the bits of its elements, for every input.
#[cube]
fn begin_sum<H: Float>(
    inputs: &Inputs<H>,
    span: u32,
    #[comptime] run: usize,
    #[comptime] n: u32,
    share: u32,
    #[comptime] tile: Tile,
) -> Vector<f32, Pair> {
    let mut begin = Vector::<f32, Pair>::new(0.0f32);
    if comptime!(tile.has_totals() && !has_minimum(tile.format)) {
        #[unroll]
        for i in 0..comptime!(tile.lane_rows()) {
            begin[i] = inputs.total(total_at(span, share, run, n, comptime!(i as u32), tile));
        }
    }
    begin
}

/// Adds the products of a run with output `output` of a lane to its sums.
#[cube]
fn add<H: Float>(
    own: &mut Array<f32>,
    c: &Array<Vector<f32, Pair>>,
    totals: &Array<Vector<f32, Pair>>,
    inputs: &Inputs<H>,
    factors: &Factors,
    span: u32,
    #[comptime] run: usize,
    share: u32,
    #[comptime] output: usize,
    #[comptime] tile: Tile,
) {
    let lane_rows = comptime!(tile.lane_rows());
    #[unroll]
    for n in 0..comptime!(tile.fragments()) {
        #[unroll]
        for i in 0..lane_rows {
            let (at, to) = comptime!((2 * n + output, (2 * n + output) * lane_rows + i));
            own[to] += of_row(c, at, i, tile) * factors.scale;
            if comptime!(tile.multiplies_totals() && has_minimum(tile.format)) {
                own[to] += of_row(totals, at, i, tile) * factors.minimum;
            } else if comptime!(tile.has_totals() && has_minimum(tile.format)) {
                let total = inputs.total(total_at(span, share, run, comptime!(n as u32), comptime!(i as u32), tile));
                own[to] += total * factors.minimum;
            }
        }
    }
}
