//! LayerNorm (<https://arxiv.org/abs/1607.06450>) and RMSNorm (<https://arxiv.org/abs/1910.07467>) over rows; the first half
//! of DeepSpeed's `QKVGemmOp`, with the sum of its pre-norm.

use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::lanes::{Team, cube_sum, vector_sum};
use super::machine::{
    Machine, Unsupported, array, axes, check_extent, check_rows, check_same_type, check_shape, check_types, vector_size,
};

/// Fewest units of a cube.
const FEWEST_UNITS: u32 = 32;
/// Most units of a cube.
const MOST_UNITS: u32 = 1024;
/// Vectors of a unit that the number of units aims at.
const VECTORS: usize = 4;
/// Most vectors that a unit keeps in registers; longer rows are read three times.
const MOST_VECTORS: usize = 8;

/// `(row - mean) / sqrt(variance + epsilon) · gamma + beta` of each row of `input + residual`, in f32.
///
/// Rows may lie at any distance. `sum` and `output` share no memory with the other tensors.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a, R: Runtime> {
    /// `[rows, E]`.
    pub input: &'a TensorHandle<R>,
    /// `[rows, E]` of the elements of `input`: added to it, and the sum rounded to them.
    pub residual: Option<&'a TensorHandle<R>>,
    /// `[rows, E]` of the elements of `input`: where `input + residual` is written, the other output of a pre-norm.
    pub sum: Option<&'a TensorHandle<R>>,
    /// `[E]`, floats of any width.
    pub gamma: &'a TensorHandle<R>,
    /// `[E]` of the elements of `gamma`; `None` adds nothing.
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
    sum: u32,
    output: u32,
}

/// Normalises: one launch.
///
/// # Errors
/// [`Unsupported`]; nothing was launched.
pub fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    arguments: Norm<'_, R>,
) -> Result<(), Unsupported> {
    let Norm { input, residual, sum, gamma, beta, output, epsilon, rms } = arguments;
    let [rows, features] = arguments.check(client)?;
    if rows * features == 0 {
        return Ok(());
    }
    let tensors: Vec<_> = [Some(input), residual, sum, Some(output)].into_iter().flatten().collect();
    let vector = vector_size(client, &tensors, features);
    let vectors = features / vector;
    let wanted = (vectors.div_ceil(VECTORS).next_power_of_two() as u32).clamp(FEWEST_UNITS, MOST_UNITS);
    let team = Team::new(machine, machine.even_units(wanted));
    let per_unit = vectors.div_ceil(team.units as usize);
    let held = per_unit <= MOST_VECTORS;
    let tile = Tile { team, per_unit: if held { per_unit } else { VECTORS } as u32, held, rms };
    let stride = |tensor: Option<&TensorHandle<R>>| tensor.map_or(0, |tensor| (tensor.strides()[0] / vector) as u32);
    let sizes = SizesLaunch::new(
        rows as u32,
        vectors as u32,
        features as f32,
        epsilon,
        stride(Some(input)),
        stride(residual),
        stride(sum),
        stride(Some(output)),
    );
    let cubes = machine.folded(rows, 1)?;
    // SAFETY: the kernel compares its row with the rows and its vector with the vectors of one; the shapes are checked.
    unsafe {
        norm::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(team.units),
            vector,
            array(input),
            residual.map(array).into(),
            sum.map(array).into(),
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

impl<R: Runtime> Norm<'_, R> {
    /// Rows and features, once the layout is known to suit the kernel.
    fn check(&self, client: &ComputeClient<R>) -> Result<[usize; 2], Unsupported> {
        let [rows, features] = axes("input", self.input)?;
        let of_rows = [("residual", self.residual), ("sum", self.sum), ("output", Some(self.output))];
        let of_features = [("gamma", Some(self.gamma)), ("beta", self.beta)];
        let given = |(name, tensor): (&'static str, Option<_>)| tensor.map(|tensor| (name, tensor));
        of_rows.into_iter().filter_map(given).try_for_each(|(name, of)| check_shape(name, of, [rows, features]))?;
        of_features.into_iter().filter_map(given).try_for_each(|(name, of)| check_shape(name, of, [features]))?;
        let all = of_rows.into_iter().chain(of_features).filter_map(given);
        for tensor in std::iter::once(("input", self.input)).chain(all) {
            check_rows(&[tensor])?;
            check_extent(&[tensor.1])?;
        }
        check_same_type(self.input.dtype, &[("residual", self.residual), ("sum", self.sum)])?;
        check_same_type(self.gamma.dtype, &[("beta", self.beta)])?;
        check_types(client, &[self.input.dtype, self.gamma.dtype, self.output.dtype])?;
        Ok([rows, features])
    }
}

/// The norm of one row.
///
/// Tile: a cube owns a row, and unit `u` its vectors `u`, `u + units`, .., so that the cube reads one unbroken line of memory.
/// A row of up to `per_unit` vectors for each unit stays in registers between mean, variance and result: one read and one
/// write. A longer row is read three times. The units meet twice, for the mean and for the variance. The launch has at least
/// a cube for each row, in the order of `CUBE_POS`, and every stride is a whole number of vectors.
#[cube(launch_unchecked)]
fn norm<F: Float, G: Float, O: Float, N: Size>(
    input: &Array<Vector<F, N>>,
    residual: &ComptimeOption<Array<Vector<F, N>>>,
    sum: &mut ComptimeOption<Array<Vector<F, N>>>,
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
            let at = first + p * units + UNIT_POS;
            total += vector_sum::<N>(values[p as usize]);
            #[comptime]
            match sum {
                ComptimeOption::Some(sum) => {
                    if at < sizes.vectors {
                        sum[(row * sizes.sum + at) as usize] = Vector::cast_from(values[p as usize]);
                    }
                }
                ComptimeOption::None => {}
            }
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

/// The vectors of this unit in one go from `first` on: `input + residual`, rounded as the input is; 0 behind the row.
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
                    value = Vector::cast_from(Vector::<F, N>::cast_from(value));
                }
                ComptimeOption::None => {}
            }
        }
        values[p as usize] = value;
    }
}
