//! Rotate, append and attend on CubeCL kernels: one recorded operation, two or three launches.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::cache_write::{self, CacheWrite, RotaryPairs, Rotation};
use burn_deepspeed_kernels::cube::{Machine, TensorHandle};

use super::{ContextProblem, Keys, Plan, SoftmaxContext, SoftmaxContextOutput, reference, rotary_table};
use crate::cache::Stored;
use crate::error::check_shape;
use crate::ops::attention::cube::{Side, attend, by_token, plan_kernel};
use crate::ops::cube::{Collected, CubeCall, CubeOps, Inputs, MaskCall, Outputs, handle, owned, planned, rules};
use crate::position::rotary::RotaryLayout;
use crate::position::{PositionEncoding, alibi};

/// Which kernel takes a step.
pub(crate) fn plan<B: CubeOps>(problem: &ContextProblem, device: &B::Device) -> Plan {
    match problem.cache_declined() {
        Some(declined) => Plan::Reference(declined),
        None => plan_kernel::<B>(problem.dtype, problem.tokens, problem.head_dim, problem.head_dim, device),
    }
}

/// How keys, or values, lie in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One tensor.
    Dense,
    /// Elements and scales.
    Int8,
}

impl Layout {
    fn of<B: CubeOps>(stored: &Stored<B>) -> Self {
        match stored {
            Stored::Dense(_) => Self::Dense,
            Stored::Int8 { .. } => Self::Int8,
        }
    }

    fn tensors(self) -> usize {
        match self {
            Self::Dense => 1,
            Self::Int8 => 2,
        }
    }

    /// What came out of a call, as it is kept.
    fn stored<B: CubeOps>(self, outputs: &mut Outputs<B>) -> Stored<B> {
        match self {
            Self::Dense => Stored::Dense(outputs.next()),
            Self::Int8 => Stored::Int8 { elements: outputs.next_int(), scales: outputs.next() },
        }
    }
}

fn collect<B: CubeOps>(inputs: &mut Collected<B>, stored: Stored<B>) {
    match stored {
        Stored::Dense(tensor) => inputs.float(tensor),
        Stored::Int8 { elements, scales } => {
            inputs.int(elements);
            inputs.float(scales);
        }
    }
}

/// Splits, turns, appends, attends.
#[derive(Debug, Clone, Copy)]
struct ContextCall {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// How keys and values lie in the cache; `None` where they go into tensors of their own.
    cached: Option<[Layout; 2]>,
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

    let dtype = qkv.dtype();
    let mut inputs = Collected::new();
    inputs.float(qkv);
    let cached = cache.as_mut().map(|layer| {
        let (key, value) = layer.take_storage();
        let layouts = [Layout::of(&key), Layout::of(&value)];
        collect(&mut inputs, key);
        collect(&mut inputs, value);
        layouts
    });
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
        cached,
        rotary,
        scale: spec.scale as f32,
        keys: end,
        masks,
    };
    let mut outputs = inputs.call(&call);
    let context = outputs.next();
    let keys = match (cache, cached) {
        (Some(mut layer), Some([key, value])) => {
            let (key, value) = (key.stored(&mut outputs), value.stored(&mut outputs));
            layer.put_storage(key, value);
            want_keys.then(|| layer.visible()).map(|(key, value)| (key.cast(dtype), value.cast(dtype)))
        }
        _ => {
            let fresh: (Tensor<B, 4>, Tensor<B, 4>) = (outputs.next(), outputs.next());
            want_keys.then_some(fresh)
        }
    };
    SoftmaxContextOutput { context, keys }
}

impl CubeCall for ContextCall {
    const NAME: &'static str = "softmax_context";

    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)> {
        let (qkv, dtype) = &inputs[0];
        let (batch, tokens) = (qkv[0], qkv[1]);
        let mut outputs = vec![(Shape::new([batch, tokens, self.heads * self.head_dim]), *dtype)];
        match self.cached {
            Some(sides) => {
                let tensors = sides.into_iter().map(Layout::tensors).sum::<usize>();
                outputs.extend_from_slice(&inputs[1..1 + tensors]);
            }
            None => {
                let fresh = (Shape::new([batch, self.kv_heads, tokens, self.head_dim]), *dtype);
                outputs.extend([fresh.clone(), fresh]);
            }
        }
        outputs
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Inputs<R>) -> Vec<CubeTensor<R>> {
        let qkv = inputs.rows();
        let (batch, tokens) = (qkv.meta.shape()[0], qkv.meta.shape()[1]);
        let empty = |shape: [usize; 4]| {
            empty_device_dtype(qkv.client.clone(), qkv.device.clone(), Shape::new(shape), qkv.dtype)
        };
        let fresh = [batch, self.kv_heads, tokens, self.head_dim];
        let mut side = |at: usize| match self.cached.map(|sides| sides[at]) {
            Some(Layout::Dense) => (owned(inputs.next()), None),
            Some(Layout::Int8) => (owned(inputs.next()), Some(owned(inputs.next()))),
            None => (empty(fresh), None),
        };
        let ((key, key_scales), (value, value_scales)) = (side(0), side(1));
        let rotation = self.rotary.map(|pairs| Rotation {
            pairs,
            cos: angles(handle(&inputs.rows())),
            sin: angles(handle(&inputs.rows())),
        });
        let masks = self.masks.take(&mut inputs);
        let query = empty([batch, self.heads, tokens, self.head_dim]);
        let machine = Machine::new(&qkv.client);
        let [key_elements, value_elements] = [&key, &value].map(handle);
        let scales = [&key_scales, &value_scales].map(|scales| scales.as_ref().map(handle));
        let keys = Side { elements: &key_elements, scales: scales[0].as_ref() };
        let values = Side { elements: &value_elements, scales: scales[1].as_ref() };
        let written = cache_write::launch(
            &qkv.client,
            &machine,
            CacheWrite {
                qkv: &handle(&qkv),
                query: &handle(&query),
                key: keys.elements,
                key_scales: keys.scales,
                value: values.elements,
                value_scales: values.scales,
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
        let place = by_token(&context, self.heads);
        attend("softmax_context", &query, keys, values, &place, self.scale, &masks, self.keys);
        [Some(context), Some(key), key_scales, Some(value), value_scales].into_iter().flatten().collect()
    }
}

/// `[B, 1, T, half]` as `[B, T, half]`.
fn angles<R: CubeRuntime>(table: TensorHandle<R>) -> TensorHandle<R> {
    let (shape, strides) = (table.shape(), table.strides());
    let (shape, strides) = ([shape[0], shape[2], shape[3]], [strides[0], strides[2], strides[3]]);
    TensorHandle::new(table.handle.clone(), shape.to_vec(), strides.to_vec(), table.dtype)
}
