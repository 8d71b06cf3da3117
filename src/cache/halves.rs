//! Floats of 16 bits as integers, for backends that store no such floats.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use half::{bf16, f16};

/// The bits of floats that are rounded to nearest, ties to even; a tensor of type [`DType::I16`].
pub(super) fn bits<B: Backend>(floats: Tensor<B, 4>, float: DType) -> Tensor<B, 4, Int> {
    let (device, shape) = (floats.device(), floats.dims());
    let data = floats.into_data();
    let bits: Vec<i16> = data.iter::<f32>().map(|x| to_bits(x, float).cast_signed()).collect();
    Tensor::from_data(TensorData::new(bits, shape), (&device, DType::I16))
}

/// The floats of these bits, in f32.
pub(super) fn widened<B: Backend>(bits: Tensor<B, 4, Int>, float: DType) -> Tensor<B, 4> {
    let (device, shape) = (bits.device(), bits.dims());
    let data = bits.into_data();
    let floats: Vec<f32> = data.iter::<i16>().map(|bits| from_bits(bits.cast_unsigned(), float)).collect();
    Tensor::from_data(TensorData::new(floats, shape), (&device, DType::F32))
}

fn to_bits(number: f32, float: DType) -> u16 {
    match float {
        DType::F16 => f16::from_f32(number).to_bits(),
        DType::BF16 => bf16::from_f32(number).to_bits(),
        other => unreachable!("bits are of F16 or BF16, not of {other:?}"),
    }
}

fn from_bits(bits: u16, float: DType) -> f32 {
    match float {
        DType::F16 => f16::from_bits(bits).to_f32(),
        DType::BF16 => bf16::from_bits(bits).to_f32(),
        other => unreachable!("bits are of F16 or BF16, not of {other:?}"),
    }
}
