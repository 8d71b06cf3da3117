//! Padding on a CubeCL kernel.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::{Machine, pad_transform};

use super::reference;
use crate::ops::cube::{Collected, CubeCall, CubeOps, Inputs, handle, is_float, planned};

#[derive(Debug, Clone, Copy)]
struct PadCall {
    size: usize,
}

/// [`InferenceBackend::pad_transform`](crate::InferenceBackend::pad_transform) on CubeCL.
pub(crate) fn pad_transform<B: CubeOps>(heads: Tensor<B, 4>, size: usize) -> Tensor<B, 4> {
    let shape = heads.dims();
    if shape.contains(&0) || shape[3] >= size || !is_float(heads.dtype()) {
        return reference(heads, size);
    }
    let mut inputs = Collected::new();
    inputs.float(heads);
    inputs.call(&PadCall { size }).next()
}

impl CubeCall for PadCall {
    const NAME: &'static str = "pad_transform";

    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)> {
        let (shape, dtype) = &inputs[0];
        vec![(Shape::new([shape[0], shape[1], shape[2], self.size]), *dtype)]
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Inputs<R>) -> Vec<CubeTensor<R>> {
        let heads = inputs.rows();
        let shape = heads.meta.shape();
        let shape = Shape::new([shape[0], shape[1], shape[2], self.size]);
        let padded = empty_device_dtype(heads.client.clone(), heads.device.clone(), shape, heads.dtype);
        let arguments = pad_transform::PadTransform { heads: &handle(&heads), padded: &handle(&padded) };
        planned("pad_transform", pad_transform::launch(&heads.client, &Machine::new(&heads.client), arguments));
        vec![padded]
    }
}
