//! Normalise, rotate, append and attend on CubeCL kernels: one recorded operation, two or three launches, and one more for a norm
//! of all heads.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::cache_write::{self, CacheWrite, Squares, Sums};
use burn_deepspeed_kernels::cube::{Machine, TensorHandle};

use super::arguments::{Keys, SoftmaxContext, SoftmaxContextOutput};
use super::queries_and_keys::{query_factors, rotary_table};
use super::reference::reference;
use crate::cache::Stored;
use crate::config::KvSource;
use crate::ops::attention::cube::{Launch, Side, SideHandles, f32_vector, plan};
use crate::ops::cube::{
    CubeCall, CubeDevice, Masks, TensorKind, TensorLike, empty, float, from_float, from_int, handle, int,
    kernel_accepts, masks, optional_handle, owned, rows, rules,
};
use crate::position::alibi;
use crate::position::rotary::{RotaryLayout, RotaryTable};
use crate::spec::{AttentionSpec, QkNorm, QkNormKind};
use crate::weight::QueryKeyNorm;
use burn_deepspeed_core::path::CubeKernel;

/// The arguments of a step of attention, with `T` for each tensor.
#[derive(Debug, Clone)]
struct ContextCall<T> {
    kernel: CubeKernel,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    source: KvSource,
    qkv: T,
    /// Keys and values of the cache, or those that are given; `None` where they go into new tensors.
    cached: Option<[Side<T>; 2]>,
    norm: Option<HeadNorm<T>>,
    rotation: Option<Rotation<T>>,
    /// Factors of the queries, `[B, T]`.
    factors: Option<T>,
    scale: f32,
    /// `[N]`.
    sinks: Option<T>,
    /// Keys of the longest row.
    keys: usize,
    masks: Masks<T>,
}

/// Cosine and sine of the new tokens, `[B, 1, T, half]`.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Rotation<T> {
    layout: RotaryLayout,
    cos: T,
    sin: T,
}

impl<T> Rotation<T> {
    /// Replaces every tensor.
    pub fn map<U>(self, visit: &mut impl FnMut(T) -> U) -> Rotation<U> {
        Rotation { layout: self.layout, cos: visit(self.cos), sin: visit(self.sin) }
    }
}

impl<R: CubeRuntime> Rotation<CubeTensor<R>> {
    /// As the kernel takes it.
    pub fn handles(self) -> cache_write::Rotation<R> {
        cache_write::Rotation {
            layout: self.layout,
            cos: angles(handle(&rows(self.cos))),
            sin: angles(handle(&rows(self.sin))),
        }
    }
}

/// The norm of queries and keys.
#[derive(Debug, Clone)]
pub(in crate::ops) struct HeadNorm<T> {
    norm: QkNorm,
    /// Features of all queries and of all keys, on every rank.
    features: [usize; 2],
    /// Those of queries and of keys; twice those of queries without keys.
    weights: Option<[T; 2]>,
    /// Sums of squares of all ranks, `[B, T, 2]`; without them a norm of all heads adds its own.
    sums: Option<T>,
}

impl<T> HeadNorm<T> {
    /// Replaces every tensor.
    pub fn map<U>(self, visit: &mut impl FnMut(T) -> U) -> HeadNorm<U> {
        HeadNorm {
            norm: self.norm,
            features: self.features,
            weights: self.weights.map(|weights| weights.map(&mut *visit)),
            sums: self.sums.map(visit),
        }
    }
}

/// The results of a step of attention, with `T` for each tensor.
struct ContextOutput<T> {
    /// `[B, T, N·H]`.
    context: T,
    /// Keys and values, the new ones included.
    sides: [Side<T>; 2],
}

/// [`Operations::softmax_context`](crate::ops::Operations::softmax_context) on CubeCL.
pub(crate) fn softmax_context<B: CubeDevice>(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
    let device = arguments.qkv.device();
    let kernel = match plan::<B>(&arguments.problem(), &device) {
        Ok(kernel) if !arguments.is_empty() => kernel,
        _ => return reference(arguments),
    };
    arguments.check(); // before anything is written
    let SoftmaxContext { qkv, norm: weights, sums, sinks, mut keys, given, mask, spec, want_keys } = arguments;
    let ([_, tokens, _], dtype) = (qkv.dims(), qkv.dtype());
    let rotation = rotary_table(&mut keys, spec, &device).map(rotation::<B>);
    let factors = query_factors(&mut keys, spec.query_factor, &device).map(float);
    let norm = spec.qk_norm.map(|norm| norm_of_heads(norm, spec, weights, sums));
    let slopes = spec.position.slopes(&spec.shard);
    let (mut cache, bounds, slopes, start, end) = match keys {
        Keys::Cached(mut layer) => {
            let bounds = layer.bounds(&device);
            let slopes = slopes.map(|slopes| layer.slopes(slopes, &device));
            let (start, end) = (layer.rows().starts()[0], layer.rows().keys());
            (Some(layer), bounds, slopes, start, end)
        }
        Keys::Fresh(_) => {
            let slopes = slopes.map(|slopes| alibi::on_device(slopes, &device));
            (None, None, slopes, 0, tokens)
        }
    };
    let rules = rules(spec.causal, spec.window, spec.softcap, start, end);
    let masks = masks(rules, bounds, &mask, slopes);
    let cached = cache.as_mut().map(|layer| {
        let (key, value) = layer.take_storage();
        [key, value]
    });
    let cached = cached.or(given.map(|sides| sides.map(Stored::Dense))).map(|sides| sides.map(side));
    let ContextOutput { context, sides } = B::run::<ContextCall<()>>(ContextCall {
        kernel,
        heads: spec.heads(),
        kv_heads: spec.kv_heads(),
        head_dim: spec.head_dim,
        source: spec.kv_source,
        qkv: float(qkv),
        cached,
        norm,
        rotation,
        factors,
        scale: spec.scale as f32,
        sinks: sinks.map(f32_vector),
        keys: end,
        masks,
    });
    let [key, value] = sides.map(stored::<B>);
    let visible = match cache {
        Some(mut layer) => {
            layer.put_storage(key, value);
            want_keys.then(|| layer.visible())
        }
        None => want_keys.then(|| (key.dense(tokens), value.dense(tokens))),
    };
    let keys = visible.map(|(key, value)| (key.cast(dtype), value.cast(dtype)));
    SoftmaxContextOutput { context: from_float(context), keys }
}

/// Cosine and sine for the arguments of a call.
pub(in crate::ops) fn rotation<B: CubeDevice>(table: RotaryTable<B>) -> Rotation<FloatTensor<B>> {
    Rotation { layout: table.layout(), cos: float(table.cos), sin: float(table.sin) }
}

/// The norm of a layer for the arguments of a call.
pub(in crate::ops) fn norm_of_heads<B: CubeDevice>(
    norm: QkNorm,
    spec: &AttentionSpec,
    weights: Option<&QueryKeyNorm<B>>,
    sums: Option<Tensor<B, 3>>,
) -> HeadNorm<FloatTensor<B>> {
    HeadNorm {
        norm,
        features: spec.all_features(),
        weights: weights.map(|weights| {
            let query = weights.query();
            [float(query.clone()), float(weights.key().unwrap_or(query))]
        }),
        sums: sums.map(float),
    }
}

/// Keys, or values, of a cache for the arguments of a call.
pub(crate) fn side<B: CubeDevice>(stored: Stored<B>) -> Side<FloatTensor<B>> {
    match stored {
        Stored::Dense(tensor) => Side::Dense(float(tensor)),
        Stored::Int8 { elements, scales } => Side::Int8 { elements: int(elements), scales: float(scales) },
        Stored::Bits { float, .. } => unreachable!("on CubeCL a cache of {float:?} has floats of that type"),
    }
}

/// Keys, or values, from the results of a call.
fn stored<B: CubeDevice>(side: Side<FloatTensor<B>>) -> Stored<B> {
    match side {
        Side::Dense(tensor) => Stored::Dense(from_float(tensor)),
        Side::Int8 { elements, scales } => Stored::Int8 { elements: from_int(elements), scales: from_float(scales) },
    }
}

impl CubeCall for ContextCall<()> {
    const NAME: &'static str = "softmax_context";

    type Arguments<T: TensorLike> = ContextCall<T>;
    type Output<T: TensorLike> = ContextOutput<T>;

    fn walk<T: TensorLike, U: TensorLike>(call: ContextCall<T>, visit: &mut impl FnMut(T) -> U) -> ContextCall<U> {
        ContextCall {
            kernel: call.kernel,
            heads: call.heads,
            kv_heads: call.kv_heads,
            head_dim: call.head_dim,
            source: call.source,
            qkv: visit(call.qkv),
            cached: call.cached.map(|sides| sides.map(|side| side.map(visit))),
            norm: call.norm.map(|norm| norm.map(visit)),
            rotation: call.rotation.map(|rotation| rotation.map(visit)),
            factors: call.factors.map(&mut *visit),
            scale: call.scale,
            sinks: call.sinks.map(&mut *visit),
            keys: call.keys,
            masks: call.masks.map(visit),
        }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(
        output: ContextOutput<T>,
        visit: &mut impl FnMut(T) -> U,
    ) -> ContextOutput<U> {
        ContextOutput { context: visit(output.context), sides: output.sides.map(|side| side.map(visit)) }
    }

    fn announce(call: ContextCall<TensorKind>) -> ContextOutput<TensorKind> {
        let (qkv, dtype) = call.qkv;
        let context = Shape::new([qkv[0], qkv[1], call.heads * call.head_dim]);
        let new = Side::Dense((Shape::new([qkv[0], call.kv_heads, qkv[1], call.head_dim]), dtype));
        ContextOutput { context: (context, dtype), sides: call.cached.unwrap_or_else(|| [new.clone(), new]) }
    }

    fn launch<R: CubeRuntime>(call: ContextCall<CubeTensor<R>>) -> ContextOutput<CubeTensor<R>> {
        let qkv = rows(call.qkv);
        let (batch, tokens) = (qkv.meta.shape()[0], qkv.meta.shape()[1]);
        let sides = match call.cached {
            // What is only read need not be the only reference.
            Some(sides) if !call.source.is_own() => sides.map(|side| side.map(&mut rows)),
            Some(sides) => sides.map(|side| side.map(&mut owned)),
            None => [(); 2].map(|()| Side::Dense(empty(&qkv, [batch, call.kv_heads, tokens, call.head_dim]))),
        };
        let [key, value] = sides.each_ref().map(SideHandles::from);
        let rotation = call.rotation.map(Rotation::handles);
        let norm =
            call.norm.map(|norm| head_norm(norm, &qkv, [call.heads, call.kv_heads].map(|heads| heads * call.head_dim)));
        let factors = optional_handle(call.factors.as_ref());
        let sinks = optional_handle(call.sinks.as_ref());
        let rules = call.masks.rules;
        let masks = call.masks.arguments();
        let query = empty(&qkv, [batch, call.heads, tokens, call.head_dim]);
        let write = CacheWrite {
            qkv: &handle(&qkv),
            source: call.source,
            query: &handle(&query),
            key: key.tensor(),
            value: value.tensor(),
            norm: norm.as_ref(),
            rotation: rotation.as_ref(),
            factors: factors.as_ref(),
            bounds: masks.bounds.as_ref(),
            start: rules.start,
            end: rules.end,
        };
        kernel_accepts(Self::NAME, cache_write::launch(&qkv.client, &Machine::new(&qkv.client), write));
        let launch = Launch {
            operation: Self::NAME,
            kernel: call.kernel,
            query: &query,
            key: &key,
            value: &value,
            scale: call.scale,
            sinks: sinks.as_ref(),
            masks: &masks,
            keys: call.keys,
        };
        let context = launch.attend();
        ContextOutput { context, sides }
    }
}

/// The norm as the kernel takes it. A norm of all heads without sums adds those of `qkv` first, in a launch of its own: `own` counts the
/// features of the queries and keys there.
pub(in crate::ops) fn head_norm<R: CubeRuntime>(
    arguments: HeadNorm<CubeTensor<R>>,
    qkv: &CubeTensor<R>,
    own: [usize; 2],
) -> cache_write::HeadNorm<R> {
    let HeadNorm { norm: QkNorm { kind, epsilon, plus_one, after_rotation, values, .. }, features, weights, sums } =
        arguments;
    let sums = match (kind, sums) {
        (QkNormKind::RmsOfAllHeads, None) => {
            let shape = Shape::new([qkv.meta.shape()[0], qkv.meta.shape()[1], 2]);
            let sums = empty_device_dtype(qkv.client.clone(), qkv.device.clone(), shape, DType::F32);
            let squares = Squares { qkv: &handle(qkv), features: own, sums: &handle(&sums) };
            let launched = cache_write::launch_squares(&qkv.client, &Machine::new(&qkv.client), squares);
            kernel_accepts("softmax_context", launched);
            Some(sums)
        }
        (_, sums) => sums,
    };
    cache_write::HeadNorm {
        kind,
        epsilon: epsilon as f32,
        plus_one,
        after_rotation,
        values,
        weights: weights.map(|weights| weights.map(|weights| handle(&rows(weights)))),
        sums: sums.map(|sums| Sums { sums: handle(&sums), features }),
    }
}

/// `[B, 1, T, half]` as `[B, T, half]`.
fn angles<R: CubeRuntime>(table: TensorHandle<R>) -> TensorHandle<R> {
    let (shape, strides) = (table.shape(), table.strides());
    let (shape, strides) = ([shape[0], shape[2], shape[3]], [strides[0], strides[2], strides[3]]);
    TensorHandle::new(table.handle.clone(), shape.to_vec(), strides.to_vec(), table.dtype)
}
