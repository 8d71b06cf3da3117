//! Normalise, rotate, append and attend on the CPU kernels. Keys are normalised and rotated while they are copied from the projection into the cache, which
//! is then read in place.

use burn::tensor::{DType, Tensor};
use burn_deepspeed_kernels::cpu::attention::{Cached, Heads};
use burn_deepspeed_kernels::cpu::places::result;
use burn_deepspeed_kernels::cpu::scatter::{AnyFloat, HeadNorm, Places, Rotation, Scatter, scatter, scatter_int8};
use half::{bf16, f16};

use super::arguments::{Keys, SoftmaxContext, SoftmaxContextOutput};
use super::queries_and_keys::{query_factors, rotary_table};
use super::reference::reference_with;
use crate::cache::Stored;
use crate::ops::attention::cpu::{Call, owned_vector, with_stored};
use crate::ops::cpu::{FloatsMut, InMemory, tensor};
use crate::position::rotary::RotaryTable;
use crate::spec::{AttentionSpec, QkNorm};
use crate::weight::QueryKeyNorm;

/// [`Operations::softmax_context`](crate::ops::Operations::softmax_context) for backends on the CPU.
pub(crate) fn softmax_context<B: InMemory>(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
    let kernel = match arguments.problem().on_cpu() {
        Ok(kernel) if !arguments.is_empty() => kernel,
        _ => return reference_with(arguments, B::assign),
    };
    arguments.check(); // before anything is written
    let visibility = arguments.visibility();
    let SoftmaxContext { qkv, norm: weights, sums, sinks, mut keys, given, mask, spec, want_keys } = arguments;
    let [batch, tokens, width] = qkv.dims();
    let (device, dtype) = (qkv.device(), qkv.dtype());
    let table = rotary_table(&mut keys, spec, &device);
    let factors = query_factors(&mut keys, spec.query_factor, &device);
    let factors = factors.map(|factors| B::with_elements(&factors, |factors| factors.dense().into_owned()));
    let (heads, kv_heads, head_dim) = (spec.heads(), spec.kv_heads(), spec.head_dim);
    let slopes = spec.position.slopes(&spec.shard);
    let sinks = sinks.map(owned_vector);
    let longest = visibility.ends.iter().copied().max().unwrap_or(0);

    let attend = |query: Heads<'_>, key: Cached<'_>, value: Cached<'_>, capacity: usize| {
        let call = Call {
            kernel,
            query,
            query_shape: [batch, heads, tokens, head_dim],
            key,
            value,
            value_shape: [batch, kv_heads, capacity, head_dim],
            keys: longest,
            scale: spec.scale,
            softcap: spec.softcap,
            sinks: sinks.as_deref(),
            slopes: slopes.as_deref(),
            visibility: &visibility,
            mask: &mask,
        };
        tensor(call.attend(), [batch, tokens, heads * head_dim], (&device, dtype))
    };
    B::with_elements(&qkv, |qkv| {
        let qkv = qkv.dense();
        with_transform(spec, (weights, sums.as_ref()), table.as_ref(), |rotation, norms| {
            let [query_norm, key_norm, value_norm] = norms;
            let plain =
                Packed { elements: &qkv, norm: None, rotation: None, factors: None, batch, tokens, width, head_dim };
            let rotated = Packed { rotation, ..plain };
            let queries = Packed { norm: query_norm, factors: factors.as_deref(), ..rotated }.part(0, heads);
            let new_keys = Packed { norm: key_norm, ..rotated }.part(spec.query_width(), kv_heads);
            let new_values = Packed { norm: value_norm, ..plain }.part(spec.first_value(), kv_heads);
            let mut scratch = Vec::new();
            let query = queries.rotated(&mut scratch);
            match (keys, given) {
                (Keys::Cached(mut cache), _) => {
                    let slots = cache.storage().0.dims()[2];
                    if spec.kv_source.is_own() {
                        let (key, value) = cache.take_storage();
                        let (starts, counts) = (cache.rows().starts(), cache.rows().new_tokens());
                        let places = Places::Slots { slots, starts, counts };
                        cache.put_storage(new_keys.store(places, key), new_values.store(places, value));
                    }
                    let (key, value) = cache.storage();
                    let context = with_stored(key, |key| with_stored(value, |value| attend(query, key, value, slots)));
                    SoftmaxContextOutput { context, keys: want_keys.then(|| cache.visible()) }
                }
                (Keys::Fresh(_), Some(given)) => {
                    let [key, value] = given.map(Stored::Dense);
                    let context =
                        with_stored(&key, |key| with_stored(&value, |value| attend(query, key, value, tokens)));
                    SoftmaxContextOutput { context, keys: want_keys.then(|| (key.dense(tokens), value.dense(tokens))) }
                }
                (Keys::Fresh(_), None) => {
                    let [mut key_scratch, mut value_scratch] = [(); 2].map(|()| Vec::new());
                    let (key, value) = (new_keys.rotated(&mut key_scratch), new_values.rotated(&mut value_scratch));
                    let context = attend(query, key.into(), value.into(), tokens);
                    let returned = |part: &Part<'_>| {
                        let (starts, counts) = (vec![0; batch], vec![tokens; batch]);
                        let output = result(batch * kv_heads * tokens * head_dim, |output| {
                            let places = Places::Slots { slots: tokens, starts: &starts, counts: &counts };
                            part.put(places, output.whole());
                        });
                        tensor(output, [batch, kv_heads, tokens, head_dim], (&device, dtype))
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
    let layout = table.layout();
    let [.., half] = table.cos.dims();
    B::with_elements(&table.cos, |cos| {
        B::with_elements(&table.sin, |sin| read(Some(Rotation { cos: &cos.dense(), sin: &sin.dense(), half, layout })))
    })
}

/// Reads what is done to queries, keys and values: the rotation of queries and keys, and the norm of each.
pub(in crate::ops) fn with_transform<B: InMemory, R>(
    spec: &AttentionSpec,
    (weights, sums): (Option<&QueryKeyNorm<B>>, Option<&Tensor<B, 3>>),
    table: Option<&RotaryTable<B>>,
    read: impl FnOnce(Option<Rotation<'_>>, [Option<HeadNorm<'_>>; 3]) -> R,
) -> R {
    let Some(norm) = spec.qk_norm else { return with_rotation(table, |rotation| read(rotation, [None; 3])) };
    let mean_squares = sums.map(|sums| {
        let sums = B::with_elements(sums, |sums| sums.dense().into_owned());
        let mean =
            |side: usize| sums.chunks(2).map(move |token| token[side] / spec.all_features()[side] as f32).collect();
        [0, 1].map(mean) as [Vec<f32>; 2]
    });
    let mean_squares = mean_squares.as_ref().map_or([None, None], |[query, key]| [Some(&query[..]), Some(&key[..])]);
    let [of_queries, of_keys] = mean_squares;
    let of_values = norm.values.then(|| head_norm(norm, None, None));
    with_rotation(table, |rotation| match weights {
        None => {
            let [query, key] = [of_queries, of_keys].map(|mean_squares| Some(head_norm(norm, None, mean_squares)));
            read(rotation, [query, key, of_values])
        }
        Some(weights) => B::with_elements(&weights.query(), |query| {
            let query = query.dense();
            let query = head_norm(norm, Some(&query), of_queries);
            match weights.key() {
                None => read(rotation, [Some(query), None, of_values]),
                Some(key) => B::with_elements(&key, |key| {
                    let key = key.dense();
                    read(rotation, [Some(query), Some(head_norm(norm, Some(&key), of_keys)), of_values])
                }),
            }
        }),
    })
}

/// The norm of a layer as the kernel takes it.
fn head_norm<'a>(norm: QkNorm, weights: Option<&'a [f32]>, mean_squares: Option<&'a [f32]>) -> HeadNorm<'a> {
    let QkNorm { kind, epsilon, plus_one, after_rotation, .. } = norm;
    HeadNorm { kind, epsilon: epsilon as f32, weights, plus_one, after_rotation, mean_squares }
}

/// A packed projection, `[batch, tokens, width]`.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Packed<'a> {
    pub elements: &'a [f32],
    pub norm: Option<HeadNorm<'a>>,
    pub rotation: Option<Rotation<'a>>,
    pub factors: Option<&'a [f32]>,
    pub batch: usize,
    pub tokens: usize,
    pub width: usize,
    pub head_dim: usize,
}

impl<'a> Packed<'a> {
    /// `heads` heads, the first of which begins at feature `first`.
    pub fn part(self, first: usize, heads: usize) -> Part<'a> {
        Part { packed: self, first, heads }
    }
}

/// Some heads of a packed projection.
pub(in crate::ops) struct Part<'a> {
    packed: Packed<'a>,
    first: usize,
    heads: usize,
}

impl<'a> Part<'a> {
    /// The heads in place, as they are.
    fn in_place(&self) -> Heads<'a> {
        let Packed { elements, tokens, width, head_dim, .. } = self.packed;
        // Without tokens there are no elements after the first head.
        let elements = elements.get(self.first..).unwrap_or_default();
        Heads { elements, batch: tokens * width, head: head_dim, token: width }
    }

    /// The heads, normalised and rotated into `scratch`; in place if nothing changes them.
    fn rotated<'b>(&self, scratch: &'b mut Vec<f32>) -> Heads<'b>
    where
        'a: 'b,
    {
        let Packed { norm, rotation, factors, batch, tokens, head_dim, .. } = self.packed;
        if norm.is_none() && rotation.is_none() && factors.is_none() {
            return self.in_place();
        }
        let token = self.heads * head_dim;
        *scratch = result(batch * tokens * token, |output| self.put(Places::Packed, output.whole()));
        Heads { elements: scratch, batch: tokens * token, head: head_dim, token }
    }

    /// The heads, normalised and rotated, `[batch, tokens, heads, head_dim]`.
    pub fn moved(&self) -> Vec<f32> {
        let Packed { batch, tokens, head_dim, .. } = self.packed;
        result(batch * tokens * self.heads * head_dim, |output| self.put(Places::Packed, output.whole()))
    }

    /// What moves the heads to their places.
    fn scatter<'b>(&self, places: Places<'b>) -> Scatter<'b>
    where
        'a: 'b,
    {
        let Packed { elements: input, norm, rotation, factors, tokens, width, head_dim, .. } = self.packed;
        Scatter {
            input,
            width,
            first: self.first,
            heads: self.heads,
            head_dim,
            tokens,
            norm,
            rotation,
            factors,
            places,
        }
    }

    /// Moves the heads to their places.
    fn put<E: AnyFloat>(&self, places: Places<'_>, output: &mut [E]) {
        scatter(&self.scatter(places), output);
    }

    /// Moves the heads to their places in a cache.
    fn store<B: InMemory>(&self, places: Places<'_>, stored: Stored<B>) -> Stored<B> {
        match stored {
            Stored::Dense(tensor) => Stored::Dense(B::update(tensor, |output| match output {
                FloatsMut::F32(output) => self.put(places, output),
                FloatsMut::F16(output) => self.put(places, output),
                FloatsMut::BF16(output) => self.put(places, output),
            })),
            Stored::Int8 { elements, scales } => {
                let problem = self.scatter(places);
                let (elements, scales) = B::update_int8(elements, |elements| {
                    B::update(scales, |scales| scales.in_f32(|scales| scatter_int8(&problem, elements, scales)))
                });
                Stored::Int8 { elements, scales }
            }
            Stored::Bits { bits, float } => {
                let bits = B::update_int16(bits, |bits| match float {
                    DType::F16 => self.put(places, bytemuck::cast_slice_mut::<_, f16>(bits)),
                    _ => self.put(places, bytemuck::cast_slice_mut::<_, bf16>(bits)),
                });
                Stored::Bits { bits, float }
            }
        }
    }
}
