//! The kernel.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::pipeline::{Seen, attend_steps, signal};
use super::scores::{query_of, rows};
use super::stage::{stage_queries, stage_step};
use super::step::load_queries;
use super::sums::Sums;
use super::tile::{Scoring, Sizes, Tile, register, tile_and_head};
use crate::cube::cached::Cached;
use crate::cube::exponential::exponent;
use crate::cube::fragment::{LANES, Pair};
use crate::cube::masks::Masks;
use crate::cube::sinks::Sinks;

/// A tile of queries of one key head against all keys that they see.
///
/// ```text
///                  keys of the step, shared by all planes, two steps in shared memory
///                  ├ 8 ┼ 8 ┼ ..           ┤
///    plane 0  ┬    ┌───┬───┬──────────────┐     ┌───────────────┐
///    16 rows  │    │ S │ S │ S = Q Kᵀ     │     │ O += P V      │
///    16 more  │    │ S │ S │              │     │               │
///    plane 1  ┼    ├───┼───┼──────────────┤     ├───────────────┤   S, P, O, maxima and sums stay in registers:
///    16 rows  │    │   │   │              │     │               │   lane l has rows l / 4 and l / 4 + 8 of every 16,
///       ..    ┴    └───┴───┴──────────────┘     └───────────────┘   and two columns of every 8
/// ```
///
/// Every plane computes its 16 or 32 rows alone; the cube only shares the tiles of keys and values, in which int8 is scaled. `P`, the
/// exponentials of `S`, is the left operand of the second product without leaving its registers. Maxima are taken over the four lanes
/// of a row in the steps where one grows, and sums at the end, unless they are products. With 32 rows, each fragment of keys and values that is read
/// serves two products.
///
/// The launch has a cube for each tile of rows, key head and row of the batch, which is along z; see [`tile_and_head`]. Row `r` of a
/// key head is token `r / group` of its query head `r % group`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn attend<F: Float, K: Numeric, V: Numeric, M: Int, E: Float, N: Size, KN: Size, VN: Size, C: Size>(
    query: &Array<Vector<F, N>>,
    key: &Cached<K, KN>,
    value: &Cached<V, VN>,
    masks: &Masks<M, E>,
    sinks: &Sinks,
    context: &mut Array<Vector<F, C>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _elements: StorageType,
    #[define(K)] _key_type: StorageType,
    #[define(V)] _value_type: StorageType,
    #[define(M)] _mask: StorageType,
    #[define(E)] _bias: StorageType,
) {
    let layout = comptime!(tile.layout());
    // Registers can only be indexed by constants; emulated ones need not, and a rolled kernel compiles in time.
    let unroll = comptime!(!tile.emulate);
    let batch = CUBE_POS_Z;
    let plane = UNIT_POS / LANES;
    let all_rows = sizes.group * sizes.tokens;
    let (tile_at, _) = tile_and_head(tile);
    let first_row = (sizes.tiles - 1 - tile_at) * comptime!(tile.rows());
    let seen = Seen::new::<M, E>(masks, first_row, sizes, tile);
    let (start, own_row) = (seen.start, seen.own_row);

    let mut stage = SharedMemory::<Vector<F, N>>::new_aligned(comptime!(tile.stage_vectors() as usize), 128usize);
    let mut scratch = SharedMemory::<f32>::new(comptime!(tile.scratch() as usize));

    let mut barriers = Sequence::<Shared<Barrier>>::new();
    if comptime!(tile.asynchronous) {
        barriers.push(Barrier::shared(CUBE_DIM, UNIT_POS == 0));
    }
    let query_origin = (comptime!(tile.query_origin()) + plane * comptime!(tile.plane_rows() * layout.width)) as usize;
    let mut queries = Array::<Vector<F, Pair>>::new(comptime!(tile.query_registers()));
    if seen.begin < seen.stop {
        stage_queries::<F, N>(query, &mut stage, first_row, sizes, tile);
        let (to, first_key) = (0u32.runtime() as usize, (seen.stop - 1) * tile.keys);
        if comptime!(tile.stages == 2) {
            stage_step::<F, K, V, M, E, N, KN, VN>(key, value, masks, &mut stage, to, first_key, seen.end, tile);
            signal(&barriers, tile);
        }
        if comptime!(tile.resident) {
            // The queries make room for keys.
            if comptime!(tile.asynchronous) {
                barriers.index(0usize).wait_parity(0u32);
            } else {
                sync_cube();
            }
            #[unroll(unroll)]
            for depth in 0..comptime!(tile.head_dim / 16) {
                load_queries::<F, N>(&stage, query_origin, depth, depth, &mut queries, true, tile);
            }
            if comptime!(tile.odd()) {
                let depth = comptime!(tile.head_dim / 16).runtime();
                load_queries::<F, N>(&stage, query_origin, depth, depth, &mut queries, false, tile);
            }
            sync_cube();
        }
    }

    let mut sums = Sums::new(tile);
    let own = rows::<M, E>(masks, own_row, start, sizes, tile);
    // Scores that are nothing but products, or products and ALiBi, stay unscaled until the exponential.
    let mut factor = comptime!(exponent(!tile.emulate)).runtime();
    let mut reach = comptime!(tile.reach()).runtime();
    if comptime!(!matches!(tile.scoring, Scoring::Masked { .. })) {
        factor *= sizes.scale;
        reach = sizes.reach;
    }

    attend_steps::<F, K, V, M, E, N, KN, VN>(
        key,
        value,
        masks,
        &mut stage,
        &barriers,
        &mut queries,
        query_origin,
        &mut sums,
        &mut scratch,
        &own,
        &seen,
        factor,
        reach,
        sizes,
        tile,
    );

    #[unroll(unroll)]
    for r in 0..comptime!(tile.unit_rows()) {
        let sum = sums.total(r, &mut scratch, tile);
        let row = own_row + r as u32 * 8;
        let query = query_of(row, start, sizes, tile);
        let sum = if comptime!(sinks.present) {
            sinks.join(sum, query.head, -sums.exponent_offset(r, factor, tile), comptime!(!tile.emulate))
        } else {
            sum
        };
        // Nothing visible gives zeros.
        let inverse = select(sum == 0.0f32, 0.0f32, 1.0f32 / sum);
        let base = sizes.context.head(batch, query.head) + query.token * sizes.context.token;
        write::<F, C>(&sums.result, r, inverse, context, base, row < all_rows, tile);
    }
}

/// Writes the part that a unit has of row `r`, times `factor`, from vector `base` on, if the row is `there`. Two lanes that are
/// neighbours exchange pairs where vectors have four elements, so that the lanes of a row write whole sectors.
#[cube]
fn write<F: Float, C: Size>(
    result: &Array<Vector<f32, Pair>>,
    r: usize,
    factor: f32,
    context: &mut Array<Vector<F, C>>,
    base: u32,
    there: bool,
    #[comptime] tile: Tile,
) {
    let columns = comptime!(tile.columns() as usize);
    let lane = UNIT_POS % 4;
    let factor = Vector::<f32, Pair>::new(factor);
    if comptime!(tile.written == 4) {
        let odd = lane % 2 == 1;
        let mut quads = Array::<Vector<F, C>>::new(comptime!(columns.div_ceil(2)));
        #[unroll]
        for two in 0..comptime!(columns.div_ceil(2)) {
            let alone = comptime!(two * 2 + 1 == columns);
            let second = comptime!(if alone { two * 2 } else { two * 2 + 1 });
            let first = u32::reinterpret(Vector::<F, Pair>::cast_from(result[register(r, two * 2, columns)] * factor));
            let second = u32::reinterpret(Vector::<F, Pair>::cast_from(result[register(r, second, columns)] * factor));
            let other = plane_shuffle_xor(select(odd, first, second), 1u32);
            let mut words = Vector::<u32, Pair>::empty();
            words[0] = select(odd, other, first);
            words[1] = select(odd, second, other);
            quads[two] = Vector::reinterpret(words);
        }
        if there {
            // What is constant stays apart, as part of the address.
            let first = (base + lane % 2 * 2 + lane / 2) as usize;
            #[unroll]
            for two in 0..comptime!(columns.div_ceil(2)) {
                // Of the last eight, without another one, the even lanes write all.
                let alone = comptime!(two * 2 + 1 == columns);
                if comptime!(alone) {
                    if !odd {
                        context[first + comptime!(two * 4)] = quads[two];
                    }
                } else {
                    context[first + comptime!(two * 4)] = quads[two];
                }
            }
        }
    } else if there {
        #[unroll(!tile.emulate)]
        for column in 0..columns {
            let pair = result[register(r, column, columns)] * factor;
            let feature = lane * 2 + column as u32 * 8;
            if comptime!(tile.written == 2) {
                context[(base + feature / 2) as usize] = Vector::cast_from(pair);
            } else {
                context[(base + feature) as usize] = Vector::cast_from(pair[0]);
                context[(base + feature + 1) as usize] = Vector::cast_from(pair[1]);
            }
        }
    }
}
