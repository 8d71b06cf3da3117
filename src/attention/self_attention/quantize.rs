//! Self-attention with matrices of int8 or of blocks.

use burn::tensor::backend::Backend;

use super::DeepSpeedSelfAttention;
use crate::config::ActivationRounding;
use crate::error::WeightError;
use crate::weight::{BlockFormat, Int8Blocks};

impl<B: Backend> DeepSpeedSelfAttention<B> {
    /// This layer with int8 matrices: a quarter of the memory, and of the bytes that a step reads. It stays int8 when a
    /// checkpoint is loaded. To load an int8 record, build the module with int8 matrices first (quantised in any blocks, or with
    /// `dtype` int8); it takes the blocks of the record.
    ///
    /// ```
    /// # use burn_deepspeed::{AttentionInit, DataType, DeepSpeedInferenceConfig, weight::Int8Blocks};
    /// # use burn_ndarray::NdArray;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32);
    /// let attention = config.init_self_attention::<NdArray>(0, &Default::default())?;
    /// let attention = attention.quantize(Int8Blocks::PerOutput)?;
    /// let matrix = attention.output().int8().expect("it was quantised");
    /// assert_eq!(matrix.bytes(), 64 * 64 + 4 * 64); // one f32 scale per output
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](crate::weight::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let gate = self.gate.map(|gate| gate.quantize(blocks)).transpose()?;
        Ok(Self { projections: self.projections.quantize(blocks)?, gate, ..self })
    }

    /// This layer with matrices of blocks, which kernels multiply as they are. Floats of a checkpoint that is loaded are rounded to
    /// the format, and blocks stay as they are stored. To load a record of blocks, build the module with a `matrix_format` of blocks first;
    /// it takes the formats of the record.
    ///
    /// ```
    /// # use burn_deepspeed::{AttentionInit, DataType, DeepSpeedInferenceConfig, weight::BlockFormat};
    /// # use burn_ndarray::NdArray;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32);
    /// let attention = config.init_self_attention::<NdArray>(0, &Default::default())?;
    /// let attention = attention.quantize_blocks(BlockFormat::Q4_0)?;
    /// let matrix = attention.output().blocks().expect("it was quantised");
    /// assert_eq!(matrix.formats().bytes(), 64 * 2 * 18); // 18 bytes for each 32 weights
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`BlockMatrix::quantize`](crate::weight::BlockMatrix::quantize).
    pub fn quantize_blocks(self, format: BlockFormat) -> Result<Self, WeightError> {
        let gate = self.gate.map(|gate| gate.quantize_blocks(format)).transpose()?;
        Ok(Self { projections: self.projections.quantize_blocks(format)?, gate, ..self })
    }

    /// Sets whether the inputs of projections of int8 or of blocks are rounded where that is faster: `round_activations` of the configuration. See
    /// [`Weight::with_rounded_input`](crate::weight::Weight::with_rounded_input).
    pub fn with_rounded_activations(self, rounding: impl Into<ActivationRounding>) -> Self {
        let rounding = rounding.into();
        let gate = self.gate.map(|gate| gate.with_rounded_input(rounding));
        Self { projections: self.projections.with_rounded_input(rounding), gate, ..self }
    }
}
