//! Fragments of `mma.m16n8k16`
//! (<https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-fragment-mma-16816-float>).
//!
//! Lane `l` holds, with `g = l / 4` and `t = l % 4`, in pairs of neighbours along the second axis:
//!
//! | fragment | register 0 | 1 | 2 | 3 |
//! | --- | --- | --- | --- | --- |
//! | A, 16 rows of 16 | row `g`, from `2t` | row `g + 8`, from `2t` | row `g`, from `2t + 8` | row `g + 8`, from `2t + 8` |
//! | B, 16 deep, 8 columns | column `g`, depth from `2t` | column `g`, depth from `2t + 8` | | |
//! | C, 16 rows of 8 | row `g`, from `2t` | row `g + 8`, from `2t` | | |
//!
//! Two neighbouring C fragments are therefore one A fragment, register by register.
//!
//! Without tensor cores the same fragments are held by 32 neighbouring units of the cube, whatever its planes are.

use cubecl::ir::MatrixIdent;
use cubecl::ir::features::MmaConfig;
use cubecl::prelude::*;

use super::contract::f32_type;
use super::machine::{Machine, Unsupported};

/// Two neighbours: a register of 16-bit elements.
pub(crate) type Pair = Const<2>;

/// Lanes that hold a fragment together.
pub(crate) const LANES: u32 = 32;
/// Floats of one A and one B, exchanged by the lanes where there are no tensor cores.
pub(crate) const EXCHANGED: u32 = 16 * 16 + 16 * 8;

/// Checks that the device multiplies such fragments of these elements, and may.
pub(crate) fn check_tensor_cores<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    elements: StorageType,
) -> Result<(), Unsupported> {
    let config = MmaConfig { a_type: elements, b_type: elements, cd_type: f32_type(), m: 16, n: 8, k: 16 };
    let whole = machine.plane_size == LANES && machine.plane_operations && machine.tensor_cores;
    let known = elements.size() == 2 && client.features().matmul.mma.contains(&config);
    if whole && known { Ok(()) } else { Err(Unsupported::TensorCores(elements)) }
}

/// Which 8x8 matrices four groups of 8 lanes address, for a load of four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Order {
    /// Rows 0-7 and 8-15, then the same rows 8 features on: an A, or transposed two B of neighbouring columns.
    Rows,
    /// The first 8 features and the next 8, then the same features 8 rows on: two B whose columns are rows of memory.
    Features,
}

/// The layout of tiles in shared memory. Rows consist of chunks of 8 elements, 16 bytes in 16-bit elements.
///
/// Chunks are swizzled: chunk `c` of a row lies at `c` XOR a number that differs from row to row, so that the same chunk of eight
/// neighbouring rows is on different banks. Unlike padding this keeps the halves of 32 bytes of memory in the same 32 bytes, which an
/// asynchronous copy then moves together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// Vectors of a row.
    pub width: u32,
    /// Vectors of 8 elements.
    pub chunk: u32,
    /// Elements of a vector.
    pub vector: u32,
    /// Chunks that trade places: a power of two that divides the chunks of a row, at most the 8 that all banks hold.
    swizzled: u32,
    /// Whether a row has a whole line of all banks that it does not fill.
    pub padded: bool,
    pub emulate: bool,
}

impl Layout {
    /// The layout of rows of `chunks` times 8 elements, in vectors of `vector` elements. Rows of 5 to 7 chunks have a whole line each: an
    /// asynchronous copy takes one pass for a row, and two for one that reaches into another line.
    pub fn new(chunks: u32, vector: u32, emulate: bool) -> Self {
        let padded = chunks > BANK_CHUNKS / 2 && chunks < BANK_CHUNKS;
        let chunks = if padded { BANK_CHUNKS } else { chunks.next_multiple_of(2) };
        let (chunk, swizzled) = (8 / vector, 1 << chunks.trailing_zeros().min(BANK_CHUNKS.trailing_zeros()));
        Self { width: chunks * chunk, chunk, vector, swizzled, padded, emulate }
    }
}

/// Chunks of 16 bytes that all banks hold.
const BANK_CHUNKS: u32 = 8;

/// The place of a row's chunk is its number XOR this.
#[cube]
fn swizzle(row: u32, #[comptime] layout: Layout) -> u32 {
    row / comptime!(BANK_CHUNKS / layout.swizzled) % layout.swizzled
}

/// Where vector `part` of a row lies.
#[cube]
pub(crate) fn place(row: u32, part: u32, #[comptime] layout: Layout) -> u32 {
    let chunk = (part / layout.chunk) ^ swizzle(row, layout);
    row * layout.width + chunk * layout.chunk + part % layout.chunk
}

/// 8x8 matrices of the tile that begins at vector `origin`, from `row` and `chunk` on: four of them, or the first two of
/// [`Order::Rows`]. `row` is a multiple of 8, and `chunk` of 2. `ldmatrix`.
///
/// Loads of one order have one address for a lane.
#[cube]
pub(crate) fn load<F: Float, N: Size>(
    stage: &SharedMemory<Vector<F, N>>,
    origin: usize,
    row: u32,
    chunk: u32,
    #[comptime] matrices: u32,
    #[comptime] order: Order,
    #[comptime] transpose: bool,
    #[comptime] layout: Layout,
) -> Array<Vector<F, Pair>> {
    let lane = UNIT_POS % LANES;
    if comptime!(layout.emulate) {
        let mut registers = Array::<Vector<F, Pair>>::new(comptime!(matrices as usize));
        for matrix in 0..matrices {
            let mut pair = Vector::<F, Pair>::empty();
            #[unroll]
            for e in 0..2u32 {
                let across = lane / 4;
                let along = lane % 4 * 2 + e;
                let (line, column) = if comptime!(transpose) { (along, across) } else { (across, along) };
                let (line, first) = row_and_chunk(matrix * 8 + line, order);
                let part = (chunk + first) * layout.chunk + column / layout.vector;
                let from = stage[origin + place(row + line, part, layout) as usize];
                pair[e as usize] = from[(column % layout.vector) as usize];
            }
            registers[matrix as usize] = pair;
        }
        registers
    } else {
        // Of two matrices the lanes of the first two groups give the addresses.
        let lane = if comptime!(matrices == 2) { lane % 16 } else { lane };
        let (line, first) = row_and_chunk(lane, order);
        let at = if comptime!(layout.padded) {
            // An address that is a sum could be computed once for each chunk. That would take more registers than there are: this one
            // depends on the origin, which changes from step to step.
            let first = origin as u32 + line * layout.width + (first ^ swizzle(line, layout)) * layout.chunk;
            (first ^ (chunk * layout.chunk)) as usize + (row * layout.width) as usize
        } else {
            // What a lane begins with, and what is the same for all: the compiler puts this in the instruction.
            let swizzled = (chunk % BANK_CHUNKS) ^ (first ^ swizzle(line, layout));
            let own = line * layout.width + swizzled * layout.chunk;
            let common = row * layout.width + chunk / BANK_CHUNKS * comptime!(BANK_CHUNKS * layout.chunk);
            origin + own as usize + common as usize
        };
        let definition = cmma::MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
        let matrices = comptime!(matrices as usize);
        definition.load_matrix::<_, Pair>(&stage.slice(at, at + 1), MatrixIdent::A, matrices, transpose)
    }
}

/// The row that a lane addresses, for a load of four matrices at 0, and the chunk of it.
#[cube]
fn row_and_chunk(lane: u32, #[comptime] order: Order) -> (u32, u32) {
    if comptime!(matches!(order, Order::Rows)) {
        (lane % 16, lane / 16)
    } else {
        (lane % 8 + lane / 16 * 8, lane / 8 % 2)
    }
}

/// `c += a · b`. The fragments begin at register `a_at` of `a`, `b_at` of `b` and `c_at` of `c`.
#[cube]
pub(crate) fn mma<F: Float>(
    a: &Array<Vector<F, Pair>>,
    a_at: u32,
    b: &Array<Vector<F, Pair>>,
    b_at: u32,
    c: &mut Array<Vector<f32, Pair>>,
    c_at: u32,
    scratch: &mut SharedMemory<f32>,
    #[comptime] emulate: bool,
) {
    let a_at = a_at as usize;
    let b_at = b_at as usize;
    let c_at = c_at as usize;
    if comptime!(emulate) {
        let base = UNIT_POS / LANES * EXCHANGED;
        let across = UNIT_POS % LANES / 4;
        let along = UNIT_POS % LANES % 4 * 2;
        for i in 0..4u32 {
            let at = base + (across + i % 2 * 8) * 16 + along + i / 2 * 8;
            let pair = a[a_at + i as usize];
            scratch[at as usize] = f32::cast_from(pair[0]);
            scratch[(at + 1) as usize] = f32::cast_from(pair[1]);
        }
        for i in 0..2u32 {
            let at = base + 256 + (along + i * 8) * 8 + across;
            let pair = b[b_at + i as usize];
            scratch[at as usize] = f32::cast_from(pair[0]);
            scratch[(at + 8) as usize] = f32::cast_from(pair[1]);
        }
        sync_cube();
        let mut upper = c[c_at];
        let mut lower = c[c_at + 1];
        for depth in 0..16u32 {
            let mut right = Vector::<f32, Pair>::empty();
            right[0] = scratch[(base + 256 + depth * 8 + along) as usize];
            right[1] = scratch[(base + 256 + depth * 8 + along + 1) as usize];
            upper += Vector::<f32, Pair>::new(scratch[(base + across * 16 + depth) as usize]) * right;
            lower += Vector::<f32, Pair>::new(scratch[(base + (across + 8) * 16 + depth) as usize]) * right;
        }
        c[c_at] = upper;
        c[c_at + 1] = lower;
        sync_cube();
    } else {
        let mut left = Array::<Vector<F, Pair>>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            left[i] = a[a_at + i];
        }
        let mut right = Array::<Vector<F, Pair>>::new(2usize);
        right[0] = b[b_at];
        right[1] = b[b_at + 1];
        let mut sum = Array::<Vector<f32, Pair>>::new(2usize);
        sum[0] = c[c_at];
        sum[1] = c[c_at + 1];
        let definition = cmma::MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
        definition.execute_inplace(&left, &right, &mut sum);
        c[c_at] = sum[0];
        c[c_at + 1] = sum[1];
    }
}

/// Two neighbouring C fragments, from register `from` on, as the A from register `to` on.
#[cube]
pub(crate) fn as_left<F: Float>(
    c: &Array<Vector<f32, Pair>>,
    from: u32,
    fragment: &mut Array<Vector<F, Pair>>,
    to: u32,
) {
    #[unroll]
    for i in 0..4usize {
        fragment[to as usize + i] = Vector::cast_from(c[from as usize + i]);
    }
}

/// Zeros. Cast from f32, since a constant of another type would be converted from f64.
#[cube]
pub(crate) fn zeros<F: Float, N: Size>() -> Vector<F, N> {
    Vector::<F, N>::new(F::cast_from(0.0f32))
}
