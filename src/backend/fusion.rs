//! Burn's fusion in front of CubeCL: every operation of ours is recorded as one, and run on the backend inside.

use std::marker::PhantomData;

use burn::tensor::DType;
use burn::tensor::backend::BackendTypes;
use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor};
use burn_deepspeed_kernels::cube::Unsupported;
use burn_deepspeed_kernels::cube::prefill::mma::Engine;
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};

use super::cube_operations;
use crate::ops::InferenceBackend;
use crate::ops::cube::{CubeCall, CubeOps};

impl<B: FusionBackend + CubeOps> InferenceBackend for Fusion<B> {
    cube_operations!();
}

impl<B: FusionBackend + CubeOps> CubeOps for Fusion<B> {
    fn call<C: CubeCall>(call: &C, inputs: Vec<FloatTensor<Self>>) -> Vec<FloatTensor<Self>> {
        let client = inputs[0].client.clone();
        let streams = OperationStreams::with_inputs(&inputs);
        let kinds: Vec<_> = inputs.iter().map(|tensor| (tensor.shape.clone(), tensor.dtype)).collect();
        let outputs: Vec<TensorIr> = call
            .outputs(&kinds)
            .into_iter()
            .map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype))
            .collect();
        let inputs: Vec<TensorIr> = inputs.into_iter().map(|tensor| tensor.into_ir()).collect();
        let recorded = CustomOpIr::new(C::NAME, &inputs, &outputs);
        let operation = Recorded::<B, C> { recorded: recorded.clone(), call: call.clone(), backend: PhantomData };
        client.register(streams, OperationIr::Custom(recorded), operation)
    }

    fn from_int(tensor: IntTensor<Self>) -> FloatTensor<Self> {
        tensor
    }

    fn to_int(tensor: FloatTensor<Self>) -> IntTensor<Self> {
        tensor
    }

    fn from_bool(tensor: BoolTensor<Self>) -> FloatTensor<Self> {
        tensor
    }

    fn tensor_cores(
        device: &<Self as BackendTypes>::Device,
        dtype: DType,
        head_dim: usize,
    ) -> Result<Engine, Unsupported> {
        B::tensor_cores(device, dtype, head_dim)
    }

    fn has_tf32(device: &<Self as BackendTypes>::Device) -> bool {
        B::has_tf32(device)
    }

    #[cfg(feature = "nccl")]
    fn adds_between_devices() -> bool {
        B::adds_between_devices()
    }

    #[cfg(feature = "nccl")]
    fn hand_over(tensors: Vec<FloatTensor<Self>>) -> Result<(), String> {
        B::hand_over(
            tensors.into_iter().map(|tensor| tensor.client.clone().resolve_tensor_float::<B>(tensor)).collect(),
        )
    }
}

/// A recorded call.
#[derive(Debug)]
struct Recorded<B, C> {
    recorded: CustomOpIr,
    call: C,
    backend: PhantomData<B>,
}

impl<B: FusionBackend + CubeOps, C: CubeCall> Operation<B::FusionRuntime> for Recorded<B, C> {
    fn execute(&self, handles: &mut HandleContainer<<B::FusionRuntime as FusionRuntime>::FusionHandle>) {
        // On CubeCL tensors of every kind are the same buffers, so all are fetched as floats.
        let inputs = self.recorded.inputs.iter().map(|tensor| handles.get_float_tensor::<B>(tensor)).collect();
        let outputs = B::call(&self.call, inputs);
        for (place, output) in self.recorded.outputs.iter().zip(outputs) {
            handles.register_float_tensor::<B>(&place.id, output);
        }
    }
}
