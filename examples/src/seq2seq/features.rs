//! Features of sound that are prepared as a model wants them, log-mel spectra in a safetensors file.

use std::path::Path;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed::load::{Checkpoint, FeatureShape, ReadTensors};

use crate::Failure;

/// The features of a file: each tensor is one `[bins, frames]`, or a batch `[B, bins, frames]` of them. They are in the order of the
/// names.
///
/// # Shapes
/// - output: `[B, bins, frames]`
///
/// # Errors
/// An error that names the tensor, if it has another size than the model takes.
pub(super) fn read<B: Backend>(file: &Path, shape: FeatureShape, device: &B::Device) -> Result<Tensor<B, 3>, Failure> {
    let checkpoint = Checkpoint::open(file)?;
    let FeatureShape { bins, frames } = shape;
    let one = |name: &str| match *checkpoint.shape(name).unwrap_or_default() {
        [b, f] if [b, f] == [bins, frames] => {
            Ok(checkpoint.tensor::<B, 2>(name, [bins, frames], DType::F32, device)?.unsqueeze())
        }
        [rows, b, f] if rows > 0 && [b, f] == [bins, frames] => {
            Ok(checkpoint.tensor::<B, 3>(name, [rows, bins, frames], DType::F32, device)?)
        }
        ref found => Err(Failure::from(format!(
            "`{name}` in {} is {found:?}, and the model takes features [{bins}, {frames}], alone or in a batch; prepare them with the \
             model's preprocessor_config.json, which pads sound to that length",
            file.display()
        ))),
    };
    let all = checkpoint.names().map(one).collect::<Result<Vec<Tensor<B, 3>>, Failure>>()?;
    match all.is_empty() {
        true => Err(format!("{} has no features; give tensors [{bins}, {frames}]", file.display()).into()),
        false => Ok(Tensor::cat(all, 0)),
    }
}
