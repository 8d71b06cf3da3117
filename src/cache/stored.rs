//! The keys, or the values, of a layer: floats, their bits, or int8 with a scale for each head of each token.

use std::ops::Range;

use burn::tensor::{DType, FloatDType, Int, IntDType, Tensor, backend::Backend};

use burn_deepspeed_core::int8::LARGEST;

use super::halves;
use crate::pages::{int_zeros_on_demand, zeros_on_demand};

/// The preallocated keys, or values, of a layer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Stored<B: Backend> {
    /// Floats, `[B, K, capacity, H]`.
    Dense(Tensor<B, 4>),
    /// Integers from -127 to 127, times a scale for each head of each token.
    ///
    /// A scale is the largest magnitude of its head over 127, after norm and rotation. Elements are rounded to nearest, ties to
    /// even, so none is off by more than half a scale. A head with an infinity or NaN has a scale of NaN.
    Int8 {
        /// `[B, K, capacity, H]`, of type [`DType::I8`].
        elements: Tensor<B, 4, Int>,
        /// `[B, K, capacity]`, of type [`DType::F32`].
        scales: Tensor<B, 3>,
    },
    /// Floats of 16 bits on a backend that has no such floats, next to activations in f32.
    Bits {
        /// The bits of each float, `[B, K, capacity, H]`, of type [`DType::I16`].
        bits: Tensor<B, 4, Int>,
        /// The type of the floats: [`DType::F16`] or [`DType::BF16`].
        float: DType,
    },
}

impl<B: Backend> Stored<B> {
    pub(super) fn zeros(shape: [usize; 4], dtype: DType, device: &B::Device) -> Self {
        let [batch, heads, slots, _] = shape;
        match dtype {
            DType::I8 => Self::Int8 {
                elements: int_zeros_on_demand(shape, (device, DType::I8)),
                scales: zeros_on_demand([batch, heads, slots], (device, DType::F32)),
            },
            float @ (DType::F16 | DType::BF16) if !B::supports_dtype(device, float) => {
                Self::Bits { bits: int_zeros_on_demand(shape, (device, DType::I16)), float }
            }
            dtype => Self::Dense(zeros_on_demand(shape, (device, dtype))),
        }
    }

    /// Bytes of one head of one token.
    pub(super) fn token_bytes(features: usize, dtype: DType) -> usize {
        let scale = if dtype == DType::I8 { size_of::<f32>() } else { 0 };
        features * dtype.size() + scale
    }

    /// `[B, K, capacity, H]`.
    pub fn dims(&self) -> [usize; 4] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            Self::Int8 { elements, .. } => elements.dims(),
            Self::Bits { bits, .. } => bits.dims(),
        }
    }

    /// The first `slots` of every row as floats, `[B, K, slots, H]`; int8 and bits become f32.
    pub fn dense(&self, slots: usize) -> Tensor<B, 4> {
        let capacity = self.dims()[2];
        match self {
            Self::Dense(tensor) if slots == capacity => tensor.clone(),
            Self::Dense(tensor) => tensor.clone().narrow(2, 0, slots),
            Self::Int8 { elements, scales } => {
                let elements = elements.clone().narrow(2, 0, slots).float().cast(FloatDType::F32);
                elements * scales.clone().narrow(2, 0, slots).unsqueeze_dim(3)
            }
            Self::Bits { bits, float } => halves::widened(bits.clone().narrow(2, 0, slots), *float),
        }
    }

    /// The given rows.
    pub(super) fn select(self, rows: Tensor<B, 1, Int>) -> Self {
        match self {
            Self::Dense(tensor) => Self::Dense(tensor.select(0, rows)),
            Self::Int8 { elements, scales } => {
                Self::Int8 { elements: elements.select(0, rows.clone()), scales: scales.select(0, rows) }
            }
            Self::Bits { bits, float } => Self::Bits { bits: bits.select(0, rows), float },
        }
    }

    /// Copies the first `slots` of row `other_row` of `other`, which must have the same element type, into row `row`.
    pub(super) fn copy_row(self, row: usize, other: &Self, other_row: usize, slots: usize) -> Self {
        let [_, heads, _, features] = self.dims();
        let at = |row: usize| [row..row + 1, 0..heads, 0..slots, 0..features];
        let scale_at = |row: usize| [row..row + 1, 0..heads, 0..slots];
        match (self, other) {
            (Self::Dense(tensor), Self::Dense(other)) => {
                Self::Dense(slice_assign(tensor, at(row), other.clone().slice(at(other_row))))
            }
            (Self::Int8 { elements, scales }, Self::Int8 { elements: others, scales: other_scales }) => Self::Int8 {
                elements: elements.slice_assign(at(row), others.clone().slice(at(other_row))),
                scales: scales.slice_assign(scale_at(row), other_scales.clone().slice(scale_at(other_row))),
            },
            (Self::Bits { bits, float }, Self::Bits { bits: others, float: other }) if float == *other => {
                Self::Bits { bits: bits.slice_assign(at(row), others.clone().slice(at(other_row))), float }
            }
            _ => panic!("Stored::copy_row: the two caches have different element types"),
        }
    }

    /// Writes tokens into a part, in place if there is no other reference to the tensor.
    pub(super) fn write(self, at: [Range<usize>; 4], tokens: Tensor<B, 4>, assign: Assign<B>) -> Self {
        match self {
            Self::Dense(tensor) => {
                let dtype = tensor.dtype();
                Self::Dense(assign(tensor, at, tokens.cast(dtype)))
            }
            Self::Int8 { elements, scales } => {
                let (new_elements, new_scales) = quantize(tokens);
                let [rows, heads, slots, _] = at.clone();
                Self::Int8 {
                    elements: elements.slice_assign(at, new_elements),
                    scales: scales.slice_assign([rows, heads, slots], new_scales),
                }
            }
            Self::Bits { bits, float } => {
                Self::Bits { bits: bits.slice_assign(at, halves::bits(tokens, float)), float }
            }
        }
    }
}

/// Rounds tokens, `[B, K, T, H]`, to int8, and returns their scales, `[B, K, T]`, as well.
fn quantize<B: Backend>(tokens: Tensor<B, 4>) -> (Tensor<B, 4, Int>, Tensor<B, 3>) {
    let [batch, heads, slots, features] = tokens.dims();
    // The reshape makes them contiguous: `burn-ndarray` 0.21 returns the absolute values of a transposed tensor in another
    // order.
    let rows = tokens.reshape([batch * heads * slots, features]).cast(FloatDType::F32);
    let magnitudes = rows.clone().abs();
    let broken = magnitudes.clone().lower_equal_elem(f32::MAX).bool_not().any_dim(1);
    let scales = magnitudes.max_dim(1) / LARGEST;
    let divisors = scales.clone().mask_fill(broken.clone().bool_or(scales.clone().equal_elem(0.0)), f32::INFINITY);
    // The clamp is needed because the smallest scales are subnormal and have too few digits.
    let elements = (rows / divisors).round().clamp(-LARGEST, LARGEST);
    let elements = elements.mask_fill(broken.clone().expand([batch * heads * slots, features]), 0.0);
    let elements = elements.int().cast(IntDType::I8).reshape([batch, heads, slots, features]);
    (elements, scales.mask_fill(broken, f32::NAN).reshape([batch, heads, slots]))
}

/// A function that writes tokens into a part of a tensor: `(tensor, part, tokens) -> tensor`.
pub(crate) type Assign<B> = fn(Tensor<B, 4>, [Range<usize>; 4], Tensor<B, 4>) -> Tensor<B, 4>;

/// Burn's own assignment. It is in place if there is no other reference to the tensor, except in `burn-flex` 0.21, which copies.
pub(crate) fn slice_assign<B: Backend>(
    tensor: Tensor<B, 4>,
    at: [Range<usize>; 4],
    tokens: Tensor<B, 4>,
) -> Tensor<B, 4> {
    tensor.slice_assign(at, tokens)
}
