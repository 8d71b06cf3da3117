//! Burn's fusion over CubeCL: each operation of this crate is recorded as one operation and later run on the inner backend.

use std::marker::PhantomData;

use burn::tensor::DType;
use burn::tensor::backend::BackendTypes;
use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};

use super::CubeOps;
use crate::ops::InferenceBackend;
use crate::ops::cube::{CubeCall, CubeDevice};

impl<B: FusionBackend + CubeDevice> InferenceBackend for Fusion<B> {
    type Ops = CubeOps;
}

impl<B: FusionBackend + CubeDevice> CubeDevice for Fusion<B> {
    fn run<C: CubeCall>(arguments: C::Arguments<FloatTensor<Self>>) -> C::Output<FloatTensor<Self>> {
        let mut tensors: Vec<FloatTensor<Self>> = Vec::new();
        let arguments = C::walk(arguments, &mut |tensor| {
            tensors.push(tensor);
            tensors.len() - 1
        });
        let kinds = |index: usize| (tensors[index].shape.clone(), tensors[index].dtype);
        let announced = C::announce(C::walk(arguments.clone(), &mut { kinds }));
        let client = tensors[0].client.clone();
        let mut outputs = Vec::new();
        let places = C::walk_output(announced, &mut |(shape, dtype)| {
            outputs.push(TensorIr::uninit(client.create_empty_handle(), shape, dtype));
            outputs.len() - 1
        });
        let streams = OperationStreams::with_inputs(&tensors);
        let inputs: Vec<TensorIr> = tensors.into_iter().map(|tensor| tensor.into_ir()).collect();
        let recorded = CustomOpIr::new(C::NAME, &inputs, &outputs);
        let operation = Recorded::<B, C> { recorded: recorded.clone(), arguments, backend: PhantomData };
        let results = client.register(streams, OperationIr::Custom(recorded), operation);
        C::walk_output(places, &mut |index: usize| results[index].clone())
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

    fn has_tensor_cores(device: &<Self as BackendTypes>::Device, dtype: DType, head_dim: usize) -> bool {
        B::has_tensor_cores(device, dtype, head_dim)
    }

    fn has_tf32(device: &<Self as BackendTypes>::Device) -> bool {
        B::has_tf32(device)
    }

    fn adds_between_devices() -> bool {
        B::adds_between_devices()
    }

    fn submit(tensors: Vec<FloatTensor<Self>>) -> Result<(), String> {
        B::submit(tensors.into_iter().map(|tensor| tensor.client.clone().resolve_tensor_float::<B>(tensor)).collect())
    }
}

/// A recorded operation, with the index of each tensor in `recorded` for the tensor.
#[derive(Debug)]
struct Recorded<B, C: CubeCall> {
    recorded: CustomOpIr,
    arguments: C::Arguments<usize>,
    backend: PhantomData<B>,
}

impl<B: FusionBackend + CubeDevice, C: CubeCall> Operation<B::FusionRuntime> for Recorded<B, C> {
    fn execute(&self, handles: &mut HandleContainer<<B::FusionRuntime as FusionRuntime>::FusionHandle>) {
        // On CubeCL tensors of every kind are the same buffers, so all are fetched as floats.
        let arguments = C::walk(self.arguments.clone(), &mut |index: usize| {
            handles.get_float_tensor::<B>(&self.recorded.inputs[index])
        });
        let mut index = 0;
        C::walk_output(B::run::<C>(arguments), &mut |tensor| {
            handles.register_float_tensor::<B>(&self.recorded.outputs[index].id, tensor);
            index += 1;
        });
    }
}
