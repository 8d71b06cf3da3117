//! Attention on CubeCL kernels.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::{Attention as Problem, Machine, MaskArguments, TensorHandle, decode, prefill};

use super::{Attention, Visibility, reference};
use crate::cache::bounds_on_device;
use crate::ops::cube::{Collected, CubeCall, CubeOps, Inputs, MaskCall, handle, is_float, planned, rules};
use crate::ops::softmax_context::{Declined, Plan};
use crate::position::alibi;

/// New tokens up to which the keys are split over the device instead of the queries.
const MOST_DECODE_TOKENS: usize = 8;

/// Which kernel takes a problem.
pub(crate) fn plan_kernel<B: CubeOps>(
    dtype: DType,
    tokens: usize,
    head_dim: usize,
    value_dim: usize,
    device: &B::Device,
) -> Plan {
    let limit = decode::LARGEST_HEAD;
    if !is_float(dtype) {
        Plan::Reference(Declined::ElementType(dtype))
    } else if head_dim > limit {
        Plan::Reference(Declined::HeadDim { head_dim, limit })
    } else if head_dim != value_dim {
        Plan::Reference(Declined::ValueDim { head_dim, value_dim })
    } else if tokens <= MOST_DECODE_TOKENS {
        Plan::Kernel("cube::decode")
    } else if B::tensor_cores(device, dtype, head_dim).is_ok() {
        Plan::Kernel("cube::prefill::mma")
    } else {
        Plan::Kernel("cube::prefill::simt")
    }
}

/// Keys or values as a kernel takes them.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a, R: CubeRuntime> {
    pub elements: &'a TensorHandle<R>,
    /// If they are int8.
    pub scales: Option<&'a TensorHandle<R>>,
}

/// Attends on the kernel that the number of queries asks for.
#[allow(clippy::too_many_arguments, reason = "the parts of one attention problem")]
pub(crate) fn attend<R: CubeRuntime>(
    operation: &str,
    query: &CubeTensor<R>,
    key: Side<'_, R>,
    value: Side<'_, R>,
    context: &TensorHandle<R>,
    scale: f32,
    masks: &MaskArguments<R>,
    keys: usize,
) {
    let machine = Machine::new(&query.client);
    let problem = Problem {
        query: &handle(query),
        key: key.elements,
        key_scales: key.scales,
        value: value.elements,
        value_scales: value.scales,
        context,
        scale,
        masks,
        keys,
    };
    if query.meta.shape()[2] <= MOST_DECODE_TOKENS {
        planned(operation, decode::launch(&query.client, &machine, problem, None));
        return;
    }
    let head_dim = query.meta.shape()[3];
    let launched = match prefill::mma::Engine::tensor_cores(&query.client, &machine, query.dtype.into(), head_dim) {
        Ok(engine) => prefill::mma::launch(&query.client, &machine, problem, engine),
        Err(_) => prefill::simt::launch(&query.client, &machine, problem),
    };
    planned(operation, launched);
}

/// `[B, T, N·H]` as `[B, N, T, H]`.
pub(crate) fn by_token<R: CubeRuntime>(packed: &CubeTensor<R>, heads: usize) -> TensorHandle<R> {
    let (shape, strides) = (packed.meta.shape(), packed.meta.strides());
    let head_dim = shape[2] / heads;
    let (shape, strides) = ([shape[0], heads, shape[1], head_dim], [strides[0], head_dim, strides[1], 1]);
    TensorHandle::new(packed.handle.clone(), shape.to_vec(), strides.to_vec(), packed.dtype)
}

#[derive(Debug, Clone, Copy)]
struct AttentionCall {
    scale: f32,
    keys: usize,
    masks: MaskCall,
}

/// [`InferenceBackend::masked_attention`](crate::InferenceBackend::masked_attention) on CubeCL.
pub(crate) fn masked_attention<B: CubeOps>(arguments: Attention<B>) -> Tensor<B, 4> {
    let [batch, _, tokens, head_dim] = arguments.query.dims();
    let [_, _, keys, value_dim] = arguments.value.dims();
    let (dtype, device) = (arguments.query.dtype(), arguments.query.device());
    let same = dtype == arguments.key.dtype() && dtype == arguments.value.dtype();
    let plan = plan_kernel::<B>(dtype, tokens, head_dim, value_dim, &device);
    if batch * tokens * keys == 0 || !same || matches!(plan, Plan::Reference(_)) {
        return reference(arguments);
    }
    arguments.check();
    let Attention { query, key, value, scale, softcap, slopes, visibility, mask } = arguments;
    let Visibility { causal, window, starts, ends } = &visibility;
    let rules = rules(*causal, *window, softcap, starts[0], ends[0]);
    let bounds = (starts.len() > 1).then(|| bounds_on_device(starts, ends, &device));
    let slopes = slopes.map(|slopes| alibi::on_device(slopes, &device));
    let mut inputs = Collected::new();
    inputs.float(query);
    inputs.float(key);
    inputs.float(value);
    let masks = MaskCall::collect(&mut inputs, rules, bounds, &mask, slopes);
    inputs.call(&AttentionCall { scale: scale as f32, keys, masks }).next()
}

impl CubeCall for AttentionCall {
    const NAME: &'static str = "masked_attention";

    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)> {
        vec![inputs[0].clone()]
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Inputs<R>) -> Vec<CubeTensor<R>> {
        let [query, key, value] = std::array::from_fn(|_| inputs.rows());
        let masks = self.masks.take(&mut inputs);
        let [batch, heads, tokens, head_dim] = std::array::from_fn(|axis| query.meta.shape()[axis]);
        // Heads beside each other in every token, as the output projection reads them.
        let packed = Shape::new([batch, tokens, heads * head_dim]);
        let packed = empty_device_dtype(query.client.clone(), query.device.clone(), packed, query.dtype);
        let context = by_token(&packed, heads);
        let side = |elements| Side { elements, scales: None };
        let (key, value) = (&handle(&key), &handle(&value));
        attend("masked_attention", &query, side(key), side(value), &context, self.scale, &masks, self.keys);
        vec![CubeTensor::new(query.client.clone(), packed.handle, *context.metadata, query.device.clone(), query.dtype)]
    }
}
