//! The sum over ranks on the host.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::element::element_type;
use crate::error::CommunicationError;
use crate::parallel::{AgreedSettings, Agreement, Communicator};

/// The sum of `partial` over all ranks, computed on the host in f32, whatever the device.
///
/// # Errors
/// Those of [`Communicator::all_reduce`].
///
/// # Panics
/// If the device cannot be read.
pub fn on_the_host<B: Backend, const D: usize>(
    partial: Tensor<B, D>,
    communicator: &dyn Communicator,
    settings: &AgreedSettings,
) -> Result<Tensor<B, D>, CommunicationError> {
    let (shape, dtype, device) = (partial.dims(), partial.dtype(), partial.device());
    let data = partial.into_data().convert_dtype(DType::F32);
    let mut values = match data.into_vec::<f32>() {
        Ok(values) => values,
        Err(error) => unreachable!("the data was made f32: {error:?}"),
    };
    communicator.all_reduce(&Agreement::sum(&shape, element_type(dtype), settings), &mut values)?;
    Ok(Tensor::from_data(TensorData::new(values, shape).convert_dtype(dtype), (&device, dtype)))
}
