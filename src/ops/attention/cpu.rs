//! Attention on the CPU kernels.

use burn::tensor::{DType, FloatDType, Tensor, TensorData, backend::Backend};
use burn_deepspeed_kernels::cpu::decode::{Decode, DecodeShape, decode};
use burn_deepspeed_kernels::cpu::flash::{Flash, Heads, flash};
use burn_deepspeed_kernels::cpu::masks::{Broadcast, Masks};

use super::{Attention, Visibility, reference};
use crate::error::check_shape;
use crate::mask::AttentionMask;
use crate::ops::cpu::{Elements, InMemory};
use crate::ops::softmax_context::{ContextProblem, Declined, Plan, merge_heads};

/// Which kernel takes attention without a cache.
pub(crate) fn plan(problem: &ContextProblem) -> Plan {
    match problem.dtype {
        DType::F32 => Plan::Kernel("cpu::flash"),
        dtype => Plan::Reference(Declined::ElementType(dtype)),
    }
}

/// [`Attention`], with keys and values that may have more slots than keys.
pub(crate) struct Problem<'a, B: Backend> {
    pub query: &'a Tensor<B, 4>,
    pub key: &'a Tensor<B, 4>,
    pub value: &'a Tensor<B, 4>,
    /// Keys of the longest row.
    pub keys: usize,
    pub scale: f64,
    pub softcap: Option<f64>,
    pub slopes: Option<&'a [f32]>,
    pub visibility: &'a Visibility,
    pub mask: &'a AttentionMask<B>,
}

/// [`InferenceBackend::masked_attention`](crate::InferenceBackend::masked_attention) for backends on the CPU.
pub(crate) fn masked_attention<B: InMemory>(arguments: Attention<B>) -> Tensor<B, 4> {
    let [_, heads, _, _] = arguments.query.dims();
    let [_, _, keys, value_dim] = arguments.value.dims();
    let dtypes = [arguments.query.dtype(), arguments.key.dtype(), arguments.value.dtype()];
    if keys == 0 || dtypes != [DType::F32; 3] {
        return reference(arguments);
    }
    arguments.check();
    let Attention { query, key, value, scale, softcap, slopes, visibility, mask } = arguments;
    let problem = Problem {
        query: &query,
        key: &key,
        value: &value,
        keys,
        scale,
        softcap,
        slopes: slopes.as_deref(),
        visibility: &visibility,
        mask: &mask,
    };
    let context = problem.flash();
    let [batch, tokens, _] = context.dims();
    context.reshape([batch, tokens, heads, value_dim]).swap_dims(1, 2)
}

impl<B: InMemory> Problem<'_, B> {
    /// Attends on [`flash`]; returns `[B, T, N·Hv]`.
    pub fn flash(&self) -> Tensor<B, 3> {
        let [batch, heads, tokens, head_dim] = self.query.dims();
        let [_, kv_heads, capacity, value_dim] = self.value.dims();
        let (owned, scale) = (self.owned_masks(), self.scale as f32);
        let masks = self.masks(&owned);
        let mut output = vec![0.0; batch * tokens * heads * value_dim];
        self.with_elements(|query, key, value| {
            let [query, key, value] = [query, key, value].map(strided);
            let sizes = Flash {
                batch,
                heads,
                kv_heads,
                tokens,
                capacity,
                head_dim,
                value_dim,
                query,
                key,
                value,
                scale,
                masks,
            };
            flash(&sizes, &mut output);
        });
        Tensor::from_data(
            TensorData::new(output, [batch, tokens, heads * value_dim]),
            (&self.query.device(), DType::F32),
        )
    }

    /// Attends on [`decode`]; returns `[B, T, N·H]`.
    pub fn decode(&self) -> Tensor<B, 3> {
        let [batch, heads, tokens, head_dim] = self.query.dims();
        let [_, kv_heads, capacity, _] = self.value.dims();
        let (owned, scale) = (self.owned_masks(), self.scale as f32);
        let masks = self.masks(&owned);
        let shape = DecodeShape { batch, heads, kv_heads, tokens, capacity, head_dim };
        let mut output = vec![0.0; batch * heads * tokens * head_dim];
        self.with_elements(|query, key, value| {
            let [query, key, value] = [query, key, value].map(Elements::dense);
            decode(&Decode { shape, query: &query, key: &key, value: &value, scale, masks }, &mut output);
        });
        merge_heads(Tensor::from_data(
            TensorData::new(output, [batch, heads, tokens, head_dim]),
            (&self.query.device(), DType::F32),
        ))
    }

    fn with_elements(&self, read: impl FnOnce(&Elements<'_, 4>, &Elements<'_, 4>, &Elements<'_, 4>)) {
        B::with_elements(self.query, |query| {
            B::with_elements(self.key, |key| {
                B::with_elements(self.value, |value| read(&query.in_rows(), &key.in_rows(), &value.in_rows()));
            });
        });
    }

    /// The masks on the host.
    fn owned_masks(&self) -> OwnedMasks {
        let [batch, heads, tokens, _] = self.query.dims();
        self.mask.check("attention", [batch, heads, tokens, self.keys]);
        if let Some(slopes) = self.slopes {
            check_shape("attention", "slopes", &[heads], &[slopes.len()]);
        }
        let by_row = |list: &[usize]| (0..batch).map(|row| list[row % list.len()]).collect();
        let hidden: Option<Vec<bool>> = self.mask.hidden_keys().map(|hidden| hidden.to_data().iter().collect());
        let bias = self.mask.bias().map(|bias| (bias.dims(), bias.cast(FloatDType::F32).to_data()));
        OwnedMasks {
            starts: by_row(&self.visibility.starts),
            ends: by_row(&self.visibility.ends),
            positions: hidden.as_ref().filter(|_| self.slopes.is_some()).map(|hidden| kept_before(hidden, self.keys)),
            hidden,
            pairs: self.mask.hidden_pairs().map(|pairs| (pairs.dims(), pairs.to_data().iter().collect())),
            bias: bias.map(|(shape, data)| (shape, data.iter().collect())),
        }
    }

    fn masks<'a>(&'a self, owned: &'a OwnedMasks) -> Masks<'a> {
        Masks {
            causal: self.visibility.causal,
            window: self.visibility.window,
            softcap: self.softcap.map(|cap| cap as f32),
            starts: &owned.starts,
            ends: &owned.ends,
            hidden: owned.hidden.as_deref(),
            slopes: self.slopes,
            positions: owned.positions.as_deref(),
            pairs: owned.pairs.as_ref().map(|(shape, elements)| Broadcast { elements, shape: *shape }),
            bias: owned.bias.as_ref().map(|(shape, elements)| Broadcast { elements, shape: *shape }),
        }
    }
}

/// What [`Masks`] borrows.
struct OwnedMasks {
    starts: Vec<usize>,
    ends: Vec<usize>,
    hidden: Option<Vec<bool>>,
    positions: Option<Vec<i32>>,
    pairs: Option<([usize; 4], Vec<bool>)>,
    bias: Option<([usize; 4], Vec<f32>)>,
}

fn strided<'a>(tensor: &'a Elements<'_, 4>) -> Heads<'a> {
    let [batch, head, token, _] = tensor.strides;
    Heads { elements: &tensor.elements, batch, head, token }
}

/// The position of every slot: the kept keys before it.
fn kept_before(hidden: &[bool], keys: usize) -> Vec<i32> {
    let mut positions = Vec::with_capacity(hidden.len());
    for row in hidden.chunks(keys) {
        let mut position = -1;
        positions.extend(row.iter().map(|hidden| {
            position += i32::from(!hidden);
            position
        }));
    }
    positions
}
