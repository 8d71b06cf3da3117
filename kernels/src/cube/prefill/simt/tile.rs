//! How many queries and keys a cube works on at a time.

use crate::cube::machine::{Machine, Unsupported};

/// Units along the queries.
pub(super) const UNITS_Y: u32 = 8;
/// Shared memory that a cube may take, in bytes: what every CUDA device grants without being asked.
const SHARED_LIMIT: usize = 48 * 1024;
/// Queries and keys of a unit, largest first.
const PATCHES: [(u32, u32); 6] = [(4, 4), (4, 2), (2, 4), (2, 2), (2, 1), (1, 1)];
/// Results that a unit may hold, in f32.
const MOST_RESULTS: u32 = 64;

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Units along the keys.
    pub units_x: u32,
    /// Queries of a unit.
    pub queries: u32,
    /// Keys of a unit.
    pub keys: u32,
    /// Vectors of a query and of a key.
    pub vectors: u32,
    /// Vectors of a value.
    pub value_vectors: u32,
    /// Vectors of a result that a unit holds.
    pub per_unit: u32,
    /// Whether the queries may see different keys.
    pub select: bool,
    pub planes: bool,
}

impl Tile {
    pub fn all_queries(&self) -> u32 {
        self.queries * UNITS_Y
    }

    pub fn all_keys(&self) -> u32 {
        self.keys * self.units_x
    }

    /// Bytes of shared memory: queries, keys, values, probabilities, and the exchange between lanes.
    fn shared_bytes(&self, vector: usize, element: usize) -> usize {
        let keys = (self.all_queries() + self.all_keys()) * (self.vectors + 1);
        let values = self.all_keys() * (self.value_vectors + 1);
        (keys + values) as usize * vector * element
            + 4 * (self.all_queries() * (self.all_keys() + 1) + UNITS_Y * self.units_x) as usize
    }
}

/// The largest tile that fits into shared memory and registers, with fewer units along the keys where none fits with all.
pub(super) fn tile(
    machine: &Machine,
    features: [usize; 2],
    vector: usize,
    element: usize,
    select: bool,
) -> Result<Tile, Unsupported> {
    let widest = if machine.plane_operations { machine.plane_size.min(16) } else { 8 };
    let [vectors, value_vectors] = features.map(|features| (features / vector) as u32);
    let limit = machine.shared_bytes.min(SHARED_LIMIT);
    let tile = |units_x: u32, (queries, keys): (u32, u32)| Tile {
        units_x,
        queries,
        keys,
        vectors,
        value_vectors,
        per_unit: value_vectors.div_ceil(units_x),
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
