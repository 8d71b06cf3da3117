//! Rotate, append and attend on CubeCL kernels: one recorded operation, two or three launches.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::cache_write::{self, CacheWrite, RotaryPairs, Rotation};
use burn_deepspeed_kernels::cube::{Machine, TensorHandle};

use super::{ContextProblem, Declined, Keys, Plan, SoftmaxContext, SoftmaxContextOutput, reference, rotary_table};
use crate::cache::{CacheTypes, Stored};
use crate::error::check_shape;
use crate::ops::attention::cube::{attend, by_token, plan_kernel};
use crate::ops::cube::{Collected, CubeCall, CubeOps, Inputs, MaskCall, handle, owned, planned, rules};
use crate::position::rotary::RotaryLayout;
use crate::position::{PositionEncoding, alibi};

/// Which kernel takes a step.
pub(crate) fn plan<B: CubeOps>(problem: &ContextProblem, device: &B::Device) -> Plan {
    if let Some(CacheTypes { key, value }) = problem.cache
        && let Some(cache) = [key, value].into_iter().find(|cache| *cache != problem.dtype)
    {
        return Plan::Reference(Declined::CacheType { dtype: problem.dtype, cache });
    }
    plan_kernel::<B>(problem.dtype, problem.tokens, problem.head_dim, problem.head_dim, device)
}

/// Splits, turns, appends, attends.
#[derive(Debug, Clone, Copy)]
struct ContextCall {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Whether keys and values go into a cache, or into tensors of their own.
    cached: bool,
    rotary: Option<RotaryPairs>,
    scale: f32,
    /// Keys of the longest row.
    keys: usize,
    masks: MaskCall,
}

/// [`InferenceBackend::softmax_context`](crate::InferenceBackend::softmax_context) on CubeCL.
pub(crate) fn softmax_context<B: CubeOps>(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
    let [batch, tokens, _] = arguments.qkv.dims();
    let device = arguments.qkv.device();
    if batch == 0 || tokens == 0 || matches!(plan::<B>(&arguments.problem(), &device), Plan::Reference(_)) {
        return reference(arguments);
    }
    let SoftmaxContext { qkv, mut keys, mask, spec, want_keys } = arguments;
    check_shape("softmax_context", "qkv", &[batch, tokens, spec.qkv_width()], &qkv.dims());
    let table = rotary_table(&mut keys, spec, [batch, tokens], &device);
    let mut cache = None;
    let alibi = spec.position == PositionEncoding::Alibi;
    let (bounds, slopes, start, end) = match keys {
        Keys::Cached(mut layer) => {
            layer.check_step("softmax_context", batch, tokens);
            let bounds = layer.bounds(&device);
            let slopes = alibi.then(|| layer.slopes(&spec.shard, &device));
            let (start, end) = (layer.rows().starts()[0], layer.rows().keys());
            cache = Some(layer);
            (bounds, slopes, start, end)
        }
        Keys::Fresh(_) => {
            let slopes = alibi.then(|| alibi::on_device(alibi::shard_slopes(&spec.shard), &device));
            (None, slopes, 0, tokens)
        }
    };
    mask.check("softmax_context", [batch, spec.heads(), tokens, end]);

    let mut inputs = Collected::new();
    inputs.float(qkv);
    if let Some(layer) = &mut cache {
        let (Stored::Dense(key), Stored::Dense(value)) = layer.take_storage() else {
            unreachable!("the plan declines int8");
        };
        inputs.float(key);
        inputs.float(value);
    }
    let rotary = table.map(|table| {
        let pairs = match table.layout() {
            RotaryLayout::Half => RotaryPairs::Half,
            RotaryLayout::Interleaved => RotaryPairs::Interleaved,
        };
        inputs.float(table.cos);
        inputs.float(table.sin);
        pairs
    });
    let rules = rules(spec.causal, spec.window, spec.softcap, start, end);
    let masks = MaskCall::collect(&mut inputs, rules, bounds, &mask, slopes);
    let call = ContextCall {
        heads: spec.heads(),
        kv_heads: spec.kv_heads(),
        head_dim: spec.head_dim,
        cached: cache.is_some(),
        rotary,
        scale: spec.scale as f32,
        keys: end,
        masks,
    };
    let mut outputs = inputs.call(&call);
    let context = outputs.next();
    let (key, value): (Tensor<B, 4>, Tensor<B, 4>) = (outputs.next(), outputs.next());
    let keys = match cache {
        Some(mut layer) => {
            layer.put_storage(Stored::Dense(key), Stored::Dense(value));
            want_keys.then(|| layer.visible())
        }
        None => want_keys.then_some((key, value)),
    };
    SoftmaxContextOutput { context, keys }
}

impl CubeCall for ContextCall {
    const NAME: &'static str = "softmax_context";

    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)> {
        let (qkv, dtype) = &inputs[0];
        let (batch, tokens) = (qkv[0], qkv[1]);
        let fresh = || (Shape::new([batch, self.kv_heads, tokens, self.head_dim]), *dtype);
        let (key, value) = if self.cached { (inputs[1].clone(), inputs[2].clone()) } else { (fresh(), fresh()) };
        vec![(Shape::new([batch, tokens, self.heads * self.head_dim]), *dtype), key, value]
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Inputs<R>) -> Vec<CubeTensor<R>> {
        let qkv = inputs.rows();
        let (batch, tokens) = (qkv.meta.shape()[0], qkv.meta.shape()[1]);
        let empty = |shape: [usize; 4]| {
            empty_device_dtype(qkv.client.clone(), qkv.device.clone(), Shape::new(shape), qkv.dtype)
        };
        let (key, value) = match self.cached {
            true => (owned(inputs.next()), owned(inputs.next())),
            false => {
                let fresh = [batch, self.kv_heads, tokens, self.head_dim];
                (empty(fresh), empty(fresh))
            }
        };
        let rotation = self.rotary.map(|pairs| Rotation {
            pairs,
            cos: angles(handle(&inputs.rows())),
            sin: angles(handle(&inputs.rows())),
        });
        let masks = self.masks.take(&mut inputs);
        let query = empty([batch, self.heads, tokens, self.head_dim]);
        let machine = Machine::new(&qkv.client);
        let written = cache_write::launch(
            &qkv.client,
            &machine,
            CacheWrite {
                qkv: &handle(&qkv),
                query: &handle(&query),
                key: &handle(&key),
                key_scales: None,
                value: &handle(&value),
                value_scales: None,
                rotation: rotation.as_ref(),
                bounds: masks.bounds.as_ref(),
                start: self.masks.rules.start,
                end: self.masks.rules.end,
            },
        );
        planned("softmax_context", written);
        let context = empty_device_dtype(
            qkv.client.clone(),
            qkv.device.clone(),
            Shape::new([batch, tokens, self.heads * self.head_dim]),
            qkv.dtype,
        );
        attend("softmax_context", &query, &key, &value, &by_token(&context, self.heads), self.scale, &masks, self.keys);
        vec![context, key, value]
    }
}

/// `[B, 1, T, half]` as `[B, T, half]`.
fn angles<R: CubeRuntime>(table: TensorHandle<R>) -> TensorHandle<R> {
    let (shape, strides) = (table.shape(), table.strides());
    let (shape, strides) = ([shape[0], shape[2], shape[3]], [strides[0], strides[2], strides[3]]);
    TensorHandle::new(table.handle.clone(), shape.to_vec(), strides.to_vec(), table.dtype)
}
