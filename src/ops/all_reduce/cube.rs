//! The sum over ranks that are CUDA devices: NCCL adds where the tensors lie.
//!
//! NCCL waits on the device for every rank, without a limit. So a rank hands everything before the sum to its device and asks
//! for errors, then meets the others on the host, and only what cannot fail any more comes behind that meeting: a rank that is
//! dead, late, different, or has a failed kernel is an error on the host of every rank, and no device waits.
//!
//! CubeCL's `all_reduce` is called without Burn's around it, which adds the buffers as they are, padding of rows included. Ranks
//! whose layouts differ would offer NCCL different numbers of elements.

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::full_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::InputScalar;
use cubecl::server::{Handle, ReduceOperation};

use super::on_the_host;
use crate::error::CommunicationError;
use crate::ops::cube::{Collected, CubeCall, CubeOps, Inputs, is_float};
use crate::parallel::{Agreement, Communicator, Settings};

/// The sum of `partial` over all ranks: between the devices of the communicator if it names any, else on the host.
///
/// # Errors
/// Those of [`Communicator::barrier`]; [`CommunicationError::Engine`] if this rank's device has failed, and
/// [`CommunicationError::Unavailable`] if the tensor is on another device than the communicator names for this rank. The other
/// ranks get [`CommunicationError::Aborted`].
pub fn all_reduce<B: CubeOps, const D: usize>(
    partial: Tensor<B, D>,
    communicator: &dyn Communicator,
    settings: &Settings,
) -> Result<Tensor<B, D>, CommunicationError> {
    let (dtype, device) = (partial.dtype(), partial.device());
    let devices = match communicator.devices() {
        Some(devices) if B::adds_between_devices() && is_float(dtype) => devices,
        _ => return on_the_host(partial, communicator, settings),
    };
    let named = devices[communicator.rank()];
    if named != device.id() {
        let cause =
            format!("this rank was given device {named}, and its tensor is on {device:?}; build the layer there");
        communicator.abort(&cause);
        return Err(CommunicationError::Unavailable { engine: "NCCL", cause });
    }
    let agreement = Agreement::sum(&partial.dims(), dtype, settings);
    if partial.shape().num_elements() == 0 {
        communicator.barrier(&agreement)?;
        return Ok(partial);
    }
    let mut inputs = Collected::new();
    inputs.float(partial.cast(DType::F32));
    let mut prepared = inputs.call(&Prepare);
    let (partial, place): (Tensor<B, D>, Tensor<B, D>) = (prepared.next(), prepared.next());
    hand_over([&partial, &place], communicator)?;

    communicator.barrier(&agreement)?;
    let mut inputs = Collected::new();
    inputs.float(partial);
    inputs.float(place);
    let sum = inputs.call(&Add { devices: devices.to_vec() }).next::<D>();
    hand_over([&sum], communicator)?;
    Ok(sum.cast(dtype))
}

/// Gives up for all ranks if something failed on the device of this one.
fn hand_over<B: CubeOps, const D: usize, const N: usize>(
    tensors: [&Tensor<B, D>; N],
    communicator: &dyn Communicator,
) -> Result<(), CommunicationError> {
    let tensors = tensors.into_iter().map(|tensor| tensor.clone().into_primitive().tensor());
    B::hand_over(tensors.collect()).map_err(|cause| {
        communicator.abort(&cause);
        CommunicationError::Engine { engine: "CUDA", cause }
    })
}

/// The partial result without gaps, and a place for the sum.
#[derive(Debug, Clone)]
struct Prepare;

impl CubeCall for Prepare {
    const NAME: &'static str = "all_reduce_prepare";

    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)> {
        vec![inputs[0].clone(), inputs[0].clone()]
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Inputs<R>) -> Vec<CubeTensor<R>> {
        let partial = inputs.next();
        let (client, device, dtype) = (partial.client.clone(), partial.device.clone(), partial.dtype);
        let shape = partial.meta.shape().clone();
        // Should NCCL fail all the same, CubeCL keeps it to itself: then it shows in the numbers.
        let nan = InputScalar::new(f32::NAN, dtype);
        let place = full_device_dtype(client.clone(), Shape::new([shape.num_elements()]), device.clone(), nan, dtype);
        // CubeCL takes both from one stream.
        let partial = if partial.handle.stream == place.handle.stream { partial } else { partial.copy() };
        vec![into_contiguous(partial), CubeTensor::new_contiguous(client, device, shape, place.handle, dtype)]
    }
}

/// The sum itself; both tensors are those of [`Prepare`].
#[derive(Debug, Clone)]
struct Add {
    devices: Vec<DeviceId>,
}

impl CubeCall for Add {
    const NAME: &'static str = "all_reduce";

    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)> {
        vec![inputs[1].clone()]
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Inputs<R>) -> Vec<CubeTensor<R>> {
        let (partial, sum) = (inputs.next(), inputs.next());
        let mut client = sum.client.clone();
        let devices = self.devices.clone();
        client.all_reduce(elements(&partial), elements(&sum), sum.dtype.into(), devices, ReduceOperation::Sum);
        // The stream of the tensors waits for that of NCCL; the host does not.
        client.sync_collective();
        vec![sum]
    }
}

/// The memory of a tensor without what an allocation has behind it: NCCL adds up all of it.
fn elements<R: CubeRuntime>(tensor: &CubeTensor<R>) -> Handle {
    let size = (tensor.meta.num_elements() * tensor.dtype.size()) as u64;
    let handle = tensor.handle.clone();
    let behind = handle.size_in_used() - size;
    handle.offset_end(behind)
}
