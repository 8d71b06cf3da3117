//! Attention on CubeCL kernels.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::{
    Attention as Problem, CacheTensor, Machine, MaskArguments, TensorHandle, decode, prefill,
};

use super::arguments::Attention;
use super::reference::reference;
use super::visibility::Visibility;
use crate::cache::bounds_on_device;
use crate::element::kernel_float;
use crate::ops::cube::{
    CubeCall, CubeDevice, Masks, TensorKind, TensorLike, empty, float, from_float, handle, kernel_accepts, masks,
    optional_handle, rows, rules,
};
use crate::ops::pad_transform;
use crate::position::alibi;
use burn_deepspeed_core::path::{ContextProblem, CubeKernel, Declined};

/// The kernel for an attention problem, or why there is none.
pub(crate) fn plan<B: CubeDevice>(problem: &ContextProblem, device: &B::Device) -> Result<CubeKernel, Declined> {
    problem.on_cube(|| {
        kernel_float(problem.dtype).is_some_and(|dtype| B::has_tensor_cores(device, dtype, problem.head_dim))
    })
}

/// Keys, or values, with `T` for each tensor.
#[derive(Debug, Clone)]
pub(crate) enum Side<T> {
    /// Floats, `[B, K, capacity, H]`.
    Dense(T),
    /// int8, `[B, K, capacity, H]`, and their scales, `[B, K, capacity]`.
    Int8 { elements: T, scales: T },
}

impl<T> Side<T> {
    /// Replaces every tensor.
    pub fn map<U>(self, visit: &mut impl FnMut(T) -> U) -> Side<U> {
        match self {
            Self::Dense(tensor) => Side::Dense(visit(tensor)),
            Self::Int8 { elements, scales } => Side::Int8 { elements: visit(elements), scales: visit(scales) },
        }
    }

    /// The elements alone.
    pub fn into_elements(self) -> T {
        match self {
            Self::Dense(elements) | Self::Int8 { elements, .. } => elements,
        }
    }
}

/// The buffers of keys, or values, as the kernels take them.
pub(crate) struct SideHandles<R: CubeRuntime> {
    pub elements: TensorHandle<R>,
    /// Present if the elements are int8.
    pub scales: Option<TensorHandle<R>>,
}

impl<R: CubeRuntime> SideHandles<R> {
    /// The argument of a kernel.
    pub fn tensor(&self) -> CacheTensor<'_, R> {
        CacheTensor { elements: &self.elements, scales: self.scales.as_ref() }
    }
}

impl<R: CubeRuntime> From<&Side<CubeTensor<R>>> for SideHandles<R> {
    fn from(side: &Side<CubeTensor<R>>) -> Self {
        let (elements, scales) = match side {
            Side::Dense(elements) => (elements, None),
            Side::Int8 { elements, scales } => (elements, Some(scales)),
        };
        Self { elements: handle(elements), scales: optional_handle(scales) }
    }
}

/// Queries, keys and values on a device, and the kernel that was chosen for them.
pub(crate) struct Launch<'a, R: CubeRuntime> {
    pub operation: &'static str,
    pub kernel: CubeKernel,
    pub query: &'a CubeTensor<R>,
    pub key: &'a SideHandles<R>,
    pub value: &'a SideHandles<R>,
    pub scale: f32,
    pub sinks: Option<&'a TensorHandle<R>>,
    pub masks: &'a MaskArguments<R>,
    /// Keys of the longest row.
    pub keys: usize,
}

impl<R: CubeRuntime> Launch<'_, R> {
    /// Attends; returns `[B, T, N·Hv]`, with the heads of a token contiguous, as the output projection reads them.
    pub fn attend(self) -> CubeTensor<R> {
        let [batch, heads, tokens, _] = std::array::from_fn(|axis| self.query.meta.shape()[axis]);
        let value_dim = self.value.elements.shape()[3];
        let context = empty(self.query, [batch, tokens, heads * value_dim]);
        let client = &self.query.client;
        let machine = Machine::new(client);
        let problem = Problem {
            query: &handle(self.query),
            key: self.key.tensor(),
            value: self.value.tensor(),
            context: &by_head(&context, heads),
            scale: self.scale,
            sinks: self.sinks,
            masks: self.masks,
            keys: self.keys,
        };
        let launched = match self.kernel {
            CubeKernel::Decode => decode::launch(client, &machine, problem, None).map(drop),
            CubeKernel::PrefillSimt => prefill::simt::launch(client, &machine, problem),
            CubeKernel::PrefillMma => {
                let engine = prefill::mma::Engine::TensorCores { asynchronous: true };
                prefill::mma::launch(client, &machine, problem, engine)
            }
        };
        kernel_accepts(self.operation, launched);
        context
    }
}

/// `[B, T, N·Hv]` as `[B, N, T, Hv]`, in the same memory.
fn by_head<R: CubeRuntime>(packed: &CubeTensor<R>, heads: usize) -> TensorHandle<R> {
    let (shape, strides) = (packed.meta.shape(), packed.meta.strides());
    let head_dim = shape[2] / heads;
    let (shape, strides) = ([shape[0], heads, shape[1], head_dim], [strides[0], head_dim, strides[1], 1]);
    TensorHandle::new(packed.handle.clone(), shape.to_vec(), strides.to_vec(), packed.dtype)
}

/// A vector of f32 for the arguments of a call.
pub(crate) fn f32_vector<B: CubeDevice>(vector: Tensor<B, 1>) -> FloatTensor<B> {
    float(vector.cast(FloatDType::F32))
}

/// The arguments of one attention, with `T` for each tensor.
#[derive(Debug, Clone)]
struct AttentionCall<T> {
    kernel: CubeKernel,
    query: T,
    key: T,
    value: T,
    scale: f32,
    keys: usize,
    sinks: Option<T>,
    masks: Masks<T>,
}

/// [`Operations::masked_attention`](crate::ops::Operations::masked_attention) on CubeCL.
pub(crate) fn masked_attention<B: CubeDevice>(arguments: Attention<B>) -> Tensor<B, 4> {
    let device = arguments.query.device();
    let kernel = match plan::<B>(&arguments.problem(), &device) {
        Ok(kernel) if !arguments.is_empty() => kernel,
        _ => return reference(arguments),
    };
    arguments.check();
    let Attention { query, key, value, scale, softcap, sinks, slopes, visibility, mask } = arguments;
    // Tensor cores take values as long as keys: shorter ones end in zeros, which are cut off the result.
    let (head_dim, value_dim) = (key.dims()[3], value.dims()[3]);
    let value = match kernel {
        CubeKernel::PrefillMma if value_dim < head_dim => pad_transform::cube::pad_transform(value, head_dim),
        _ => value,
    };
    let Visibility { causal, window, starts, ends } = &visibility;
    let rules = rules(*causal, *window, softcap, starts[0], ends[0]);
    let bounds = (starts.len() > 1).then(|| bounds_on_device(starts, ends, &device));
    let slopes = slopes.map(|slopes| alibi::on_device(slopes, &device));
    let context: Tensor<B, 4> = from_float(B::run::<AttentionCall<()>>(AttentionCall {
        kernel,
        keys: key.dims()[2],
        query: float(query),
        key: float(key),
        value: float(value),
        scale: scale as f32,
        sinks: sinks.map(f32_vector),
        masks: masks(rules, bounds, &mask, slopes),
    }));
    if context.dims()[3] > value_dim { context.narrow(3, 0, value_dim) } else { context }
}

impl CubeCall for AttentionCall<()> {
    const NAME: &'static str = "masked_attention";

    type Arguments<T: TensorLike> = AttentionCall<T>;
    type Output<T: TensorLike> = T;

    fn walk<T: TensorLike, U: TensorLike>(call: AttentionCall<T>, visit: &mut impl FnMut(T) -> U) -> AttentionCall<U> {
        AttentionCall {
            kernel: call.kernel,
            query: visit(call.query),
            key: visit(call.key),
            value: visit(call.value),
            scale: call.scale,
            keys: call.keys,
            sinks: call.sinks.map(&mut *visit),
            masks: call.masks.map(visit),
        }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(output: T, visit: &mut impl FnMut(T) -> U) -> U {
        visit(output)
    }

    fn announce(call: AttentionCall<TensorKind>) -> TensorKind {
        let ((query, dtype), (value, _)) = (call.query, call.value);
        (Shape::new([query[0], query[1], query[2], value[3]]), dtype)
    }

    fn launch<R: CubeRuntime>(call: AttentionCall<CubeTensor<R>>) -> CubeTensor<R> {
        let query = rows(call.query);
        let [key, value] = [call.key, call.value].map(|side| SideHandles::from(&Side::Dense(rows(side))));
        let sinks = optional_handle(call.sinks.as_ref());
        let launch = Launch {
            operation: Self::NAME,
            kernel: call.kernel,
            query: &query,
            key: &key,
            value: &value,
            scale: call.scale,
            sinks: sinks.as_ref(),
            masks: &call.masks.arguments(),
            keys: call.keys,
        };
        let context = launch.attend();
        let by_head = by_head(&context, query.meta.shape()[1]);
        CubeTensor::new(context.client, context.handle, *by_head.metadata, context.device, context.dtype)
    }
}
