//! Padding on a CubeCL kernel.

use burn::tensor::{Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::{Machine, pad_transform};

use super::reference::reference;
use crate::ops::cube::{
    CubeCall, CubeDevice, TensorKind, TensorLike, empty, float, from_float, handle, is_float, kernel_accepts, rows,
};

/// The arguments of a padding, with `T` for each tensor.
#[derive(Debug, Clone)]
struct PadCall<T> {
    heads: T,
    size: usize,
}

/// [`Operations::pad_transform`](crate::ops::Operations::pad_transform) on CubeCL.
pub(crate) fn pad_transform<B: CubeDevice>(heads: Tensor<B, 4>, size: usize) -> Tensor<B, 4> {
    let shape = heads.dims();
    if shape.contains(&0) || shape[3] >= size || !is_float(heads.dtype()) {
        return reference(heads, size);
    }
    from_float(B::run::<PadCall<()>>(PadCall { heads: float(heads), size }))
}

impl CubeCall for PadCall<()> {
    const NAME: &'static str = "pad_transform";

    type Arguments<T: TensorLike> = PadCall<T>;
    type Output<T: TensorLike> = T;

    fn walk<T: TensorLike, U: TensorLike>(call: PadCall<T>, visit: &mut impl FnMut(T) -> U) -> PadCall<U> {
        PadCall { heads: visit(call.heads), size: call.size }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(output: T, visit: &mut impl FnMut(T) -> U) -> U {
        visit(output)
    }

    fn announce(call: PadCall<TensorKind>) -> TensorKind {
        let (shape, dtype) = call.heads;
        (Shape::new([shape[0], shape[1], shape[2], call.size]), dtype)
    }

    fn launch<R: CubeRuntime>(call: PadCall<CubeTensor<R>>) -> CubeTensor<R> {
        let heads = rows(call.heads);
        let shape = heads.meta.shape();
        let padded = empty(&heads, [shape[0], shape[1], shape[2], call.size]);
        let arguments = pad_transform::PadTransform { heads: &handle(&heads), padded: &handle(&padded) };
        kernel_accepts(Self::NAME, pad_transform::launch(&heads.client, &Machine::new(&heads.client), arguments));
        padded
    }
}
