//! Images that are prepared as a model wants them: resized, rescaled and normalised pixels in a safetensors file.

use std::path::Path;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed::load::families::ImageShape;
use burn_deepspeed::load::{Checkpoint, ReadTensors};

use crate::Failure;

/// Images of one tensor.
pub struct Images<B: Backend> {
    /// `name` for a single image, `name[0]` and so on for those of a batch.
    pub names: Vec<String>,
    /// `[B, C, height, width]`.
    pub pixels: Tensor<B, 4>,
}

/// The images of a file: each tensor is an image `[C, height, width]`, or a batch `[B, C, height, width]` of them.
///
/// # Errors
/// An error that names the tensor, if it has another size than the model takes.
pub fn read<B: Backend>(file: &Path, shape: &ImageShape, device: &B::Device) -> Result<Vec<Images<B>>, Failure> {
    let checkpoint = Checkpoint::open(file)?;
    let names: Vec<String> = checkpoint.names().map(String::from).collect();
    if names.is_empty() {
        return Err(format!("{} has no images; give tensors of pixels", file.display()).into());
    }
    let ImageShape { channels, size: [height, width], .. } = *shape;
    names
        .into_iter()
        .map(|name| {
            let found = checkpoint.shape(&name).unwrap_or_default();
            let (batch, single) = match *found {
                [c, h, w] if [c, h, w] == [channels, height, width] => (1, true),
                [batch, c, h, w] if batch > 0 && [c, h, w] == [channels, height, width] => (batch, false),
                _ => {
                    return Err(format!(
                        "`{name}` in {} is {found:?}, and the model takes images [{channels}, {height}, {width}], alone \
                         or in a batch; prepare them with the model's preprocessor_config.json",
                        file.display()
                    )
                    .into());
                }
            };
            let pixels: Tensor<B, 4> = match single {
                true => checkpoint.tensor::<B, 3>(&name, [channels, height, width], DType::F32, device)?.unsqueeze(),
                false => checkpoint.tensor(&name, [batch, channels, height, width], DType::F32, device)?,
            };
            let names = match single {
                true => vec![name],
                false => (0..batch).map(|at| format!("{name}[{at}]")).collect(),
            };
            Ok(Images { names, pixels })
        })
        .collect()
}
