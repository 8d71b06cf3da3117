//! Rotate, append and attend on the CPU kernels: queries and keys are turned on their way out of the projection, straight into
//! the cache, which is read where it lies.

use burn::tensor::DType;
use burn_deepspeed_kernels::cpu::attention::{Cached, Heads};
use burn_deepspeed_kernels::cpu::scatter::{Pairs, Places, Rotation, Scatter, scatter, scatter_int8};

use super::{
    ContextProblem, Declined, Keys, Plan, SoftmaxContext, SoftmaxContextOutput, reference::reference_with, rotary_table,
};
use crate::cache::Stored;
use crate::error::check_shape;
use crate::ops::attention::Visibility;
use crate::ops::attention::cpu::{Call, kernel, with_stored};
use crate::ops::cpu::{InMemory, tensor};
use crate::position::PositionEncoding;
use crate::position::alibi::shard_slopes;
use crate::position::rotary::{RotaryLayout, RotaryTable};

/// Which kernel takes a step.
pub(crate) fn plan(problem: &ContextProblem) -> Plan {
    if problem.dtype != DType::F32 {
        return Plan::Reference(Declined::ElementType(problem.dtype));
    }
    match problem.cache_declined() {
        Some(declined) => Plan::Reference(declined),
        None => Plan::Kernel(kernel(problem.tokens).0),
    }
}

/// [`InferenceBackend::softmax_context`](crate::InferenceBackend::softmax_context) for backends on the CPU.
pub(crate) fn softmax_context<B: InMemory>(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
    if let Plan::Reference(_) = plan(&arguments.problem()) {
        return reference_with(arguments, B::assign);
    }
    let SoftmaxContext { qkv, mut keys, mask, spec, want_keys } = arguments;
    let [batch, tokens, width] = qkv.dims();
    check_shape("softmax_context", "qkv", &[batch, tokens, spec.qkv_width()], &[batch, tokens, width]);
    let device = qkv.device();
    let table = rotary_table(&mut keys, spec, [batch, tokens], &device);
    let (heads, kv_heads, head_dim) = (spec.heads(), spec.kv_heads(), spec.head_dim);
    let slopes = (spec.position == PositionEncoding::Alibi).then(|| shard_slopes(&spec.shard));
    let (starts, ends) = match &keys {
        Keys::Cached(cache) => {
            cache.check_step("softmax_context", batch, tokens);
            (cache.rows().starts().to_vec(), cache.rows().ends())
        }
        Keys::Fresh(_) => (vec![0], vec![tokens]),
    };
    let visibility = Visibility { causal: spec.causal, window: spec.window, starts, ends };
    let longest = visibility.ends.iter().copied().max().unwrap_or(0);
    mask.check("softmax_context", [batch, heads, tokens, longest]); // before anything is written

    let attend = |query: Heads<'_>, key: Cached<'_>, value: Cached<'_>, capacity: usize| {
        let call = Call {
            query,
            query_shape: [batch, heads, tokens, head_dim],
            key,
            value,
            value_shape: [batch, kv_heads, capacity, head_dim],
            keys: longest,
            scale: spec.scale,
            softcap: spec.softcap,
            slopes: slopes.as_deref(),
            visibility: &visibility,
            mask: &mask,
        };
        tensor(call.attend(), [batch, tokens, heads * head_dim], &device)
    };
    B::with_elements(&qkv, |qkv| {
        let qkv = qkv.dense();
        with_rotation(table.as_ref(), |rotation| {
            let turned = Packed { elements: &qkv, rotation, batch, tokens, width, head_dim };
            let straight = Packed { rotation: None, ..turned };
            let queries = turned.part(0, heads);
            let new_keys = turned.part(spec.query_width(), kv_heads);
            let new_values = straight.part(spec.query_width() + spec.kv_width(), kv_heads);
            let mut room = Vec::new();
            let query = queries.turned(&mut room);
            match keys {
                Keys::Cached(mut cache) => {
                    let (key, value) = cache.take_storage();
                    let slots = key.dims()[2];
                    let (starts, counts) = (cache.rows().starts(), cache.rows().new_tokens());
                    let places = Places::Slots { slots, starts, counts };
                    cache.put_storage(new_keys.store(places, key), new_values.store(places, value));
                    let (key, value) = cache.storage();
                    let context = with_stored(key, |key| with_stored(value, |value| attend(query, key, value, slots)));
                    SoftmaxContextOutput { context, keys: want_keys.then(|| cache.visible()) }
                }
                Keys::Fresh(_) => {
                    let mut room = Vec::new();
                    let key = new_keys.turned(&mut room);
                    let context = attend(query, key.into(), new_values.in_place().into(), tokens);
                    let returned = |part: &Part<'_>| {
                        let (starts, counts) = (vec![0; batch], vec![tokens; batch]);
                        let mut output = vec![0.0; batch * kv_heads * tokens * head_dim];
                        part.put(Places::Slots { slots: tokens, starts: &starts, counts: &counts }, &mut output);
                        tensor(output, [batch, kv_heads, tokens, head_dim], &device)
                    };
                    let keys = want_keys.then(|| (returned(&new_keys), returned(&new_values)));
                    SoftmaxContextOutput { context, keys }
                }
            }
        })
    })
}

/// Reads a rotary table.
fn with_rotation<B: InMemory, R>(table: Option<&RotaryTable<B>>, read: impl FnOnce(Option<Rotation<'_>>) -> R) -> R {
    let Some(table) = table else { return read(None) };
    let pairs = match table.layout() {
        RotaryLayout::Half => Pairs::Half,
        RotaryLayout::Interleaved => Pairs::Interleaved,
    };
    let [.., half] = table.cos.dims();
    B::with_elements(&table.cos, |cos| {
        B::with_elements(&table.sin, |sin| read(Some(Rotation { cos: &cos.dense(), sin: &sin.dense(), half, pairs })))
    })
}

/// A packed projection, `[batch, tokens, width]`.
#[derive(Clone, Copy)]
struct Packed<'a> {
    elements: &'a [f32],
    rotation: Option<Rotation<'a>>,
    batch: usize,
    tokens: usize,
    width: usize,
    head_dim: usize,
}

impl<'a> Packed<'a> {
    /// The heads from a feature on.
    fn part(self, first: usize, heads: usize) -> Part<'a> {
        Part { packed: self, first, heads }
    }
}

/// Some heads of a packed projection.
struct Part<'a> {
    packed: Packed<'a>,
    first: usize,
    heads: usize,
}

impl<'a> Part<'a> {
    /// The heads where they lie, as they are.
    fn in_place(&self) -> Heads<'a> {
        let Packed { elements, tokens, width, head_dim, .. } = self.packed;
        // Behind the last head of no tokens there is nothing.
        let elements = elements.get(self.first..).unwrap_or_default();
        Heads { elements, batch: tokens * width, head: head_dim, token: width }
    }

    /// The heads turned, in `room`; where they lie if they do not turn.
    fn turned<'b>(&self, room: &'b mut Vec<f32>) -> Heads<'b>
    where
        'a: 'b,
    {
        let Packed { rotation, batch, tokens, head_dim, .. } = self.packed;
        if rotation.is_none() {
            return self.in_place();
        }
        let token = self.heads * head_dim;
        room.resize(batch * tokens * token, 0.0);
        self.put(Places::Beside, room);
        Heads { elements: room, batch: tokens * token, head: head_dim, token }
    }

    /// What copies the heads to their places, turned.
    fn scatter<'b>(&self, places: Places<'b>) -> Scatter<'b>
    where
        'a: 'b,
    {
        let Packed { elements: input, rotation, tokens, width, head_dim, .. } = self.packed;
        Scatter { input, width, first: self.first, heads: self.heads, head_dim, tokens, rotation, places }
    }

    /// Copies the heads to their places, turned.
    fn put(&self, places: Places<'_>, output: &mut [f32]) {
        scatter(&self.scatter(places), output);
    }

    /// Copies the heads to their places in a cache, turned.
    fn store<B: InMemory>(&self, places: Places<'_>, stored: Stored<B>) -> Stored<B> {
        match stored {
            Stored::Dense(tensor) => Stored::Dense(B::update(tensor, |output| self.put(places, output))),
            Stored::Int8 { elements, scales } => {
                let problem = self.scatter(places);
                let (elements, scales) = B::update_int8(elements, |elements| {
                    B::update(scales, |scales| scatter_int8(&problem, elements, scales))
                });
                Stored::Int8 { elements, scales }
            }
        }
    }
}
