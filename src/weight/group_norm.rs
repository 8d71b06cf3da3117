//! The parameters of a norm of groups of channels.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::param::{given, lazy};
use crate::error::check_shape;

/// The parameters of a norm of groups of channels.
#[derive(Module, Debug)]
pub struct GroupNorm<B: Backend> {
    gamma: Param<Tensor<B, 1>>,
    beta: Param<Tensor<B, 1>>,
    #[module(skip)]
    groups: usize,
    #[module(skip)]
    epsilon: f64,
}

impl<B: Backend> GroupNorm<B> {
    /// A fresh norm: gamma of ones, beta of zeros.
    ///
    /// # Panics
    /// If the groups do not divide the channels.
    pub fn init(channels: usize, groups: usize, epsilon: f64, dtype: DType, device: &B::Device) -> Self {
        check_groups(channels, groups);
        Self {
            gamma: lazy([channels], dtype, device, move |device| Tensor::ones([channels], device)),
            beta: lazy([channels], dtype, device, move |device| Tensor::zeros([channels], device)),
            groups,
            epsilon,
        }
    }

    /// A norm with these values, each `[C]`.
    ///
    /// # Panics
    /// If the shapes differ, or the groups do not divide the channels.
    pub fn new(gamma: Tensor<B, 1>, beta: Tensor<B, 1>, groups: usize, epsilon: f64) -> Self {
        check_shape("GroupNorm::new", "beta", &gamma.dims(), &beta.dims());
        check_groups(gamma.dims()[0], groups);
        Self { gamma: given(gamma), beta: given(beta), groups, epsilon }
    }

    /// The factor of each channel, `[C]`.
    pub fn gamma(&self) -> Tensor<B, 1> {
        self.gamma.val()
    }

    /// The term added to each channel, `[C]`.
    pub fn beta(&self) -> Tensor<B, 1> {
        self.beta.val()
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.gamma.lazy_shape()[0]
    }

    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Added to the variance of a group before the root.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }
}

#[track_caller]
fn check_groups(channels: usize, groups: usize) {
    assert!(
        groups > 0 && channels.is_multiple_of(groups),
        "GroupNorm: {groups} groups, expected a divisor of the {channels} channels"
    );
}
