//! Tensors of Burn from a checkpoint, into one, and in the layouts of its QKV matrices.

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed_core::checkpoint::{Checkpoint, CheckpointWriter, Floats, Part, QkvLayout, whole};

use crate::element::element_type;
use crate::error::{ConfigError, WeightError};
use crate::parallel::HeadShard;

/// Reads tensors from a [`Checkpoint`].
pub trait ReadTensors {
    /// Reads a float tensor, converted to `dtype`.
    ///
    /// # Errors
    /// [`WeightError::Missing`] with the nearest name, [`WeightError::Shape`], [`WeightError::ElementType`] if the tensor does
    /// not hold floats, or [`WeightError::File`] if it cannot be read.
    fn tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dtype: DType,
        device: &B::Device,
    ) -> Result<Tensor<B, D>, WeightError> {
        self.slice(name, shape, shape.map(|size| 0..size), dtype, device)
    }

    /// Reads a block of a float tensor, such as a rank's part of a matrix, and nothing else in the file. Converted to `dtype`.
    ///
    /// ```no_run
    /// # use burn::tensor::{DType, Tensor};
    /// # use burn_deepspeed::load::{Checkpoint, ReadTensors};
    /// # use burn_ndarray::NdArray;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let checkpoint = Checkpoint::open("gpt2")?;
    /// // the second half of the outputs of an MLP of 768 inputs and 3072 outputs, `[in, out]`
    /// let name = "h.0.mlp.c_fc.weight";
    /// let half: Tensor<NdArray, 2> =
    ///     checkpoint.slice(name, [768, 3072], [0..768, 1536..3072], DType::F32, &Default::default())?;
    /// # let _ = half;
    /// # Ok(()) }
    /// ```
    ///
    /// # Shapes
    /// - shape: that of the whole tensor
    /// - output: the lengths of `ranges`
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor).
    ///
    /// # Panics
    /// If a range is not inside the shape.
    fn slice<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        ranges: [Range<usize>; D],
        dtype: DType,
        device: &B::Device,
    ) -> Result<Tensor<B, D>, WeightError>;

    /// Reads a tensor of integers of any width, or of booleans.
    ///
    /// # Errors
    /// [`WeightError::Missing`] with the nearest name, [`WeightError::Shape`], [`WeightError::ElementType`] if the tensor does
    /// not hold integers, [`WeightError::IntegerTooLarge`] if one is above `i64::MAX`, or [`WeightError::File`] if it cannot be
    /// read.
    fn int_tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &B::Device,
    ) -> Result<Tensor<B, D, Int>, WeightError>;
}

impl ReadTensors for Checkpoint {
    fn slice<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        ranges: [Range<usize>; D],
        dtype: DType,
        device: &B::Device,
    ) -> Result<Tensor<B, D>, WeightError> {
        let values = self.floats(name, &shape, &ranges, element_type(dtype))?;
        Ok(of_floats(values, ranges.map(|range| range.len()), dtype, device))
    }

    fn int_tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &B::Device,
    ) -> Result<Tensor<B, D, Int>, WeightError> {
        let values = self.integers(name, &shape)?;
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }
}

/// A tensor of type `dtype` with these elements.
pub(super) fn of_floats<B: Backend, const D: usize>(
    values: Floats,
    shape: [usize; D],
    dtype: DType,
    device: &B::Device,
) -> Tensor<B, D> {
    let data = match values {
        Floats::F64(values) => TensorData::new(values, shape),
        Floats::F32(values) => TensorData::new(values, shape),
        Floats::F16(values) => TensorData::new(values, shape),
        Floats::BF16(values) => TensorData::new(values, shape),
    };
    Tensor::from_data(data.convert_dtype(dtype), (device, dtype))
}

/// Adds tensors to a [`CheckpointWriter`].
pub trait WriteTensors {
    /// Adds a tensor, in its own element type.
    ///
    /// # Errors
    /// [`WeightError::ElementType`] if it does not hold floats.
    fn tensor<B: Backend, const D: usize>(&mut self, name: &str, tensor: Tensor<B, D>) -> Result<(), WeightError>;
}

impl WriteTensors for CheckpointWriter {
    fn tensor<B: Backend, const D: usize>(&mut self, name: &str, tensor: Tensor<B, D>) -> Result<(), WeightError> {
        let TensorData { bytes, shape, dtype } = tensor.into_data();
        match dtype {
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 => {
                self.insert(name, element_type(dtype), shape.to_vec(), bytes.to_vec());
                Ok(())
            }
            other => {
                let (name, found) = (name.into(), format!("{other:?}"));
                Err(WeightError::ElementType { name, found, expected: WeightError::WEIGHTS })
            }
        }
    }
}

/// Packs and unpacks tensors in a [`QkvLayout`].
pub trait PackQkv {
    /// The fused outputs of whole queries, keys and values: the inverse of [`split`](Self::split) with all heads.
    ///
    /// # Shapes
    /// - parts: `[rows, all N·H, columns]` and twice `[rows, all K·H, columns]`
    /// - output: `[rows, (all N + 2 all K)·H, columns]`; under [`QkvLayout::PerRank`] more if key/value heads are replicated
    ///
    /// # Panics
    /// As [`split`](Self::split).
    fn merge<B: Backend>(self, parts: [Tensor<B, 3>; 3], head_dim: usize) -> Tensor<B, 3>;

    /// Queries, keys and values of the heads of `shard`, from the fused outputs of the whole model.
    ///
    /// # Shapes
    /// - fused: `[rows, (all N + 2 all K)·H, columns]`; under [`QkvLayout::PerRank`] more if key/value heads are replicated
    /// - output: `[rows, N·H, columns]` and twice `[rows, K·H, columns]`
    ///
    /// # Panics
    /// If the heads do not fit the layout: [`QkvLayout::PerHead`] needs a key/value head for every query head,
    /// [`QkvLayout::PerRank`] a number of ranks that the heads can be split over.
    fn split<B: Backend>(self, fused: Tensor<B, 3>, shard: &HeadShard, head_dim: usize) -> [Tensor<B, 3>; 3];
}

impl PackQkv for QkvLayout {
    fn merge<B: Backend>(self, parts: [Tensor<B, 3>; 3], head_dim: usize) -> Tensor<B, 3> {
        let [heads, kv_heads] = [0, 1].map(|part: usize| parts[part].dims()[1] / head_dim);
        let order = fits(self, self.order(&whole(heads, kv_heads), head_dim));
        picked(Tensor::cat(parts.into(), 1), 1, &order)
    }

    fn split<B: Backend>(self, fused: Tensor<B, 3>, shard: &HeadShard, head_dim: usize) -> [Tensor<B, 3>; 3] {
        let model = whole(shard.total, shard.kv_total);
        Part::ALL.map(|part| {
            let features = fits(self, self.features(&model, part, shard, head_dim));
            picked(fused.clone(), 1, &features)
        })
    }
}

fn fits(layout: QkvLayout, features: Result<Vec<usize>, ConfigError>) -> Vec<usize> {
    features.unwrap_or_else(|error| panic!("QkvLayout::{layout:?}: {error}"))
}

/// These places of an axis, in this order.
pub(super) fn picked<B: Backend, const D: usize>(tensor: Tensor<B, D>, axis: usize, places: &[usize]) -> Tensor<B, D> {
    if let Some(&first) = places.first().filter(|&&first| places.iter().copied().eq(first..first + places.len())) {
        return tensor.narrow(axis, first, places.len()); // a view; other places are gathered
    }
    let index: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    let index = Tensor::from_data(TensorData::new(index, [places.len()]), &tensor.device());
    tensor.select(axis, index)
}
