//! Burn's backend on CubeCL: CUDA, Vulkan, WebGPU.

use burn::tensor::DType;
use burn::tensor::backend::{BackendTypes, DeviceOps};
use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_deepspeed_kernels::cube::prefill::mma::Engine;
use burn_deepspeed_kernels::cube::{Machine, Unsupported};
use cubecl::prelude::CubePrimitive;
use cubecl::tf32;

use super::cube_operations;
use crate::ops::InferenceBackend;
use crate::ops::cube::{CubeCall, CubeOps, Inputs};

impl<R, F, I, BT> InferenceBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    R::Device: DeviceOps,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    cube_operations!();
}

impl<R, F, I, BT> CubeOps for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    R::Device: DeviceOps,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn call<C: CubeCall>(call: &C, inputs: Vec<FloatTensor<Self>>) -> Vec<FloatTensor<Self>> {
        call.launch(Inputs::new(inputs))
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
        let client = R::client(device);
        Engine::tensor_cores(&client, &Machine::new(&client), dtype.into(), head_dim)
    }

    fn has_tf32(device: &<Self as BackendTypes>::Device) -> bool {
        R::client(device).properties().supports_type(tf32::as_type_native_unchecked().storage_type())
    }

    #[cfg(feature = "nccl")]
    fn adds_between_devices() -> bool {
        use cubecl::server::ServerCommunication;
        R::CubeServer::SERVER_COMM_ENABLED
    }

    #[cfg(feature = "nccl")]
    fn hand_over(tensors: Vec<FloatTensor<Self>>) -> Result<(), String> {
        for tensor in tensors {
            tensor.client.flush().map_err(|error| error.to_string())?;
            // Where memory ran out, CubeCL panics, on its own thread and on this one.
            let memory = || tensor.client.get_resource(tensor.handle.clone()).map(drop);
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(memory)) {
                Ok(found) => found.map_err(|error| error.to_string())?,
                Err(_) => return Err("a tensor has no memory, as when none is left; look for what was printed".into()),
            }
        }
        Ok(())
    }
}
