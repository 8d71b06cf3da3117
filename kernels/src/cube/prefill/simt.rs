//! The portable engine: products on ordinary arithmetic units, in f32.

mod tile;

use burn_deepspeed_core::divisor::gcd;
use cubecl::prelude::*;

use self::tile::{Tile, UNITS_Y, tile};
use crate::cube::attention::{Attention, AttentionSizes, CheckedAttention};
use crate::cube::cached::Cached;
use crate::cube::lanes::{lanes_max, lanes_sum, vector_sum};
use crate::cube::machine::{Machine, Unsupported};
use crate::cube::masks::{HIDDEN, Masks, Query};
use crate::cube::sinks::{self, Sinks};
use crate::cube::tensors::{HeadStrides, array, head_strides, vector_size};

/// Stored in place of the probability of a hidden pair.
const LEFT_OUT: f32 = -1.0;

#[derive(CubeType, CubeLaunch)]
struct Sizes {
    tokens: u32,
    group: u32,
    last_tile: u32,
    scale: f32,
    query: HeadStrides,
    context: HeadStrides,
}

/// Attends, in one launch.
///
/// # Errors
/// [`Unsupported`]; nothing was launched.
///
/// # Panics
/// If shapes do not fit together, with the tensor, the expected and the actual shape; nothing was launched.
#[track_caller]
pub fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: Attention<'_, R>,
) -> Result<(), Unsupported> {
    let scale = problem.scale;
    let CheckedAttention { query, key, value, context, sinks, masks, sizes } =
        problem.check("prefill::simt", client)?;
    let AttentionSizes { batch, kv_heads, tokens, head_dim, value_dim, .. } = sizes;
    if sizes.is_empty() {
        return Ok(());
    }
    let unit = gcd(head_dim, value_dim);
    let vector = vector_size(client, &[query, key.elements, value.elements, context], unit);
    let tile = tile(machine, [head_dim, value_dim], vector, query.dtype.size(), masks.differs_by_row(tokens))?;
    let rows = sizes.group() * tokens;
    let tiles = rows.div_ceil(tile.all_queries() as usize);
    let cubes = machine.cubes([tiles, kv_heads, batch])?;
    let (key_loads, value_loads) = (key.loads(vector), value.loads(vector));
    // SAFETY: the tensors were checked against each other, so rows, heads, tokens and features that `Sizes` and `Tile` count are
    // in all of them. The kernel reads keys, values, scales and masks only at slots before `masks.end`, which is at most `keys`,
    // and they hold that many.
    unsafe {
        prefill::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(tile.units_x * UNITS_Y),
            vector,
            key_loads.vector,
            value_loads.vector,
            array(query),
            key.launch_loads(vector),
            value.launch_loads(vector),
            masks.launch(),
            sinks::launch(sinks),
            array(context),
            SizesLaunch::new(
                tokens as u32,
                sizes.group() as u32,
                (tiles - 1) as u32,
                scale,
                head_strides(query, vector),
                head_strides(context, vector),
            ),
            tile,
            query.dtype,
            key_loads.elements,
            value_loads.elements,
            masks.mask_type(),
            masks.bias_type(),
        );
    }
    Ok(())
}

/// A tile of queries of one key head against all keys that one of them sees.
///
/// Tile: `UNITS_Y` units along the queries, `units_x` along the keys. Queries stay in shared memory; keys and values
/// pass through it tile by tile, int8 scaled on the way, in rows padded by a vector so that neighbouring rows are in
/// different banks. A unit computes `queries × keys` scores, and then `queries` rows of the result at every `units_x`-th vector. Running maxima
/// and sums are held by every unit of a row. The launch has tiles of queries along x, key heads along y, the batch
/// along z.
#[cube(launch_unchecked)]
fn prefill<F: Float, K: Numeric, V: Numeric, M: Int, E: Float, N: Size, KN: Size, VN: Size>(
    query: &Array<Vector<F, N>>,
    key: &Cached<K, KN>,
    value: &Cached<V, VN>,
    masks: &Masks<M, E>,
    sinks: &Sinks,
    context: &mut Array<Vector<F, N>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _elements: StorageType,
    #[define(K)] _key_type: StorageType,
    #[define(V)] _value_type: StorageType,
    #[define(M)] _mask_type: StorageType,
    #[define(E)] _bias_type: StorageType,
) {
    let units = comptime!(tile.units_x * UNITS_Y);
    let tile_queries = comptime!(tile.all_queries());
    let tile_keys = comptime!(tile.all_keys());
    let row_vectors = comptime!(tile.vectors + 1);
    let value_row = comptime!(tile.value_vectors + 1);
    let queries = comptime!(tile.queries as usize);
    let keys = comptime!(tile.keys as usize);
    let per_unit = comptime!(tile.per_unit as usize);

    let x = UNIT_POS % tile.units_x;
    let y = UNIT_POS / tile.units_x;
    let kv_head = CUBE_POS_Y;
    let batch = CUBE_POS_Z;
    let all_rows = sizes.group * sizes.tokens;
    // The last tile first: under a causal mask it has the most work.
    let first_row = (sizes.last_tile - CUBE_POS_X) * tile_queries;
    let last_row = min(first_row + tile_queries, all_rows) - 1;

    let mut shared_query = SharedMemory::<Vector<F, N>>::new(comptime!((tile_queries * row_vectors) as usize));
    let mut shared_key = SharedMemory::<Vector<F, N>>::new(comptime!((tile_keys * row_vectors) as usize));
    let mut shared_value = SharedMemory::<Vector<F, N>>::new(comptime!((tile_keys * value_row) as usize));
    let mut shared_probability = SharedMemory::<f32>::new(comptime!((tile_queries * (tile_keys + 1)) as usize));
    let mut exchange = SharedMemory::<f32>::new(comptime!(units as usize));

    // Compilers join reads of neighbouring probabilities, and a read that results may cover the padding of a row.
    for row in range_stepped(UNIT_POS, tile_queries, units) {
        shared_probability[(row * (tile_keys + 1) + tile_keys) as usize] = 0.0f32;
    }
    for at in range_stepped(UNIT_POS, comptime!(tile_queries * tile.vectors), units) {
        let row = first_row + at / tile.vectors;
        let part = at % tile.vectors;
        let mut vector = Vector::<F, N>::new(F::from_int(0));
        if row < all_rows {
            let head = kv_head * sizes.group + row % sizes.group;
            let base = sizes.query.head(batch, head) + row / sizes.group * sizes.query.token;
            vector = query[(base + part) as usize];
        }
        shared_query[(at / tile.vectors * row_vectors + part) as usize] = vector;
    }

    let start = masks.start(batch);
    let end = masks.end(batch);
    let mut from = Array::<u32>::new(queries);
    let mut to = Array::<u32>::new(queries);
    let mut largest = Array::<f32>::new(queries);
    let mut total = Array::<f32>::new(queries);
    let mut result = Array::<Vector<f32, N>>::new(comptime!(queries * per_unit));
    #[unroll]
    for q in 0..queries {
        let row = first_row + y * tile.queries + q as u32;
        let token = min(row, all_rows - 1) / sizes.group;
        from[q] = masks.first(start + token);
        to[q] = select(row < all_rows, masks.last_end(start + token, end), 0u32);
        largest[q] = HIDDEN;
        total[q] = 0.0f32;
        #[unroll]
        for p in 0..per_unit {
            result[q * per_unit + p] = Vector::<f32, N>::new(0.0f32);
        }
    }

    let begin = masks.first(start + first_row / sizes.group);
    let stop = masks.last_end(start + last_row / sizes.group, end);
    let key_head = key.head(batch, kv_head);
    let value_head = value.head(batch, kv_head);
    for base in range_stepped(begin, stop, tile_keys) {
        sync_cube();
        if comptime!(tile.vectors == tile.value_vectors) {
            for at in range_stepped(UNIT_POS, comptime!(tile_keys * tile.vectors), units) {
                let slot = base + at / tile.vectors;
                let part = at % tile.vectors;
                let place = (at / tile.vectors * row_vectors + part) as usize;
                let mut keep = slot < stop;
                if keep {
                    keep = !masks.hides_key(batch, slot);
                }
                // Keys that no query sees are not read, whatever they hold.
                let mut key_part = Vector::<F, N>::new(F::from_int(0));
                let mut value_part = Vector::<F, N>::new(F::from_int(0));
                if keep {
                    key_part = key.features::<F, N>(key.part(key_head, slot, part), key.scale(key_head, slot));
                    value_part =
                        value.features::<F, N>(value.part(value_head, slot, part), value.scale(value_head, slot));
                }
                shared_key[place] = key_part;
                shared_value[place] = value_part;
            }
        } else {
            for at in range_stepped(UNIT_POS, comptime!(tile_keys * tile.vectors), units) {
                let slot = base + at / tile.vectors;
                let part = at % tile.vectors;
                let mut keep = slot < stop;
                if keep {
                    keep = !masks.hides_key(batch, slot);
                }
                let mut key_part = Vector::<F, N>::new(F::from_int(0));
                if keep {
                    key_part = key.features::<F, N>(key.part(key_head, slot, part), key.scale(key_head, slot));
                }
                shared_key[(at / tile.vectors * row_vectors + part) as usize] = key_part;
            }
            for at in range_stepped(UNIT_POS, comptime!(tile_keys * tile.value_vectors), units) {
                let slot = base + at / tile.value_vectors;
                let part = at % tile.value_vectors;
                let mut keep = slot < stop;
                if keep {
                    keep = !masks.hides_key(batch, slot);
                }
                let mut value_part = Vector::<F, N>::new(F::from_int(0));
                if keep {
                    value_part =
                        value.features::<F, N>(value.part(value_head, slot, part), value.scale(value_head, slot));
                }
                shared_value[(at / tile.value_vectors * value_row + part) as usize] = value_part;
            }
        }
        sync_cube();

        let mut scores = Array::<f32>::new(comptime!(queries * keys));
        #[unroll]
        for at in 0..comptime!(queries * keys) {
            scores[at] = 0.0f32;
        }
        for part in 0..tile.vectors {
            let mut key_parts = Array::<Vector<f32, N>>::new(keys);
            #[unroll]
            for k in 0..keys {
                let row = k as u32 * tile.units_x + x;
                key_parts[k] = Vector::cast_from(shared_key[(row * row_vectors + part) as usize]);
            }
            #[unroll]
            for q in 0..queries {
                let row = y * tile.queries + q as u32;
                let query_part = Vector::<f32, N>::cast_from(shared_query[(row * row_vectors + part) as usize]);
                #[unroll]
                for k in 0..keys {
                    scores[q * keys + k] += vector_sum::<N>(query_part * key_parts[k]);
                }
            }
        }

        #[unroll]
        for q in 0..queries {
            let row = first_row + y * tile.queries + q as u32;
            let token = row / sizes.group;
            let head = kv_head * sizes.group + row % sizes.group;
            let mut tile_largest = HIDDEN.runtime();
            #[unroll]
            for k in 0..keys {
                let slot = base + k as u32 * tile.units_x + x;
                let mut score = HIDDEN.runtime();
                let mut keep = slot >= from[q] && slot < to[q];
                if keep {
                    keep = !masks.hides_key(batch, slot);
                }
                if keep {
                    let place = Query { batch, head, token, slot: start + token };
                    score = masks.score(scores[q * keys + k] * sizes.scale, place, slot);
                }
                scores[q * keys + k] = score;
                tile_largest = max(tile_largest, score);
            }
            let tile_largest = lanes_max(tile_largest, &mut exchange, tile.units_x, tile.planes);
            let new_largest = max(largest[q], tile_largest);
            let mut tile_total = 0.0f32.runtime();
            #[unroll]
            for k in 0..keys {
                let score = scores[q * keys + k];
                // A NaN compares unequal, so it is not hidden and reaches the result.
                let hidden = score == HIDDEN;
                let probability = select(hidden, 0.0f32, (score - new_largest).exp());
                tile_total += probability;
                let column = k as u32 * tile.units_x + x;
                let place = (y * tile.queries + q as u32) * (tile_keys + 1) + column;
                shared_probability[place as usize] = select(hidden, LEFT_OUT, probability);
            }
            let tile_total = lanes_sum(tile_total, &mut exchange, tile.units_x, tile.planes);
            let shrink = (largest[q] - new_largest).exp();
            total[q] = total[q] * shrink + tile_total;
            largest[q] = new_largest;
            #[unroll]
            for p in 0..per_unit {
                result[q * per_unit + p] = result[q * per_unit + p] * Vector::<f32, N>::new(shrink);
            }
        }
        sync_cube();

        for column in 0..tile_keys {
            let mut values = Array::<Vector<f32, N>>::new(per_unit);
            #[unroll]
            for p in 0..per_unit {
                let part = min(x + p as u32 * tile.units_x, comptime!(tile.value_vectors - 1));
                values[p] = Vector::cast_from(shared_value[(column * value_row + part) as usize]);
            }
            #[unroll]
            for q in 0..queries {
                let place = (y * tile.queries + q as u32) * (tile_keys + 1) + column;
                let probability = shared_probability[place as usize];
                if comptime!(tile.select) {
                    // A value that this query does not see may be anything: it is left out, not multiplied by 0.
                    if probability != LEFT_OUT {
                        #[unroll]
                        for p in 0..per_unit {
                            result[q * per_unit + p] += Vector::<f32, N>::new(probability) * values[p];
                        }
                    }
                } else {
                    // Values that no query sees are 0 in shared memory.
                    #[unroll]
                    for p in 0..per_unit {
                        result[q * per_unit + p] += Vector::<f32, N>::new(max(probability, 0.0f32)) * values[p];
                    }
                }
            }
        }
    }

    #[unroll]
    for q in 0..queries {
        let row = first_row + y * tile.queries + q as u32;
        if row < all_rows {
            let head = kv_head * sizes.group + row % sizes.group;
            let base = sizes.context.head(batch, head) + row / sizes.group * sizes.context.token;
            let divisor = sinks.join(total[q], head, largest[q], false);
            // Nothing visible gives zeros.
            let factor = select(divisor == 0.0f32, 0.0f32, 1.0f32 / divisor);
            #[unroll]
            for p in 0..per_unit {
                let part = x + p as u32 * tile.units_x;
                if part < tile.value_vectors {
                    context[(base + part) as usize] =
                        Vector::cast_from(result[q * per_unit + p] * Vector::<f32, N>::new(factor));
                }
            }
        }
    }
}
