//! LayerNorm (<https://arxiv.org/abs/1607.06450>) and RMSNorm (<https://arxiv.org/abs/1910.07467>) over rows; the first half
//! of DeepSpeed's `QKVGemmOp`, and with a residual its `layer_norm_residual`.

use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::contract::{Checked, Contract, same_type};
use super::lanes::{Team, cube_sum, vector_sum};
use super::machine::{Machine, Unsupported, countable};
use super::tensors::{array, presence, vector_size};

/// Fewest units of a cube.
const FEWEST_UNITS: u32 = 32;
/// Most units of a cube.
const MOST_UNITS: u32 = 1024;
/// Target number of vectors of a unit, from which the number of units follows.
const VECTORS: usize = 4;
/// Most vectors that a unit keeps in registers; longer rows are read three times.
const MOST_VECTORS: usize = 8;

/// `(row - mean) / sqrt(variance + epsilon) · gamma + beta` of each row of `input + residual`, in f32.
///
/// Rows may have any stride. `output` shares no memory with the other tensors.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a, R: Runtime> {
    /// `[rows, E]`.
    pub input: &'a TensorHandle<R>,
    /// `[rows, E]` of the element type of `input`: added to it, in f32.
    pub residual: Option<&'a TensorHandle<R>>,
    /// `[E]`, floats of any width.
    pub gamma: &'a TensorHandle<R>,
    /// `[E]` of the element type of `gamma`; `None` adds nothing.
    pub beta: Option<&'a TensorHandle<R>>,
    /// `[rows, E]`, floats of any width; every element is written.
    pub output: &'a TensorHandle<R>,
    /// What is added to the variance.
    pub epsilon: f32,
    /// RMSNorm: the mean is not subtracted, and the variance is the mean square.
    pub rms: bool,
}

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    /// All units of the cube.
    team: Team,
    /// Vectors of a row that a unit reads in one go.
    per_unit: u32,
    /// Whether one go reads the row.
    held: bool,
    rms: bool,
    /// Which tensors are there; see [`presence`].
    present: u32,
}

/// Scalar sizes. Strides count vectors.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    rows: u32,
    vectors: u32,
    features: f32,
    epsilon: f32,
    input: u32,
    residual: u32,
    output: u32,
}

/// Normalises: one launch.
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
    arguments: Norm<'_, R>,
) -> Result<(), Unsupported> {
    let Norm { epsilon, rms, .. } = arguments;
    let CheckedNorm { input, residual, gamma, beta, output, sizes: [rows, features] } = arguments.check(client)?;
    if rows * features == 0 {
        return Ok(());
    }
    let tensors: Vec<_> = [Some(input), residual, Some(output)].into_iter().flatten().collect();
    let vector = vector_size(client, &tensors, features);
    let vectors = features / vector;
    let wanted = (vectors.div_ceil(VECTORS).next_power_of_two() as u32).clamp(FEWEST_UNITS, MOST_UNITS);
    let team = Team::new(machine, machine.even_units(wanted));
    let per_unit = vectors.div_ceil(team.units as usize);
    let held = per_unit <= MOST_VECTORS;
    let present = presence(&[residual.is_some(), beta.is_some()]);
    let tile = Tile { team, per_unit: if held { per_unit } else { VECTORS } as u32, held, rms, present };
    let stride = |tensor: Option<Checked<'_, R>>| tensor.map_or(0, |tensor| (tensor.strides()[0] / vector) as u32);
    let sizes = SizesLaunch::new(
        rows as u32,
        vectors as u32,
        features as f32,
        epsilon,
        stride(Some(input)),
        stride(residual),
        stride(Some(output)),
    );
    let cubes = machine.folded(rows, 1)?;
    // SAFETY: the tensors were checked against each other; the kernel compares its row with the rows, and its vector with the
    // vectors of a row.
    unsafe {
        norm::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(team.units),
            vector,
            array(input),
            residual.map(array).into(),
            array(gamma),
            beta.map(array).into(),
            array(output),
            sizes,
            tile,
            input.dtype,
            gamma.dtype,
            output.dtype,
        );
    }
    Ok(())
}

/// [`Norm`], checked.
struct CheckedNorm<'a, R: Runtime> {
    input: Checked<'a, R>,
    residual: Option<Checked<'a, R>>,
    gamma: Checked<'a, R>,
    beta: Option<Checked<'a, R>>,
    output: Checked<'a, R>,
    /// Rows and features.
    sizes: [usize; 2],
}

impl<'a, R: Runtime> Norm<'a, R> {
    #[track_caller]
    fn check(&self, client: &ComputeClient<R>) -> Result<CheckedNorm<'a, R>, Unsupported> {
        let contract = Contract::new("norm", client);
        let sizes: [usize; 2] = contract.axes("input", self.input);
        let [rows, features] = sizes;
        let optional = |name, tensor: Option<&'a TensorHandle<R>>, shape: &[usize]| {
            tensor.map(|tensor| contract.rows(name, tensor, shape)).transpose()
        };
        let input = contract.rows("input", self.input, &sizes)?;
        let residual = optional("residual", self.residual, &sizes)?;
        let gamma = contract.rows("gamma", self.gamma, &[features])?;
        let beta = optional("beta", self.beta, &[features])?;
        let output = contract.rows("output", self.output, &sizes)?;
        residual.map_or(Ok(()), |residual| same_type("residual", &residual, input.dtype))?;
        beta.map_or(Ok(()), |beta| same_type("beta", &beta, gamma.dtype))?;
        contract.supports(&[input.dtype, gamma.dtype, output.dtype])?;
        countable(rows)?;
        countable(features)?;
        Ok(CheckedNorm { input, residual, gamma, beta, output, sizes })
    }
}

/// The norm of one row.
///
/// Tile: a cube owns a row, and unit `u` its vectors `u`, `u + units`, .., so that the cube reads one unbroken line of memory.
/// A row of up to `per_unit` vectors for each unit stays in registers between mean, variance and result: one read and one
/// write. A longer row is read three times. The units exchange sums twice, for the mean and for the variance. The launch has at least
/// a cube for each row, in the order of `CUBE_POS`, and every stride is a whole number of vectors.
#[cube(launch_unchecked)]
fn norm<F: Float, G: Float, O: Float, N: Size>(
    input: &Array<Vector<F, N>>,
    residual: &ComptimeOption<Array<Vector<F, N>>>,
    gamma: &Array<Vector<G, N>>,
    beta: &ComptimeOption<Array<Vector<G, N>>>,
    output: &mut Array<Vector<O, N>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _input_type: StorageType,
    #[define(G)] _gamma_type: StorageType,
    #[define(O)] _output_type: StorageType,
) {
    let units = comptime!(tile.team.units);
    let per_unit = comptime!(tile.per_unit);
    let row = CUBE_POS as u32;
    if row >= sizes.rows {
        terminate!(); // the whole cube leaves together
    }
    let mut exchange = SharedMemory::<f32>::new(comptime!(units as usize));
    let mut values = Array::<Vector<f32, N>>::new(comptime!(per_unit as usize));
    let step = comptime!(units * per_unit);
    let read_once = select(comptime!(tile.held).runtime(), step, sizes.vectors);

    let mut mean = 0.0f32.runtime();
    let mut total = 0.0f32.runtime();
    for first in range_stepped(0u32, read_once, step) {
        read::<F, N>(input, residual, &mut values, sizes, row, first, tile);
        #[unroll]
        for p in 0..per_unit {
            total += vector_sum::<N>(values[p as usize]);
        }
    }
    if comptime!(!tile.rms) {
        mean = cube_sum(total, &mut exchange, tile.team) / sizes.features;
    }

    let mut squares = 0.0f32.runtime();
    for first in range_stepped(0u32, read_once, step) {
        if comptime!(!tile.held) {
            read::<F, N>(input, residual, &mut values, sizes, row, first, tile);
        }
        #[unroll]
        for p in 0..per_unit {
            if first + p * units + UNIT_POS < sizes.vectors {
                let centred = values[p as usize] - Vector::<f32, N>::new(mean);
                squares += vector_sum::<N>(centred * centred);
            }
        }
    }
    let variance = cube_sum(squares, &mut exchange, tile.team) / sizes.features;
    let inverse = 1.0f32 / (variance + sizes.epsilon).sqrt();

    for first in range_stepped(0u32, read_once, step) {
        if comptime!(!tile.held) {
            read::<F, N>(input, residual, &mut values, sizes, row, first, tile);
        }
        #[unroll]
        for p in 0..per_unit {
            let at = first + p * units + UNIT_POS;
            if at < sizes.vectors {
                let unit = (values[p as usize] - Vector::<f32, N>::new(mean)) * Vector::<f32, N>::new(inverse);
                let mut result = unit * Vector::<f32, N>::cast_from(gamma[at as usize]);
                #[comptime]
                match beta {
                    ComptimeOption::Some(beta) => {
                        result += Vector::<f32, N>::cast_from(beta[at as usize]);
                    }
                    ComptimeOption::None => {}
                }
                output[(row * sizes.output + at) as usize] = Vector::cast_from(result);
            }
        }
    }
}

/// The vectors of this unit in one go from `first` on: `input + residual`; 0 after the end of the row.
#[cube]
fn read<F: Float, N: Size>(
    input: &Array<Vector<F, N>>,
    residual: &ComptimeOption<Array<Vector<F, N>>>,
    values: &mut Array<Vector<f32, N>>,
    sizes: &Sizes,
    row: u32,
    first: u32,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for p in 0..tile.per_unit {
        let at = first + p * tile.team.units + UNIT_POS;
        let mut value = Vector::<f32, N>::new(0.0f32);
        if at < sizes.vectors {
            value = Vector::cast_from(input[(row * sizes.input + at) as usize]);
            #[comptime]
            match residual {
                ComptimeOption::Some(residual) => {
                    value += Vector::<f32, N>::cast_from(residual[(row * sizes.residual + at) as usize]);
                }
                ComptimeOption::None => {}
            }
        }
        values[p as usize] = value;
    }
}
