//! The portable engine: products on ordinary arithmetic units, in f32.

use cubecl::prelude::*;

use crate::cube::attention::{Attention, AttentionSizes, CheckedAttention};
use crate::cube::cached::Cached;
use crate::cube::lanes::{lanes_max, lanes_sum, vector_sum};
use crate::cube::machine::{Machine, Unsupported};
use crate::cube::masks::{HIDDEN, Masks, Query};
use crate::cube::sinks::{self, Sinks};
use crate::cube::tensors::{HeadStrides, array, head_strides, vector_size};

/// Units along the queries.
const UNITS_Y: u32 = 8;
/// Shared memory that a cube may take, in bytes: what every CUDA device grants without being asked.
const SHARED_LIMIT: usize = 48 * 1024;
/// Queries and keys of a unit, largest first.
const PATCHES: [(u32, u32); 6] = [(4, 4), (4, 2), (2, 4), (2, 2), (2, 1), (1, 1)];
/// Results that a unit may hold, in f32.
const MOST_RESULTS: u32 = 64;
/// Stored in place of the probability of a hidden pair.
const LEFT_OUT: f32 = -1.0;

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    /// Units along the keys.
    units_x: u32,
    /// Queries of a unit.
    queries: u32,
    /// Keys of a unit.
    keys: u32,
    /// Vectors of a head.
    vectors: u32,
    /// Vectors of a result that a unit holds.
    per_unit: u32,
    /// Whether the queries may see different keys.
    select: bool,
    planes: bool,
}

impl Tile {
    fn all_queries(&self) -> u32 {
        self.queries * UNITS_Y
    }

    fn all_keys(&self) -> u32 {
        self.keys * self.units_x
    }

    /// Bytes of shared memory: queries, keys, values, probabilities, and the exchange between lanes.
    fn shared_bytes(&self, vector: usize, element: usize) -> usize {
        let rows = self.all_queries() + 2 * self.all_keys();
        let staged = rows as usize * (self.vectors as usize + 1) * vector * element;
        staged + 4 * (self.all_queries() * (self.all_keys() + 1) + UNITS_Y * self.units_x) as usize
    }
}

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
    let AttentionSizes { batch, kv_heads, tokens, head_dim, .. } = sizes;
    if sizes.is_empty() {
        return Ok(());
    }
    let vector = vector_size(client, &[query, key.elements, value.elements, context], head_dim);
    let tile = tile(machine, head_dim, vector, query.dtype.size(), masks.differs_by_row(tokens))?;
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

/// The largest tile that fits into shared memory and registers, with fewer units along the keys where none fits with all.
fn tile(machine: &Machine, head_dim: usize, vector: usize, element: usize, select: bool) -> Result<Tile, Unsupported> {
    let widest = if machine.plane_operations { machine.plane_size.min(16) } else { 8 };
    let vectors = (head_dim / vector) as u32;
    let limit = machine.shared_bytes.min(SHARED_LIMIT);
    let tile = |units_x: u32, (queries, keys): (u32, u32)| Tile {
        units_x,
        queries,
        keys,
        vectors,
        per_unit: vectors.div_ceil(units_x),
        select,
        planes: machine.plane_operations,
    };
    let fits = |tile: &Tile| {
        let results = tile.queries * tile.per_unit * vector as u32;
        tile.shared_bytes(vector, element) <= limit && (results <= MOST_RESULTS || tile.queries == 1)
    };
    let widths = std::iter::successors(Some(widest), |width| (*width > 1).then_some(width / 2));
    let mut tiles = widths.flat_map(|width| PATCHES.map(|patch| tile(width, patch)));
    let smallest = tile(1, (1, 1)).shared_bytes(vector, element);
    tiles.find(fits).ok_or(Unsupported::SharedMemory { needed: smallest, limit })
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
    let mut shared_value = SharedMemory::<Vector<F, N>>::new(comptime!((tile_keys * row_vectors) as usize));
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
                value_part = value.features::<F, N>(value.part(value_head, slot, part), value.scale(value_head, slot));
            }
            shared_key[place] = key_part;
            shared_value[place] = value_part;
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
                let part = min(x + p as u32 * tile.units_x, comptime!(tile.vectors - 1));
                values[p] = Vector::cast_from(shared_value[(column * row_vectors + part) as usize]);
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
                if part < tile.vectors {
                    context[(base + part) as usize] =
                        Vector::cast_from(result[q * per_unit + p] * Vector::<f32, N>::new(factor));
                }
            }
        }
    }
}
