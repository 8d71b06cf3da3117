//! The masked softmax of given scores, in place; DeepSpeed's `SoftmaxOp` (`softmax.cu`), for rows of any length.

mod row;

use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use self::row::{Row, Tile, read, weights};
use super::addend::{Addend, Places, addend};
use super::contract::{Checked, Contract};
use super::lanes::{Team, cube_max, cube_sum, vector_max, vector_sum};
use super::machine::{Machine, Unsupported};
use super::masks::HIDDEN;
use super::tensors::{HeadStrides, array, broadcast_strides, head_strides, vector_size};

/// Units of a cube.
const UNITS: u32 = 256;
/// Vectors that a unit reads in one go: enough to be in flight together.
const VECTORS: usize = 4;
/// Most vectors that a unit keeps in registers; longer rows are read twice.
const MOST_VECTORS: usize = 8;
/// Units of a multiprocessor, with several vectors in flight each, that keep its memory busy.
const UNITS_PER_PROCESSOR: usize = 512;

/// `softmax(scale · scores + alibi + mask)` over the last axis, in f32, written over the scores.
///
/// `-inf` hides, and a finite number is just added. A visible NaN makes the row NaN. A row without visible keys gets zeros.
#[derive(Debug, Clone, Copy)]
pub struct Softmax<'a, R: Runtime> {
    /// `[B, N, T, S]`, any strides but along S: read, and every element written. No two elements share a place.
    pub scores: &'a TensorHandle<R>,
    /// Plain factor on the scores.
    pub scale: f32,
    /// `[all heads, T or 1, S or 1]`, floats, any strides: the bias of every head of the model.
    pub alibi: Option<&'a TensorHandle<R>>,
    /// First head of the scores in `alibi`.
    pub head_offset: usize,
    /// `[B or 1, N or 1, T or 1, S or 1]`, floats, any strides.
    pub mask: Option<&'a TensorHandle<R>>,
    /// The position of the first query among the keys; keys after a query are hidden. `None` hides none of them.
    pub triangular: Option<usize>,
    /// Keys that a query sees, itself included, counted back from it; from `S - T` on without `triangular`.
    pub window: Option<usize>,
}

impl Tile {
    /// As few units for a row as hold it in a few vectors each, if the rows then still fill the device; several goes for a row that no cube holds.
    fn new(machine: &Machine, [rows, vectors]: [usize; 2], causal: bool, window: bool) -> Self {
        let units = machine.even_units(UNITS);
        let few = (vectors.next_power_of_two() as u32).min(Team::near(machine)).min(units);
        // Rounded up, so that a row that grows by a key seldom needs another kernel.
        let share = |team: u32| vectors.div_ceil(team as usize).next_power_of_two();
        let fills = |team: u32| rows.saturating_mul(team as usize) >= machine.processors as usize * UNITS_PER_PROCESSOR;
        let mut teams = (0..=(units / few).ilog2()).map(|doublings| few << doublings);
        let enough = |team: &u32| share(*team) <= VECTORS && (fills(*team) || share(*team) == 1);
        let team = teams.find(enough).unwrap_or(units);
        let held = share(team) <= MOST_VECTORS;
        let per_unit = if held { share(team) } else { VECTORS } as u32;
        Self { units, team: Team::new(machine, team), per_unit, held, causal, window, fast: machine.power_of_two }
    }
}

/// Scalar sizes. Strides count vectors.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    rows: u32,
    heads: u32,
    tokens: u32,
    vectors: u32,
    start: u32,
    window: u32,
    scale: f32,
    scores: HeadStrides,
}

/// Computes the softmax: one launch.
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
    arguments: Softmax<'_, R>,
) -> Result<(), Unsupported> {
    let Softmax { scale, head_offset, triangular, window, .. } = arguments;
    let CheckedSoftmax { scores, alibi, mask, sizes: [batch, heads, tokens, keys] } = arguments.check(client)?;
    let rows = batch * heads * tokens;
    if rows * keys == 0 {
        return Ok(());
    }
    let vector = vector_size(client, &[scores], keys);
    let vectors = keys / vector;
    let start = triangular.unwrap_or(keys.saturating_sub(tokens));
    let tile = Tile::new(machine, [rows, vectors], triangular.is_some(), window.is_some());
    let cubes = machine.folded(rows, (tile.units / tile.team.units) as usize)?;
    let alibi_places = alibi.map(|alibi| {
        let [head, token, key] = broadcast_strides(alibi);
        Places { first: head_offset * head, strides: [0, head, token, key] }
    });
    let mask_places = mask.map(|mask| Places { first: 0, strides: broadcast_strides(mask) });
    let (alibi_width, mask_width) = (Places::width(alibi_places, vector), Places::width(mask_places, vector));
    let sizes = SizesLaunch::new(
        rows as u32,
        heads as u32,
        tokens as u32,
        vectors as u32,
        start as u32,
        // A window wider than the keys hides nothing.
        window.map_or(0, |window| window.min(u32::MAX as usize) as u32),
        scale,
        head_strides(scores, vector),
    );
    let elements = |tensor: Option<Checked<'_, R>>| tensor.map_or(scores.dtype, |tensor| tensor.dtype);
    // SAFETY: the kernel compares its row with the rows and its vector with the vectors of one; what is added has the shape
    // of the scores, or a stride of 0 along the axes where it has not.
    unsafe {
        softmax::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(tile.units),
            vector,
            alibi_width,
            mask_width,
            array(scores),
            addend(alibi, alibi_places, alibi_width, vector),
            addend(mask, mask_places, mask_width, vector),
            sizes,
            tile,
            scores.dtype,
            elements(alibi),
            elements(mask),
        );
    }
    Ok(())
}

/// [`Softmax`], checked.
struct CheckedSoftmax<'a, R: Runtime> {
    scores: Checked<'a, R>,
    alibi: Option<Checked<'a, R>>,
    mask: Option<Checked<'a, R>>,
    sizes: [usize; 4],
}

impl<'a, R: Runtime> Softmax<'a, R> {
    #[track_caller]
    fn check(&self, client: &ComputeClient<R>) -> Result<CheckedSoftmax<'a, R>, Unsupported> {
        let contract = Contract::new("softmax", client);
        let sizes: [usize; 4] = contract.axes("scores", self.scores);
        let [_, heads, tokens, keys] = sizes;
        let scores = contract.rows("scores", self.scores, &sizes)?;
        let alibi = match self.alibi {
            Some(alibi) => {
                let shape: [usize; 3] = contract.axes("alibi", alibi);
                let all = shape[0];
                let needed = self.head_offset.saturating_add(heads);
                contract.require(needed <= all, || {
                    format!("`alibi` has {all} heads, expected at least {needed}: {heads} from {} on", self.head_offset)
                });
                let expected = [all, if shape[1] == 1 { 1 } else { tokens }, if shape[2] == 1 { 1 } else { keys }];
                Some(contract.exact("alibi", alibi, &expected)?)
            }
            None => None,
        };
        let mask = match self.mask {
            Some(mask) => {
                let shape: [usize; 4] = contract.axes("mask", mask);
                let expected = std::array::from_fn::<_, 4, _>(|axis| if shape[axis] == 1 { 1 } else { sizes[axis] });
                Some(contract.exact("mask", mask, &expected)?)
            }
            None => None,
        };
        contract.supports(&[scores.dtype])?;
        for added in [alibi, mask].into_iter().flatten() {
            contract.supports(&[added.dtype])?;
        }
        // Positions are counted in 32 bits.
        let last = self.triangular.unwrap_or(0).saturating_add(tokens).saturating_add(keys);
        match last > u32::MAX as usize {
            true => Err(Unsupported::TooLarge { elements: last }),
            false => Ok(CheckedSoftmax { scores, alibi, mask, sizes }),
        }
    }
}

/// The softmax of a few rows.
///
/// Tile: a team of neighbouring units owns a row, and unit `u` of it the vectors `u`, `u + team`, .., so that a team reads one
/// unbroken line of memory. A short row belongs to units of one plane, several rows to a cube; a longer one to the cube. A
/// row of up to `per_unit` vectors for each unit stays in registers: one read and one write. Beyond, maximum and sum run along
/// with a first read (online softmax, <https://arxiv.org/abs/1805.02867>), and a second read writes. No unit reads what
/// another one writes. Scores outside triangle and window are not read, but written. The launch has at least a team for
/// each row, in the order of `CUBE_POS`, and every stride of the scores is a whole number of vectors.
#[cube(launch_unchecked)]
fn softmax<F: Float, A: Float, E: Float, N: Size, V: Size, W: Size>(
    scores: &mut Array<Vector<F, N>>,
    alibi: &Addend<A, V>,
    mask: &Addend<E, W>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _scores_type: StorageType,
    #[define(A)] _alibi_type: StorageType,
    #[define(E)] _mask_type: StorageType,
) {
    let team = comptime!(tile.team.units);
    let per_unit = comptime!(tile.per_unit);
    let width = scores[0].size() as u32;
    let unit = UNIT_POS % team;
    let index = CUBE_POS as u32 * comptime!(tile.units / tile.team.units) + UNIT_POS / team;
    let token = index % sizes.tokens;
    let head = index / sizes.tokens % sizes.heads;
    let batch = index / (sizes.tokens * sizes.heads);
    // A team without a row gets an empty one, since all units must reach the sums.
    let vectors = select(index < sizes.rows, sizes.vectors, 0u32);
    let slot = sizes.start + token;
    let mut first = 0u32.runtime();
    let mut end = vectors * width;
    if comptime!(tile.causal) {
        end = min(end, slot + 1);
    }
    if comptime!(tile.window) {
        first = max(slot + 1, sizes.window) - sizes.window;
    }
    let row = Row {
        scores: sizes.scores.head(batch, head) + token * sizes.scores.token,
        alibi: alibi.row(batch, head, token),
        mask: mask.row(batch, head, token),
        first,
        end,
    };

    let mut exchange = SharedMemory::<f32>::new(comptime!(tile.units as usize));
    let mut values = Array::<Vector<f32, N>>::new(comptime!(per_unit as usize));
    let step = comptime!(team * per_unit);
    let mut largest = HIDDEN.runtime();
    let mut total = 0.0f32.runtime();
    if comptime!(tile.held) {
        read::<F, A, E, N, V, W>(scores, alibi, mask, &mut values, row, sizes.scale, unit, tile);
        #[unroll]
        for p in 0..per_unit {
            largest = max(largest, vector_max::<N>(values[p as usize]));
        }
        largest = cube_max(largest, &mut exchange, tile.team);
        #[unroll]
        for p in 0..per_unit {
            // Vectors of hidden keys are left as they are: they are never added, and zeros are written for them.
            if row.sees(unit + p * team, width, tile) {
                values[p as usize] = weights::<N>(values[p as usize], largest, tile.fast);
                total += vector_sum::<N>(values[p as usize]);
            }
        }
    } else {
        // Begins at a multiple of the team, so that every unit keeps its own vectors.
        let begin = first / width / team * team;
        for go in range_stepped(begin, end.div_ceil(width), step) {
            read::<F, A, E, N, V, W>(scores, alibi, mask, &mut values, row, sizes.scale, go + unit, tile);
            let mut new_largest = largest;
            #[unroll]
            for p in 0..per_unit {
                new_largest = max(new_largest, vector_max::<N>(values[p as usize]));
            }
            total *= (largest - new_largest).exp();
            largest = new_largest;
            #[unroll]
            for p in 0..per_unit {
                total += vector_sum::<N>(weights::<N>(values[p as usize], largest, tile.fast));
            }
        }
        let row_largest = cube_max(largest, &mut exchange, tile.team);
        total *= (largest - row_largest).exp();
        largest = row_largest;
    }
    total = cube_sum(total, &mut exchange, tile.team);
    // A row without visible keys gives zeros.
    let factor = select(total == 0.0f32, 0.0f32, 1.0f32 / total);

    if comptime!(tile.held) {
        #[unroll]
        for p in 0..per_unit {
            let at = unit + p * team;
            if at < vectors {
                let mut probability = Vector::<F, N>::new(F::from_int(0));
                if row.sees(at, width, tile) {
                    probability = Vector::cast_from(values[p as usize] * Vector::<f32, N>::new(factor));
                }
                scores[(row.scores + at) as usize] = probability;
            }
        }
    } else {
        for go in range_stepped(0u32, vectors, step) {
            read::<F, A, E, N, V, W>(scores, alibi, mask, &mut values, row, sizes.scale, go + unit, tile);
            #[unroll]
            for p in 0..per_unit {
                let at = go + unit + p * team;
                if at < vectors {
                    let probability =
                        weights::<N>(values[p as usize], largest, tile.fast) * Vector::<f32, N>::new(factor);
                    scores[(row.scores + at) as usize] = Vector::cast_from(probability);
                }
            }
        }
    }
}
