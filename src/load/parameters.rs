//! Reads the parameters of one module: a projection, a norm, an embedding.

use std::slice;

use burn::module::Param;
use burn::nn::{Embedding, LayerNorm, RmsNorm};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed_core::checkpoint::{
    BlockedInt8, Checkpoint, NormNames, ProjectionParts, WeightNames, WeightPart, replicated,
};
use burn_deepspeed_core::element::ElementType;
use burn_deepspeed_core::layout::Orientation;

use super::tensors::{ReadTensors, of_floats};
use crate::element::element_type;
use crate::error::WeightError;
use crate::weight::{BlockMatrix, FusedNorm, Int8Matrix, Weight};

/// Reads the modules around attention from a checkpoint, with floats of one element type.
///
/// Each method takes a module, for its sizes and the form in which it stores its parameters, and returns it with those of the
/// checkpoint. The attention modules read theirs the same way, in [`DeepSpeedSelfAttention::load`].
///
/// ```no_run
/// # use burn::tensor::DType;
/// # use burn_deepspeed::load::{Checkpoint, ParameterReader, WeightNames, WeightPart};
/// # use burn_deepspeed::weight::{Orientation, Weight};
/// # use burn_ndarray::NdArray;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Default::default();
/// let checkpoint = Checkpoint::open("gpt2")?;
/// let reader = ParameterReader::<NdArray>::new(&checkpoint, DType::F32, &device);
/// // the second half of the outputs of an MLP, which GPT-2 stores `[in, out]`
/// let up = Weight::init(768, 1536, true, Orientation::OutputInput, DType::F32, &device);
/// let half = WeightPart::Outputs { own: 1536..3072, all: 3072 };
/// let up = reader.projection(&up, &WeightNames::of("h.0.mlp.c_fc"), Orientation::InputOutput, &half)?;
/// # let _ = up;
/// # Ok(()) }
/// ```
///
/// [`DeepSpeedSelfAttention::load`]: crate::DeepSpeedSelfAttention::load
#[derive(Debug)]
pub struct ParameterReader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    dtype: DType,
    device: B::Device,
}

impl<'a, B: Backend> ParameterReader<'a, B> {
    /// Reads from `checkpoint`; floats become `dtype`.
    pub fn new(checkpoint: &'a Checkpoint, dtype: DType, device: &B::Device) -> Self {
        Self { checkpoint, dtype, device: device.clone() }
    }

    /// A projection, or the part of it on one rank. `orientation` is how the checkpoint stores the matrix; the module keeps its
    /// own. A matrix of int8 stays int8 in an int8 module and becomes dense in a dense one; a dense matrix is rounded in the
    /// blocks of an int8 module. A module of blocks keeps what the checkpoint stores; see [`Weight::init_blocks`].
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor; [`WeightError::Unexpected`] if the checkpoint has a bias and the module has none.
    pub fn projection(
        &self,
        module: &Weight<B>,
        names: &WeightNames,
        orientation: Orientation,
        part: &WeightPart,
    ) -> Result<Weight<B>, WeightError> {
        let shape = [module.output_size(), module.input_size()];
        let parts = ProjectionParts::of(self.checkpoint, names, orientation, shape, part);
        assembled(module, &parts, self.dtype, &self.device)
    }

    /// A fused norm.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor; [`WeightError::Unexpected`] if the checkpoint has a beta and the module has none.
    pub fn norm(&self, module: &FusedNorm<B>, names: &NormNames) -> Result<FusedNorm<B>, WeightError> {
        norm(module, slice::from_ref(self.checkpoint), names, self.dtype, &self.device)
    }

    /// Burn's LayerNorm.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn layer_norm(&self, mut module: LayerNorm<B>, names: &NormNames) -> Result<LayerNorm<B>, WeightError> {
        module.gamma = self.gamma(names, &module.gamma)?;
        module.beta = module.beta.as_ref().map(|beta| self.parameter(&names.beta, beta)).transpose()?;
        Ok(module)
    }

    /// Burn's RMSNorm.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn rms_norm(&self, module: RmsNorm<B>, names: &NormNames) -> Result<RmsNorm<B>, WeightError> {
        Ok(RmsNorm { gamma: self.gamma(names, &module.gamma)?, ..module })
    }

    /// Burn's embedding, from the tensor `name`.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn embedding(&self, module: Embedding<B>, name: &str) -> Result<Embedding<B>, WeightError> {
        Ok(Embedding { weight: self.parameter(name, &module.weight)? })
    }

    /// The factor of a norm.
    fn gamma(&self, names: &NormNames, like: &Param<Tensor<B, 1>>) -> Result<Param<Tensor<B, 1>>, WeightError> {
        let size = like.lazy_shape().dims::<1>()[0];
        let gamma = gamma(slice::from_ref(self.checkpoint), names, size, self.dtype, &self.device)?;
        Ok(Param::from_tensor(gamma))
    }

    fn parameter<const D: usize>(
        &self,
        name: &str,
        like: &Param<Tensor<B, D>>,
    ) -> Result<Param<Tensor<B, D>>, WeightError> {
        let shape = like.lazy_shape().dims::<D>();
        Ok(Param::from_tensor(self.checkpoint.tensor(name, shape, self.dtype, &self.device)?))
    }
}

/// A projection in the form in which the module stores it. A matrix stays int8 if the module is int8 and all of its parts are;
/// otherwise it is dense first. The bias is read after the matrix.
pub(super) fn assembled<B: Backend>(
    module: &Weight<B>,
    parts: &ProjectionParts<'_>,
    dtype: DType,
    device: &B::Device,
) -> Result<Weight<B>, WeightError> {
    let shape = [module.output_size(), module.input_size()];
    let element = element_type(dtype);
    let bias = || {
        let bias = parts.bias(shape[0], module.has_bias(), element)?;
        Ok::<_, WeightError>(bias.map(|values| of_floats(values, [shape[0]], dtype, device)))
    };
    let int8 = module.int8();
    if int8.is_some() && parts.is_int8() {
        let BlockedInt8 { elements, scales, shape, blocks } = parts.int8(shape)?;
        let matrix = Int8Matrix::from_blocks(elements, scales, shape, blocks, dtype, device)?;
        return Ok(Weight::of_int8(matrix, bias()?).with_rounded_input(module.input_rounding()));
    }
    if let Some(blocks) = module.blocks() {
        let rows = parts.blocks(shape, blocks.wanted())?;
        let matrix = BlockMatrix::from_rows(rows, blocks.wanted(), dtype, device)?;
        return Ok(Weight::of_blocks(matrix, bias()?).with_rounded_input(module.input_rounding()));
    }
    let orientation = module.orientation();
    let values = parts.dense(shape, orientation, element)?;
    let matrix = of_floats(values, orientation.shape(shape[1], shape[0]), dtype, device);
    let weight = Weight::new(matrix, bias()?, orientation).with_rounded_input(module.input_rounding());
    match int8 {
        Some(int8) => weight.quantize_in(int8.blocks()),
        None => Ok(weight),
    }
}

/// A norm that every one of these files holds in full.
pub(super) fn norm<B: Backend>(
    module: &FusedNorm<B>,
    files: &[Checkpoint],
    names: &NormNames,
    dtype: DType,
    device: &B::Device,
) -> Result<FusedNorm<B>, WeightError> {
    let size = module.size();
    let gamma = gamma(files, names, size, dtype, device)?;
    let beta = match module.has_beta() {
        true => {
            Some(of_floats(replicated::vector(files, &names.beta, size, element_type(dtype))?, [size], dtype, device))
        }
        false => {
            let remedy = match module.spec().rms {
                true => "an RMSNorm has none; set `norm_type` to LayerNorm",
                false => "set `norm_bias` to true",
            };
            replicated::refuse(files, &names.beta, remedy)?;
            None
        }
    };
    Ok(FusedNorm::new(gamma, beta, module.spec()))
}

/// The factor of a norm, which every one of these files holds. If it is stored minus 1, the sum is rounded once.
fn gamma<B: Backend>(
    files: &[Checkpoint],
    names: &NormNames,
    size: usize,
    dtype: DType,
    device: &B::Device,
) -> Result<Tensor<B, 1>, WeightError> {
    if names.unweighted {
        return Ok(Tensor::ones([size], (device, dtype)));
    }
    if !names.plus_one {
        let values = replicated::vector(files, &names.gamma, size, element_type(dtype))?;
        return Ok(of_floats(values, [size], dtype, device));
    }
    let values = replicated::vector(files, &names.gamma, size, ElementType::F32)?;
    let stored: Tensor<B, 1> = of_floats(values, [size], DType::F32, device);
    Ok(stored.add_scalar(1.0).cast(dtype))
}
