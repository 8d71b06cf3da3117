//! Images that are prepared as a model wants them, resized, rescaled and normalised pixels in a safetensors file, as rows of patches.

use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_deepspeed::load::families::ImageShape;
use burn_deepspeed::load::{Checkpoint, ReadTensors};

use crate::Failure;

/// Images of one tensor.
pub struct Images<B: Backend> {
    /// `name` for a single image, `name[0]` and so on for those of a batch.
    pub names: Vec<String>,
    /// The pixels of each whole patch, `[B, T, C · height · width]` of a patch. What is left of an image on the right and at the bottom is
    /// not read.
    pub patches: Tensor<B, 3>,
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
            let pixels = match single {
                true => checkpoint.tensor::<B, 3>(&name, [channels, height, width], DType::F32, device)?.into_data(),
                false => {
                    checkpoint.tensor::<B, 4>(&name, [batch, channels, height, width], DType::F32, device)?.into_data()
                }
            };
            let pixels: Vec<f32> = pixels.iter().collect();
            let patches = Tensor::from_data(patches(&pixels, batch, shape), device);
            let names = match single {
                true => vec![name],
                false => (0..batch).map(|at| format!("{name}[{at}]")).collect(),
            };
            Ok(Images { names, patches })
        })
        .collect()
}

/// The pixels of images `[B, C, height, width]` patch by patch, in the order of a convolution's kernel: channel, row, column.
fn patches(pixels: &[f32], batch: usize, shape: &ImageShape) -> TensorData {
    let ImageShape { channels, size: [height, width], patch: [rows, columns] } = *shape;
    let [down, across] = shape.grid();
    let mut ordered = Vec::with_capacity(pixels.len());
    for image in pixels.chunks(channels * height * width) {
        for (top, left) in (0..down).flat_map(|row| (0..across).map(move |column| (row * rows, column * columns))) {
            for line in (0..channels).flat_map(|channel| (0..rows).map(move |row| channel * height + top + row)) {
                ordered.extend_from_slice(&image[line * width + left..][..columns]);
            }
        }
    }
    TensorData::new(ordered, [batch, down * across, channels * rows * columns])
}
