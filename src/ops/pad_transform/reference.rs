//! The definition of padding, in tensor operations.

use burn::tensor::{Tensor, backend::Backend};

use crate::error::check_shape;
use crate::zeros::zeros;

/// The size that a head of `head_dim` features is padded to: 32, 64, 128, and multiples of 64 above (DeepSpeed truncates
/// longer heads to 128).
pub fn padded_head_size(head_dim: usize) -> usize {
    match head_dim {
        0..=32 => 32,
        33..=64 => 64,
        65..=128 => 128,
        longer => longer.next_multiple_of(64),
    }
}

/// The definition of [`Operations::pad_transform`](crate::ops::Operations::pad_transform).
///
/// # Panics
/// If `size` is less than the head size.
pub fn reference<B: Backend>(heads: Tensor<B, 4>, size: usize) -> Tensor<B, 4> {
    let [batch, count, tokens, head_dim] = heads.dims();
    assert!(head_dim <= size, "pad_transform: heads of {head_dim} features are larger than the requested size {size}");
    if head_dim == size {
        return heads;
    }
    if batch * count * tokens * head_dim == 0 {
        return zeros([batch, count, tokens, size], (&heads.device(), heads.dtype()));
    }
    let zeros = Tensor::zeros([batch, count, tokens, size - head_dim], (&heads.device(), heads.dtype()));
    Tensor::cat(vec![heads, zeros], 3)
}

/// The inverse: the first `head_dim` features of every padded head.
///
/// # Shapes
/// - padded: `[B, N, T, size]`, output: `[B, N, T, head_dim]`
pub fn unpad<B: Backend>(padded: Tensor<B, 4>, head_dim: usize) -> Tensor<B, 4> {
    let [batch, count, tokens, size] = padded.dims();
    if head_dim > size {
        check_shape("unpad", "padded", &[batch, count, tokens, head_dim], &padded.dims());
    }
    padded.narrow(3, 0, head_dim)
}
