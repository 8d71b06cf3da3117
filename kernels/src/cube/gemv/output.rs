//! What the kernels write, and where.

use cubecl::prelude::*;

use super::problem::CheckedGemv;

/// Scalar sizes of matrix and output.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Sizes {
    pub outputs: u32,
    /// Stride of the first axis of the matrix, in vectors.
    pub matrix: u32,
    /// Stride of the rows of the output, in elements.
    output: u32,
    /// First column of the output.
    offset: u32,
}

/// What the kernels need besides the arrays; `vector` weights of a row of the matrix are read together.
pub(super) fn sizes<R: Runtime>(problem: &CheckedGemv<'_, R>, vector: usize) -> SizesLaunch<R> {
    SizesLaunch::new(
        problem.extents.outputs as u32,
        (problem.matrix.elements().strides()[0] / vector) as u32,
        problem.output.strides()[0] as u32,
        problem.offset as u32,
    )
}

/// Adds the bias and rounds.
#[cube]
pub(super) fn write<F: Float, B: Float>(
    sum: f32,
    row: u32,
    at: u32,
    bias: &ComptimeOption<Array<B>>,
    output: &mut Array<F>,
    sizes: &Sizes,
) {
    let mut result = sum;
    #[comptime]
    match bias {
        ComptimeOption::Some(bias) => {
            result += f32::cast_from(bias[at as usize]);
        }
        ComptimeOption::None => {}
    }
    output[(row * sizes.output + sizes.offset + at) as usize] = F::cast_from(result);
}
