//! Norm of groups of channels, <https://arxiv.org/abs/1803.08494>; DeepSpeed has none of its own.

use burn::tensor::{FloatDType, Tensor, backend::Backend};

use crate::error::check_shape;
use crate::weight::GroupNorm;

/// The definition of [`Operations::group_norm`](crate::ops::Operations::group_norm).
pub fn reference<B: Backend>(image: Tensor<B, 3>, norm: &GroupNorm<B>) -> Tensor<B, 3> {
    let ([batch, channels, pixels], dtype) = (image.dims(), image.dtype());
    check_shape("group_norm", "image", &[batch, norm.channels(), pixels], &image.dims());
    if image.shape().num_elements() == 0 {
        return image;
    }
    let groups = norm.groups();
    let of_groups = image.cast(FloatDType::F32).reshape([batch, groups, channels / groups * pixels]);
    let centred = of_groups.clone() - of_groups.mean_dim(2);
    let variance = (centred.clone() * centred.clone()).mean_dim(2);
    let unit = (centred / (variance + norm.epsilon()).sqrt()).reshape([batch, channels, pixels]);
    let of_channels = |values: Tensor<B, 1>| values.cast(FloatDType::F32).reshape([1, channels, 1]);
    (unit * of_channels(norm.gamma()) + of_channels(norm.beta())).cast(dtype)
}
