//! Latent attention on CubeCL kernels. A few new tokens attend to the cached rows in place.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_core::element::ElementType;
use burn_deepspeed_core::path::LatentProblem;
use burn_deepspeed_kernels::cube::TensorHandle;

use super::absorbed::Absorbed;
use super::arguments::LatentContext;
use super::parts::Parts;
use super::reference::{Steps, expanded};
use crate::cache::slice_assign;
use crate::ops::attention::cube::{Launch, Side, SideHandles, masked_attention, plan};
use crate::ops::cube::{CubeCall, CubeDevice, Masks, TensorKind, TensorLike, float, from_float, masks, rows, rules};
use crate::ops::qkv_gemm;
use crate::ops::softmax_context::cube::side;
use crate::ops::softmax_context::{CubeKernel, Keys, Plan};

/// The path of a step.
pub(crate) fn plan_latent_context<B: CubeDevice>(problem: &LatentProblem, device: &B::Device) -> Plan {
    match absorbed::<B>(problem, device) {
        Some(kernel) => Plan::Kernel(kernel.name()),
        None => plan::<B>(&problem.expanded(), device).into(),
    }
}

/// The kernel for cached rows, if it takes the step. Matrix units would round the products of absorption to TF32, and the library of
/// Burn's products has no exact one for batches.
fn absorbed<B: CubeDevice>(problem: &LatentProblem, device: &B::Device) -> Option<CubeKernel> {
    let problem = problem.absorbed()?;
    let exact = problem.dtype != ElementType::F32 || !B::has_tf32(device);
    plan::<B>(&problem, device).ok().filter(|_| exact)
}

/// [`Operations::latent_context`](crate::ops::Operations::latent_context) on CubeCL.
pub(crate) fn latent_context<B: CubeDevice>(arguments: LatentContext<'_, B>) -> Tensor<B, 3> {
    match absorbed::<B>(&arguments.problem(), &arguments.query.device()) {
        Some(kernel) if !arguments.is_empty() => attend(arguments, kernel),
        _ => {
            let project = |input, weight: &_| qkv_gemm::cube::project("latent_context", input, weight, true);
            expanded(arguments, Steps { assign: slice_assign, project, attend: masked_attention })
        }
    }
}

fn attend<B: CubeDevice>(mut arguments: LatentContext<'_, B>, kernel: CubeKernel) -> Tensor<B, 3> {
    arguments.check(); // before anything is written
    let (sizes, device) = (arguments.sizes(), arguments.query.device());
    let Parts { plain, rotated, rows } = Parts::new(&mut arguments);
    let LatentContext { up, keys, mask, spec, .. } = arguments;
    let Keys::Cached(mut cache) = keys else { unreachable!("without a cache, steps are expanded") };
    let absorbed = Absorbed::new(up, sizes);
    let query = absorbed.query(plain, rotated);
    cache.append_latents(rows, slice_assign);
    let bounds = cache.bounds(&device);
    let (start, end) = (cache.rows().starts()[0], cache.rows().keys());
    let rules = rules(spec.causal, spec.window, spec.softcap, start, end);
    let cached = side(cache.storage().0.clone());
    let ([batch, heads, tokens, _], rank) = (query.dims(), sizes.kv_lora_rank);
    let latents: Tensor<B, 3> = from_float(B::run::<LatentCall<()>>(LatentCall {
        kernel,
        query: float(query),
        cached,
        value_dim: rank,
        scale: spec.scale as f32,
        keys: end,
        masks: masks(rules, bounds, &mask, None),
    }));
    absorbed.context(latents.reshape([batch, tokens, heads, rank]).swap_dims(1, 2))
}

/// The arguments of attention over cached rows, with `T` for each tensor.
#[derive(Debug, Clone)]
struct LatentCall<T> {
    kernel: CubeKernel,
    query: T,
    cached: Side<T>,
    /// The first features of a row that are the value.
    value_dim: usize,
    scale: f32,
    keys: usize,
    masks: Masks<T>,
}

impl CubeCall for LatentCall<()> {
    const NAME: &'static str = "latent_context";

    type Arguments<T: TensorLike> = LatentCall<T>;
    type Output<T: TensorLike> = T;

    fn walk<T: TensorLike, U: TensorLike>(call: LatentCall<T>, visit: &mut impl FnMut(T) -> U) -> LatentCall<U> {
        LatentCall {
            kernel: call.kernel,
            query: visit(call.query),
            cached: call.cached.map(visit),
            value_dim: call.value_dim,
            scale: call.scale,
            keys: call.keys,
            masks: call.masks.map(visit),
        }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(output: T, visit: &mut impl FnMut(T) -> U) -> U {
        visit(output)
    }

    fn announce(call: LatentCall<TensorKind>) -> TensorKind {
        let (query, dtype): (Shape, DType) = call.query;
        (Shape::new([query[0], query[2], query[1] * call.value_dim]), dtype)
    }

    fn launch<R: CubeRuntime>(call: LatentCall<CubeTensor<R>>) -> CubeTensor<R> {
        let query = rows(call.query);
        let key = SideHandles::from(&call.cached.map(&mut rows));
        let value = SideHandles { elements: first(&key.elements, call.value_dim), scales: key.scales.clone() };
        let launch = Launch {
            operation: Self::NAME,
            kernel: call.kernel,
            query: &query,
            key: &key,
            value: &value,
            scale: call.scale,
            sinks: None,
            masks: &call.masks.arguments(),
            keys: call.keys,
        };
        launch.attend()
    }
}

/// The first `features` of each head, in the same memory.
fn first<R: CubeRuntime>(heads: &TensorHandle<R>, features: usize) -> TensorHandle<R> {
    let mut shape = heads.shape().to_vec();
    shape[3] = features;
    TensorHandle::new(heads.handle.clone(), shape, heads.strides().to_vec(), heads.dtype)
}
