//! Attention on the CPU kernels.

use burn::tensor::{DType, FloatDType, Tensor, backend::Backend};
use burn_deepspeed_kernels::cpu::attention::{Attention as Problem, Cached, Heads};
use burn_deepspeed_kernels::cpu::decode::decode;
use burn_deepspeed_kernels::cpu::flash::flash_into;
use burn_deepspeed_kernels::cpu::masks::{Broadcast, Masks};
use burn_deepspeed_kernels::cpu::places::result;
use half::{bf16, f16};

use super::arguments::Attention;
use super::reference::reference;
use super::visibility::Visibility;
use crate::cache::Stored;
use crate::mask::AttentionMask;
use crate::ops::cpu::{InMemory, tensor, with_cached, with_heads};
use burn_deepspeed_core::path::CpuKernel;
use burn_deepspeed_core::visibility::origins as origins_of;

/// One attention on the CPU: queries, keys, values, masks, and the kernel that was chosen.
pub(crate) struct Call<'a, B: Backend> {
    pub kernel: CpuKernel,
    /// `[batch, heads, tokens, head_dim]`.
    pub query: Heads<'a>,
    pub query_shape: [usize; 4],
    /// `[batch, kv_heads, capacity, head_dim]`.
    pub key: Cached<'a>,
    /// `[batch, kv_heads, capacity, value_dim]`.
    pub value: Cached<'a>,
    pub value_shape: [usize; 4],
    /// Keys of the longest row.
    pub keys: usize,
    pub scale: f64,
    pub softcap: Option<f64>,
    pub sinks: Option<&'a [f32]>,
    pub slopes: Option<&'a [f32]>,
    pub visibility: &'a Visibility,
    /// Of shapes that the caller has checked against the sizes.
    pub mask: &'a AttentionMask<B>,
}

/// [`Operations::masked_attention`](crate::ops::Operations::masked_attention) for backends on the CPU.
pub(crate) fn masked_attention<B: InMemory>(arguments: Attention<B>) -> Tensor<B, 4> {
    let kernel = match arguments.problem().on_cpu() {
        Ok(kernel) if !arguments.is_empty() => kernel,
        _ => return reference(arguments),
    };
    arguments.check();
    let [batch, heads, tokens, _] = arguments.query.dims();
    let [_, _, keys, value_dim] = arguments.value.dims();
    let Attention { query, key, value, scale, softcap, sinks, slopes, visibility, mask } = arguments;
    let sinks = sinks.map(owned_vector);
    let (device, dtype, query_shape, value_shape) = (query.device(), query.dtype(), query.dims(), value.dims());
    let (visibility, mask, sinks, slopes) = (&visibility, &mask, sinks.as_deref(), slopes.as_deref());
    let context = with_heads(&query, |query| {
        with_cached(&key, |key| {
            with_cached(&value, |value| {
                let call = Call {
                    kernel,
                    query,
                    query_shape,
                    key,
                    value,
                    value_shape,
                    keys,
                    scale,
                    softcap,
                    sinks,
                    slopes,
                    visibility,
                    mask,
                };
                call.attend()
            })
        })
    });
    tensor(context, [batch, tokens, heads, value_dim], (&device, dtype)).swap_dims(1, 2)
}

/// The elements of a short vector.
pub(crate) fn owned_vector<B: InMemory>(vector: Tensor<B, 1>) -> Vec<f32> {
    vector.into_data().iter().collect()
}

/// Reads the keys, or the values, of a cache in place.
pub(crate) fn with_stored<B: InMemory, R>(stored: &Stored<B>, read: impl FnOnce(Cached<'_>) -> R) -> R {
    match stored {
        Stored::Dense(tensor) => with_cached(tensor, read),
        Stored::Int8 { elements, scales } => B::with_int8(elements, |dense| {
            let [_, heads, slots, features] = elements.dims();
            let elements = Heads::dense(dense, heads, slots, features);
            B::with_elements(scales, |scales| read(Cached::Int8 { elements, scales: &scales.dense() }))
        }),
        Stored::Bits { bits, float } => B::with_int16(bits, |dense| {
            let [_, heads, slots, features] = bits.dims();
            match float {
                DType::F16 => read(Heads::dense(bytemuck::cast_slice::<_, f16>(dense), heads, slots, features).into()),
                _ => read(Heads::dense(bytemuck::cast_slice::<_, bf16>(dense), heads, slots, features).into()),
            }
        }),
    }
}

impl<B: InMemory> Call<'_, B> {
    /// Attends; returns `[batch, tokens, heads, value_dim]`. Elements and not a tensor, since `burn-ndarray` copies to reshape.
    pub fn attend(&self) -> Vec<f32> {
        let ([batch, heads, tokens, head_dim], [_, kv_heads, capacity, value_dim]) =
            (self.query_shape, self.value_shape);
        let owned = self.owned_masks();
        let problem = Problem {
            batch,
            heads,
            kv_heads,
            tokens,
            capacity,
            head_dim,
            value_dim,
            query: self.query,
            key: self.key,
            value: self.value,
            scale: self.scale as f32,
            sinks: self.sinks,
            masks: self.masks(&owned),
        };
        result(batch * tokens * heads * value_dim, |output| match self.kernel {
            CpuKernel::Decode => decode(&problem, output.whole()),
            CpuKernel::Flash => flash_into(&problem, output),
        })
    }

    /// The masks on the host.
    fn owned_masks(&self) -> OwnedMasks {
        let batch = self.query_shape[0];
        let by_row = |list: &[usize]| (0..batch).map(|row| list[row % list.len()]).collect();
        let hidden: Option<Vec<bool>> = self.mask.hidden_keys().map(|hidden| hidden.to_data().iter().collect());
        let origins = hidden.as_ref().filter(|_| self.visibility.reads_origins());
        let bias = self.mask.bias().map(|bias| (bias.dims(), bias.cast(FloatDType::F32).to_data()));
        OwnedMasks {
            starts: by_row(&self.visibility.starts),
            ends: by_row(&self.visibility.ends),
            origins: origins.map(|hidden| origins_of(hidden, self.keys)),
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
            origins: owned.origins.as_deref(),
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
    origins: Option<Vec<usize>>,
    hidden: Option<Vec<bool>>,
    positions: Option<Vec<i32>>,
    pairs: Option<([usize; 4], Vec<bool>)>,
    bias: Option<([usize; 4], Vec<f32>)>,
}

/// The position of every slot: the number of kept keys before it.
fn kept_before(hidden: &[bool], keys: usize) -> Vec<i32> {
    let mut positions = Vec::with_capacity(hidden.len());
    for row in hidden.chunks(keys.max(1)) {
        let mut position = -1;
        positions.extend(row.iter().map(|hidden| {
            position += i32::from(!hidden);
            position
        }));
    }
    positions
}
