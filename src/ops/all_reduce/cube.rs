//! The sum over ranks that are CUDA devices: NCCL adds in device memory.
//!
//! NCCL waits on the device for every rank, without a limit. So a rank submits everything before the sum to its device, asks
//! for errors, and then waits at a barrier on the host. Only work that cannot fail follows the barrier. A rank that is dead,
//! late, different, or has a failed kernel is therefore an error on the host of every rank, and no device waits.
//!
//! CubeCL's `all_reduce` is called directly. Burn's wrapper adds whole buffers, padding of rows included, so ranks with
//! different layouts would offer NCCL different numbers of elements.

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::full_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::InputScalar;
use cubecl::server::{Handle, ReduceOperation};

use super::on_the_host;
use crate::element::element_type;
use crate::error::CommunicationError;
use crate::ops::cube::{CubeCall, CubeDevice, TensorKind, TensorLike, float, from_float, is_float};
use crate::parallel::{AgreedSettings, Agreement, Communicator};

/// The sum of `partial` over all ranks: between the devices of the communicator if it names any, else on the host.
///
/// # Errors
/// Those of [`Communicator::barrier`]; [`CommunicationError::Engine`] if this rank's device has failed, and
/// [`CommunicationError::Unavailable`] if the tensor is on another device than the communicator names for this rank. The other
/// ranks get [`CommunicationError::Aborted`].
pub fn all_reduce<B: CubeDevice, const D: usize>(
    partial: Tensor<B, D>,
    communicator: &dyn Communicator,
    settings: &AgreedSettings,
) -> Result<Tensor<B, D>, CommunicationError> {
    let (dtype, device) = (partial.dtype(), partial.device());
    let devices = match communicator.devices() {
        Some(devices) if B::adds_between_devices() && is_float(dtype) => devices,
        _ => return on_the_host(partial, communicator, settings),
    };
    let devices: Vec<_> = devices.iter().map(|device| DeviceId::new(device.kind, device.index)).collect();
    let named = devices[communicator.rank()];
    if named != device.id() {
        let cause =
            format!("this rank was given device {named}, and its tensor is on {device:?}; build the layer there");
        communicator.abort(&cause);
        return Err(CommunicationError::Unavailable { engine: "NCCL", cause });
    }
    let agreement = Agreement::sum(&partial.dims(), element_type(dtype), settings);
    if partial.shape().num_elements() == 0 {
        communicator.barrier(&agreement)?;
        return Ok(partial);
    }
    let partial = float(partial.cast(DType::F32));
    let Prepared { partial, sum } = B::run::<Prepare<()>>(Prepare { partial });
    submit::<B>(vec![partial.clone(), sum.clone()], communicator)?;

    communicator.barrier(&agreement)?;
    let sum = B::run::<Add<()>>(Add { partial, sum, devices });
    submit::<B>(vec![sum.clone()], communicator)?;
    Ok(from_float::<B, D>(sum).cast(dtype))
}

/// [`CubeDevice::submit`], which aborts all ranks if something failed on the device of this one.
fn submit<B: CubeDevice>(
    tensors: Vec<FloatTensor<B>>,
    communicator: &dyn Communicator,
) -> Result<(), CommunicationError> {
    B::submit(tensors).map_err(|cause| {
        communicator.abort(&cause);
        CommunicationError::Engine { engine: "CUDA", cause }
    })
}

/// Makes the partial result contiguous, and allocates a tensor for the sum.
#[derive(Debug, Clone)]
struct Prepare<T> {
    partial: T,
}

/// The partial result and the tensor for the sum.
struct Prepared<T> {
    partial: T,
    sum: T,
}

impl CubeCall for Prepare<()> {
    const NAME: &'static str = "all_reduce_prepare";

    type Arguments<T: TensorLike> = Prepare<T>;
    type Output<T: TensorLike> = Prepared<T>;

    fn walk<T: TensorLike, U: TensorLike>(call: Prepare<T>, visit: &mut impl FnMut(T) -> U) -> Prepare<U> {
        Prepare { partial: visit(call.partial) }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(output: Prepared<T>, visit: &mut impl FnMut(T) -> U) -> Prepared<U> {
        Prepared { partial: visit(output.partial), sum: visit(output.sum) }
    }

    fn announce(call: Prepare<TensorKind>) -> Prepared<TensorKind> {
        Prepared { partial: call.partial.clone(), sum: call.partial }
    }

    fn launch<R: CubeRuntime>(call: Prepare<CubeTensor<R>>) -> Prepared<CubeTensor<R>> {
        let partial = call.partial;
        let (client, device, dtype) = (partial.client.clone(), partial.device.clone(), partial.dtype);
        let shape = partial.meta.shape().clone();
        // CubeCL does not report a failure of NCCL. NaNs show it in the result.
        let nan = InputScalar::new(f32::NAN, dtype);
        let sum = full_device_dtype(client.clone(), Shape::new([shape.num_elements()]), device.clone(), nan, dtype);
        // CubeCL requires both on one stream.
        let partial = if partial.handle.stream == sum.handle.stream { partial } else { partial.copy() };
        Prepared {
            partial: into_contiguous(partial),
            sum: CubeTensor::new_contiguous(client, device, shape, sum.handle, dtype),
        }
    }
}

/// Adds over the devices. Both tensors are those of [`Prepared`].
#[derive(Debug, Clone)]
struct Add<T> {
    partial: T,
    sum: T,
    devices: Vec<DeviceId>,
}

impl CubeCall for Add<()> {
    const NAME: &'static str = "all_reduce";

    type Arguments<T: TensorLike> = Add<T>;
    type Output<T: TensorLike> = T;

    fn walk<T: TensorLike, U: TensorLike>(call: Add<T>, visit: &mut impl FnMut(T) -> U) -> Add<U> {
        Add { partial: visit(call.partial), sum: visit(call.sum), devices: call.devices }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(output: T, visit: &mut impl FnMut(T) -> U) -> U {
        visit(output)
    }

    fn announce(call: Add<TensorKind>) -> TensorKind {
        call.sum
    }

    fn launch<R: CubeRuntime>(call: Add<CubeTensor<R>>) -> CubeTensor<R> {
        let Add { partial, sum, devices } = call;
        let mut client = sum.client.clone();
        client.all_reduce(elements(&partial), elements(&sum), sum.dtype.into(), devices, ReduceOperation::Sum);
        // The stream of the tensors waits for that of NCCL; the host does not.
        client.sync_collective();
        sum
    }
}

/// The memory of a tensor without the padding at the end of its allocation, which NCCL would add too.
fn elements<R: CubeRuntime>(tensor: &CubeTensor<R>) -> Handle {
    let size = (tensor.meta.num_elements() * tensor.dtype.size()) as u64;
    let handle = tensor.handle.clone();
    let padding = handle.size_in_used() - size;
    handle.offset_end(padding)
}
