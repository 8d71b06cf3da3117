//! The sums of squares of all queries and of all keys of a token, which a norm of all heads needs before the first head is written.

use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use crate::cube::contract::{Contract, f32_type, same_type};
use crate::cube::lanes::{Team, cube_sum, vector_sum};
use crate::cube::machine::{Machine, Unsupported, countable};
use crate::cube::tensors::{HeadStrides, array, head_strides, vector_size};

/// Target number of vectors of a unit, from which the number of units follows.
const VECTORS: usize = 4;
/// Fewest and most units of a cube.
const UNITS: [u32; 2] = [32, 512];

/// The arguments of [`launch`].
#[derive(Debug, Clone, Copy)]
pub struct Squares<'a, R: Runtime> {
    /// `q | k | v`, `[B, T, width]`.
    pub qkv: &'a TensorHandle<R>,
    /// Features of all queries, which come first, and of all keys, which follow.
    pub features: [usize; 2],
    /// `[B, T, 2]` of f32; every element is written.
    pub sums: &'a TensorHandle<R>,
}

/// Scalar sizes. Strides of the projection count vectors.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    /// Sums.
    count: u32,
    tokens: u32,
    queries: u32,
    keys: u32,
    qkv_batch: u32,
    qkv_token: u32,
    sums: HeadStrides,
}

/// Adds the squares in f32: one launch, which reads queries and keys once.
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
    arguments: Squares<'_, R>,
) -> Result<(), Unsupported> {
    let contract = Contract::new("squares", client);
    let [batch, tokens, width] = contract.axes("qkv", arguments.qkv);
    let qkv = contract.rows("qkv", arguments.qkv, &[batch, tokens, width])?;
    let sums = contract.exact("sums", arguments.sums, &[batch, tokens, 2])?;
    let [queries, keys] = arguments.features;
    contract.require(queries.saturating_add(keys) <= width, || {
        format!("`features` are {queries} and {keys}, expected at most the {width} of `qkv`")
    });
    same_type("sums", &sums, f32_type())?;
    contract.supports(&[qkv.dtype])?;
    countable(batch * tokens * 2)?;
    if batch * tokens == 0 {
        return Ok(());
    }
    let vector = vector_size(client, &[qkv], burn_deepspeed_core::divisor::gcd(queries, keys));
    let wanted = (queries.max(keys).div_ceil(vector * VECTORS).next_power_of_two() as u32).clamp(UNITS[0], UNITS[1]);
    let team = Team::new(machine, machine.even_units(wanted));
    let by_side = TensorHandle::new(
        sums.handle.clone(),
        vec![batch, 2, tokens, 1],
        vec![sums.strides()[0], sums.strides()[2], sums.strides()[1], 1],
        sums.dtype,
    );
    let sizes = SizesLaunch::new(
        (batch * tokens * 2) as u32,
        tokens as u32,
        (queries / vector) as u32,
        (keys / vector) as u32,
        (qkv.strides()[0] / vector) as u32,
        (qkv.strides()[1] / vector) as u32,
        head_strides(contract.exact("sums", &by_side, &[batch, 2, tokens, 1])?, 1),
    );
    // SAFETY: the tensors were checked against each other; the kernel compares its sum with the sums that there are, and its vector
    // with those of its side.
    unsafe {
        cache_write_squares::launch_unchecked::<R>(
            client,
            machine.folded(batch * tokens * 2, 1)?,
            CubeDim::new_1d(team.units),
            vector,
            array(qkv),
            array(sums),
            sizes,
            team,
            qkv.dtype,
        );
    }
    Ok(())
}

/// A cube adds the squares of the queries of a token, or of its keys: unit `u` those of the vectors `u`, `u + units`, .., so that the
/// cube reads one unbroken line of memory. The launch has a cube for each sum, in the order of `CUBE_POS`.
#[cube(launch_unchecked)]
fn cache_write_squares<F: Float, N: Size>(
    qkv: &Array<Vector<F, N>>,
    sums: &mut Array<f32>,
    sizes: &Sizes,
    #[comptime] team: Team,
    #[define(F)] _elements: StorageType,
) {
    let at = CUBE_POS as u32;
    if at >= sizes.count {
        terminate!(); // the whole cube leaves together
    }
    let (token, side) = (at / 2, at % 2);
    let (batch, token) = (token / sizes.tokens, token % sizes.tokens);
    let first = batch * sizes.qkv_batch + token * sizes.qkv_token + select(side == 0, 0u32, sizes.queries);
    let vectors = select(side == 0, sizes.queries, sizes.keys);
    let mut exchange = SharedMemory::<f32>::new(comptime!(team.units as usize));
    let mut total = 0.0f32.runtime();
    for vector in range_stepped(UNIT_POS, vectors, team.units) {
        let features = Vector::<f32, N>::cast_from(qkv[(first + vector) as usize]);
        total += vector_sum::<N>(features * features);
    }
    let sum = cube_sum(total, &mut exchange, team);
    if UNIT_POS == 0 {
        sums[(sizes.sums.head(batch, side) + token * sizes.sums.token) as usize] = sum;
    }
}
