//! Masks and biases as part of a call's arguments.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bool, Int, IntDType, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_core::visibility::Window;
use burn_deepspeed_kernels::cube::{HiddenKeys, MaskArguments, Rules};

use super::call::CubeDevice;
use super::tensors::{float, handle, int, optional_handle, rows};
use crate::mask::AttentionMask;

/// The mask of a call, with `T` for each tensor.
#[derive(Debug, Clone)]
pub(crate) struct Masks<T> {
    pub rules: Rules,
    /// `[B, 2]`: first new slot and end of each row; absent if all rows are equal.
    pub bounds: Option<T>,
    hidden_keys: Option<Hidden<T>>,
    hidden_pairs: Option<T>,
    bias: Option<T>,
    slopes: Option<T>,
    /// `[B]`: slot of the first token of each row, if chunks count from it.
    origins: Option<T>,
}

/// Hidden keys, and the position of each key if ALiBi needs it.
#[derive(Debug, Clone)]
struct Hidden<T> {
    keys: T,
    positions: Option<T>,
}

impl<T> Masks<T> {
    /// Replaces every tensor.
    pub fn map<U>(self, visit: &mut impl FnMut(T) -> U) -> Masks<U> {
        Masks {
            rules: self.rules,
            bounds: self.bounds.map(&mut *visit),
            hidden_keys: self
                .hidden_keys
                .map(|Hidden { keys, positions }| Hidden { keys: visit(keys), positions: positions.map(&mut *visit) }),
            hidden_pairs: self.hidden_pairs.map(&mut *visit),
            bias: self.bias.map(&mut *visit),
            slopes: self.slopes.map(&mut *visit),
            origins: self.origins.map(&mut *visit),
        }
    }
}

impl<R: CubeRuntime> Masks<CubeTensor<R>> {
    /// The mask as the kernels take it.
    pub fn arguments(self) -> MaskArguments<R> {
        let mut masks = MaskArguments::new(self.rules);
        masks.bounds = self.bounds.map(|bounds| handle(&rows(bounds)));
        masks.hidden_keys = self.hidden_keys.map(|Hidden { keys, positions }| HiddenKeys {
            hidden: handle(&keys),
            positions: optional_handle(positions.as_ref()),
        });
        masks.hidden_pairs = optional_handle(self.hidden_pairs.as_ref());
        masks.bias = optional_handle(self.bias.as_ref());
        masks.slopes = optional_handle(self.slopes.as_ref());
        masks.origins = self.origins.map(|origins| handle(&rows(origins)));
        masks
    }
}

/// The mask of a backend's tensors.
///
/// # Shapes
/// - bounds: `[B, 2]`, slopes: `[N]`
pub(crate) fn masks<B: CubeDevice>(
    rules: Rules,
    bounds: Option<Tensor<B, 2, Int>>,
    mask: &AttentionMask<B>,
    slopes: Option<Tensor<B, 1>>,
) -> Masks<FloatTensor<B>> {
    let hidden_keys = mask.hidden_keys().map(|hidden| Hidden {
        keys: B::from_bool(hidden.clone().into_primitive()),
        // A key's position is the number of kept keys up to it. ALiBi uses differences of positions only.
        positions: slopes.is_some().then(|| int(hidden.clone().bool_not().int().cumsum(1).cast(IntDType::I32))),
    });
    let chunked = matches!(rules.window, Some(Window::Chunk(_)));
    let origins = mask.hidden_keys().filter(|_| chunked).map(|hidden| int(first_tokens(hidden.clone())));
    Masks {
        rules,
        bounds: bounds.map(int),
        hidden_keys,
        hidden_pairs: mask.hidden_pairs().map(|pairs| B::from_bool(pairs.clone().into_primitive())),
        bias: mask.bias().map(float),
        slopes: slopes.map(float),
        origins,
    }
}

/// The number of hidden keys at the start of each row, which is the slot of its first token: `[B, S]` to `[B]` of i32.
fn first_tokens<B: CubeDevice>(hidden: Tensor<B, 2, Bool>) -> Tensor<B, 1, Int> {
    let [batch, _] = hidden.dims();
    let before = hidden.bool_not().int().cumsum(1).equal_elem(0).int();
    before.sum_dim(1).reshape([batch]).cast(IntDType::I32)
}

/// The rules of a mask in the integers of the kernels.
pub(crate) fn rules(causal: bool, window: Option<Window>, softcap: Option<f64>, start: usize, end: usize) -> Rules {
    Rules { causal, window, softcap: softcap.map(|cap| cap as f32), start: start as u32, end: end as u32 }
}
