//! Weights of one byte with scales, and how they become f32 in registers.

use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use crate::cube::bytes::{BYTES, Reading, ZERO};
use crate::cube::contract::{Checked, Contract, f32_type, i8_type, same_type};
use crate::cube::machine::Unsupported;
use crate::cube::tensors::array;

/// One-byte integers, each times the scale of its block.
#[derive(Debug, Clone, Copy)]
pub struct Int8<'a, R: Runtime> {
    /// `[out, in]`, of i8.
    pub elements: &'a TensorHandle<R>,
    /// `[out / tall, in / wide]`, both rounded up, of f32: output `o` and input `i` have `[o / tall, i / wide]`.
    pub scales: &'a TensorHandle<R>,
    /// `[tall, wide]`: outputs and inputs of a block, neither of them 0.
    pub blocks: [usize; 2],
}

/// [`Int8`], checked.
#[derive(Debug)]
pub(super) struct CheckedInt8<'a, R: Runtime> {
    pub elements: Checked<'a, R>,
    scales: Checked<'a, R>,
    blocks: [usize; 2],
}

impl<'a, R: Runtime> Int8<'a, R> {
    /// Checks the matrix against its expected shape, `[out, in]`.
    #[track_caller]
    pub(super) fn check(
        &self,
        contract: &Contract<'_, R>,
        [outputs, inputs]: [usize; 2],
    ) -> Result<CheckedInt8<'a, R>, Unsupported> {
        let [tall, wide] = self.blocks;
        contract
            .require(tall > 0 && wide > 0, || format!("`blocks` is {:?}, expected sizes of at least 1", self.blocks));
        let elements = contract.rows("matrix", self.elements, &[outputs, inputs])?;
        let scales = contract.rows("scales", self.scales, &[outputs.div_ceil(tall), inputs.div_ceil(wide)])?;
        same_type("matrix", &elements, i8_type())?;
        same_type("scales", &scales, f32_type())?;
        Ok(CheckedInt8 { elements, scales, blocks: self.blocks })
    }
}

impl<R: Runtime> CheckedInt8<'_, R> {
    /// Inputs of a block, where an output has several.
    pub fn wide(&self) -> Option<usize> {
        let [_, wide] = self.blocks;
        (wide < self.elements.shape()[1]).then_some(wide)
    }
}

impl Reading {
    /// Weights of a vector.
    pub fn weights(self) -> usize {
        if self.words { BYTES * self.vector } else { self.vector }
    }

    /// Every way to read an int8 matrix, the widest first. Words, in loads of up to 16 bytes, require that rows and blocks
    /// consist of whole loads. Single bytes are always possible.
    pub(super) fn of_int8<R: Runtime>(client: &ComputeClient<R>, matrix: &CheckedInt8<'_, R>) -> Vec<Self> {
        let [outputs, inputs] = [matrix.elements.shape()[0], matrix.elements.shape()[1]];
        let [_, wide] = matrix.blocks;
        let elements = u32::as_type_native_unchecked().storage_type();
        let words = client.io_optimized_vector_sizes(BYTES);
        let words = words.map(|vector| Self { elements, vector, words: true }).filter(|reading| {
            let divides = |size: usize| size.is_multiple_of(reading.weights());
            divides(inputs)
                && (outputs == 1 || divides(matrix.elements.strides()[0]))
                && (wide >= inputs || divides(wide))
        });
        words.chain([Self { elements: i8_type(), vector: 1, words: false }]).collect()
    }
}

/// The scales as the kernel takes them. Without any, weights count as they are.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Scales {
    scales: ComptimeOption<Array<f32>>,
    /// Stride of the first axis.
    row: u32,
    /// Outputs of a block.
    tall: u32,
    /// Vectors of the matrix that share a scale, where an output has several.
    #[cube(comptime)]
    pub wide: Option<u32>,
    /// [`ZERO`].
    pub zero: u32,
}

/// What a lane loads at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Loads {
    /// Outputs of a group of lanes.
    pub outputs: u32,
    /// Vectors of each output.
    pub unroll: u32,
    /// Lanes of a group.
    pub lanes: u32,
}

/// The scales of a matrix that is read in vectors of `weights`; none for a dense one.
pub(super) fn scales<R: Runtime>(matrix: Option<&CheckedInt8<'_, R>>, weights: usize) -> ScalesLaunch<R> {
    let Some(matrix) = matrix else {
        return ScalesLaunch::new(None.into(), 0, 1, None, ZERO);
    };
    let [tall, _] = matrix.blocks;
    ScalesLaunch::new(
        Some(array(matrix.scales)).into(),
        matrix.scales.strides()[0] as u32,
        tall.min(u32::MAX as usize) as u32,
        matrix.wide().map(|wide| (wide / weights) as u32),
        ZERO,
    )
}

#[cube]
impl Scales {
    /// The first scale of an output.
    pub fn begin(&self, output: u32) -> u32 {
        output / self.tall * self.row
    }

    /// The sum of an output, times its scale if it has just one.
    pub fn whole(&self, sum: f32, output: u32) -> f32 {
        let mut scaled = sum;
        #[comptime]
        match &self.scales {
            ComptimeOption::Some(scales) => {
                if comptime!(self.wide.is_none()) {
                    scaled *= scales[self.begin(output) as usize];
                }
            }
            ComptimeOption::None => {}
        }
        scaled
    }

    /// The scale of vector `at` of each of `count` outputs, where they have several, to `to` and the places after it; unspecified
    /// after the last vector.
    pub fn load_blocks(
        &self,
        factors: &mut Array<f32>,
        to: u32,
        begin: &Array<u32>,
        at: u32,
        vectors: u32,
        #[comptime] count: u32,
    ) {
        #[comptime]
        match &self.scales {
            ComptimeOption::Some(scales) => {
                if comptime!(self.wide.is_some()) {
                    let at = min(at, vectors - 1) / comptime!(self.wide.unwrap_or(1));
                    #[unroll]
                    for o in 0..count {
                        factors[(to + o) as usize] = scales[(begin[o as usize] + at) as usize];
                    }
                }
            }
            ComptimeOption::None => {}
        }
    }

    /// The scales of the vectors `first`, `first + lanes`, .. of each output, where it has several; unspecified after the last.
    pub fn load(
        &self,
        factors: &mut Array<f32>,
        begin: &Array<u32>,
        first: u32,
        vectors: u32,
        #[comptime] loads: Loads,
    ) {
        #[comptime]
        match &self.scales {
            ComptimeOption::Some(scales) => {
                if comptime!(self.wide.is_some()) {
                    let wide = comptime!(self.wide.unwrap_or(1));
                    let outputs = comptime!(loads.outputs as usize);
                    #[unroll]
                    for u in 0..loads.unroll as usize {
                        let at = min(first + u as u32 * loads.lanes, vectors - 1) / wide;
                        #[unroll]
                        for o in 0..outputs {
                            factors[u * outputs + o] = scales[(begin[o] + at) as usize];
                        }
                    }
                }
            }
            ComptimeOption::None => {}
        }
    }
}
