//! How operations reach CPU kernels: the elements of a tensor, where they lie.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{Tensor, backend::Backend};

pub(crate) use crate::cache::slice_assign;

/// The elements of a `[B, N, T, H]` tensor, whose last axis lies one behind the other.
pub(crate) struct Elements<'a> {
    /// From the first element on.
    pub elements: Cow<'a, [f32]>,
    /// Strides of the first three axes, in elements.
    pub strides: [usize; 3],
}

impl<'a> Elements<'a> {
    /// The elements where they lie, if the strides say that the last axis is dense and nothing runs backwards.
    pub fn borrowed(elements: &'a [f32], shape: [usize; 4], strides: &[isize]) -> Option<Self> {
        let dense = strides.last() == Some(&1) || shape[3] == 1;
        let [a, b, c, _] = *strides else { return None };
        let [Ok(a), Ok(b), Ok(c)] = [a, b, c].map(usize::try_from) else { return None };
        dense.then_some(Self { elements: Cow::Borrowed(elements), strides: [a, b, c] })
    }

    /// A dense copy.
    pub fn copied<B: Backend>(tensor: &Tensor<B, 4>) -> Self {
        let [_, heads, tokens, features] = tensor.dims();
        Self {
            elements: Cow::Owned(tensor.to_data().iter().collect()),
            strides: [heads * tokens * features, tokens * features, features],
        }
    }
}

impl Elements<'_> {
    /// The elements in the order of the axes, without a copy if that is how they lie. Strides of axes of one element count for nothing.
    pub fn dense(&self, shape: [usize; 4]) -> Cow<'_, [f32]> {
        let [batch, heads, tokens, features] = shape;
        let expected = [heads * tokens * features, tokens * features, features];
        let len = batch * heads * tokens * features;
        if (0..3).all(|axis| shape[axis] == 1 || self.strides[axis] == expected[axis]) {
            return Cow::Borrowed(&self.elements[..len]);
        }
        let mut elements = Vec::with_capacity(len);
        for row in 0..batch {
            for head in 0..heads {
                for token in 0..tokens {
                    let at = row * self.strides[0] + head * self.strides[1] + token * self.strides[2];
                    elements.extend_from_slice(&self.elements[at..at + features]);
                }
            }
        }
        Cow::Owned(elements)
    }
}

/// A backend whose tensors lie in memory.
pub(crate) trait InMemory: Backend {
    /// Reads the elements of an f32 tensor, without a copy if its last axis lies one behind the other.
    fn with_elements<R>(tensor: &Tensor<Self, 4>, read: impl FnOnce(Elements<'_>) -> R) -> R;

    /// Writes into a part of a tensor, in place if nobody else holds it.
    fn assign(tensor: Tensor<Self, 4>, at: [Range<usize>; 4], tokens: Tensor<Self, 4>) -> Tensor<Self, 4> {
        slice_assign(tensor, at, tokens)
    }
}
