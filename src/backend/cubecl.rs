//! Burn's backend on CubeCL: CUDA, Vulkan, WebGPU.

use burn::tensor::DType;
use burn::tensor::backend::{BackendTypes, DeviceOps};
use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_deepspeed_kernels::cube::Machine;
use burn_deepspeed_kernels::cube::prefill::mma::Engine;
use cubecl::prelude::CubePrimitive;
use cubecl::tf32;

use super::CubeOps;
use crate::ops::InferenceBackend;
use crate::ops::cube::{CubeCall, CubeDevice};

impl<R, F, I, BT> InferenceBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    R::Device: DeviceOps,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    type Ops = CubeOps;
}

impl<R, F, I, BT> CubeDevice for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    R::Device: DeviceOps,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn run<C: CubeCall>(arguments: C::Arguments<FloatTensor<Self>>) -> C::Output<FloatTensor<Self>> {
        C::launch(arguments)
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
        let client = R::client(device);
        Engine::tensor_cores(&client, &Machine::new(&client), dtype.into(), head_dim).is_ok()
    }

    fn has_tf32(device: &<Self as BackendTypes>::Device) -> bool {
        R::client(device).properties().supports_type(tf32::as_type_native_unchecked().storage_type())
    }

    fn adds_between_devices() -> bool {
        use cubecl::server::ServerCommunication;
        R::CubeServer::SERVER_COMM_ENABLED
    }

    fn submit(tensors: Vec<FloatTensor<Self>>) -> Result<(), String> {
        for tensor in tensors {
            tensor.client.flush().map_err(|error| error.to_string())?;
            // CubeCL panics if memory ran out, on its own thread and on this one.
            let memory = || tensor.client.get_resource(tensor.handle.clone()).map(drop);
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(memory)) {
                Ok(found) => found.map_err(|error| error.to_string())?,
                Err(_) => {
                    return Err(
                        "a tensor has no memory, possibly because none is left; see what the panic printed".into()
                    );
                }
            }
        }
        Ok(())
    }
}
