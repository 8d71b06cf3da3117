//! How operations reach CubeCL kernels: on the device's tensors, or through fusion as one operation of its own.
//!
//! An operation is a [`CubeCall`]: scalars, which tensors come out, and how they are made. A backend runs it with
//! [`CubeOps::call`]. [`Fusion`](burn_fusion::Fusion) records it and runs it later, on the tensors of the backend inside.

use std::fmt::Debug;
use std::vec::IntoIter;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{Bool, DType, Int, Shape, Tensor, TensorPrimitive};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous_aligned;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::prefill::mma::Engine;
use burn_deepspeed_kernels::cube::{HiddenKeys, MaskArguments, Rules, TensorHandle, Unsupported};

use crate::mask::AttentionMask;

/// A backend whose tensors, of whatever kind, are buffers of a CubeCL runtime.
pub trait CubeOps: Backend {
    /// Runs an operation.
    fn call<C: CubeCall>(call: &C, inputs: Vec<FloatTensor<Self>>) -> Vec<FloatTensor<Self>>;

    /// Integers among the inputs of a call.
    fn from_int(tensor: IntTensor<Self>) -> FloatTensor<Self>;

    /// Integers among the outputs of a call.
    fn to_int(tensor: FloatTensor<Self>) -> IntTensor<Self>;

    /// Booleans among the inputs of a call.
    fn from_bool(tensor: BoolTensor<Self>) -> FloatTensor<Self>;

    /// The tensor cores of the device for heads of these elements and this size, or why there are none.
    fn tensor_cores(device: &Self::Device, dtype: DType, head_dim: usize) -> Result<Engine, Unsupported>;

    /// Whether the device has TF32, to which Burn's matmul then rounds the elements of f32 matrices.
    fn has_tf32(device: &Self::Device) -> bool;

    /// Whether devices of the runtime add tensors up without the host.
    #[cfg(feature = "nccl")]
    fn adds_between_devices() -> bool;

    /// Hands what makes these tensors to the device, without waiting for it. Returns what has failed on this thread's stream since
    /// the last time, or that there is no memory behind a tensor.
    #[cfg(feature = "nccl")]
    fn hand_over(tensors: Vec<FloatTensor<Self>>) -> Result<(), String>;
}

/// An operation on the tensors of a runtime.
pub trait CubeCall: Debug + Clone + Send + Sync + 'static {
    /// Its name in a recorded graph.
    const NAME: &'static str;

    /// Shape and element type of what comes out.
    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)>;

    /// Launches the kernels. An input that nobody else holds may be written.
    fn launch<R: CubeRuntime>(&self, inputs: Inputs<R>) -> Vec<CubeTensor<R>>;
}

/// The inputs of a call, in the order in which they were collected.
pub struct Inputs<R: CubeRuntime>(IntoIter<CubeTensor<R>>);

impl<R: CubeRuntime> Inputs<R> {
    pub(crate) fn new(tensors: Vec<CubeTensor<R>>) -> Self {
        Self(tensors.into_iter())
    }

    /// The next one, with whatever strides it has.
    pub(crate) fn next(&mut self) -> CubeTensor<R> {
        self.0.next().unwrap_or_else(|| unreachable!("a call takes as many inputs as it collected"))
    }

    /// The next one, with rows whose elements lie one behind the other.
    pub(crate) fn rows(&mut self) -> CubeTensor<R> {
        let tensor = self.next();
        let dense = tensor.meta.strides().last() == Some(&1) || tensor.meta.shape().last() == Some(&1);
        if dense { tensor } else { into_contiguous_aligned(tensor) }
    }

    /// The next one if it is there.
    pub(crate) fn next_if(&mut self, there: bool) -> Option<TensorHandle<R>> {
        there.then(|| handle(&self.next()))
    }
}

/// The rules of a mask in the integers of the kernels.
pub(crate) fn rules(causal: bool, window: Option<usize>, softcap: Option<f64>, start: usize, end: usize) -> Rules {
    Rules {
        causal,
        window: window.map(|window| u32::try_from(window).unwrap_or(u32::MAX / 2)),
        softcap: softcap.map(|cap| cap as f32),
        start: start as u32,
        end: end as u32,
    }
}

/// Whether the kernels compute with an element type.
pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// A tensor as the kernels take it.
pub(crate) fn handle<R: CubeRuntime>(tensor: &CubeTensor<R>) -> TensorHandle<R> {
    TensorHandle::from(tensor.clone())
}

/// A tensor that nobody else holds, so that a kernel may write into it: this one, or a copy.
pub(crate) fn owned<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    if tensor.can_mut() && tensor.is_nonoverlapping() { tensor } else { tensor.copy() }
}

/// What a plan ruled out. Shapes decide, so a kernel that declines here was asked for what its plan does not promise.
#[track_caller]
pub(crate) fn planned<T>(operation: &str, launched: Result<T, Unsupported>) -> T {
    launched
        .unwrap_or_else(|reason| panic!("{operation}: the kernel declined a problem that was planned for it: {reason}"))
}

/// Tensors on their way into a call.
pub(crate) struct Collected<B: CubeOps>(Vec<FloatTensor<B>>);

impl<B: CubeOps> Collected<B> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn float<const D: usize>(&mut self, tensor: Tensor<B, D>) {
        self.0.push(tensor.into_primitive().tensor());
    }

    pub(crate) fn int<const D: usize>(&mut self, tensor: Tensor<B, D, Int>) {
        self.0.push(B::from_int(tensor.into_primitive()));
    }

    pub(crate) fn bool<const D: usize>(&mut self, tensor: Tensor<B, D, Bool>) {
        self.0.push(B::from_bool(tensor.into_primitive()));
    }

    /// Runs the call on them.
    pub(crate) fn call<C: CubeCall>(self, call: &C) -> Outputs<B> {
        Outputs(B::call(call, self.0).into_iter())
    }
}

/// What comes out of a call.
pub(crate) struct Outputs<B: CubeOps>(IntoIter<FloatTensor<B>>);

impl<B: CubeOps> Outputs<B> {
    pub(crate) fn next<const D: usize>(&mut self) -> Tensor<B, D> {
        let primitive = self.0.next().unwrap_or_else(|| unreachable!("a call returns what it announced"));
        Tensor::from_primitive(TensorPrimitive::Float(primitive))
    }

    pub(crate) fn next_int<const D: usize>(&mut self) -> Tensor<B, D, Int> {
        Tensor::from_primitive(B::to_int(self.next::<D>().into_primitive().tensor()))
    }
}

/// Which masks a call was given, and what the layer hides by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaskCall {
    pub rules: Rules,
    bounds: bool,
    hidden: bool,
    positions: bool,
    pairs: bool,
    bias: bool,
    slopes: bool,
}

impl MaskCall {
    /// Collects the tensors of a mask.
    ///
    /// # Shapes
    /// - bounds: `[B, 2]`, slopes: `[N]`
    pub(crate) fn collect<B: CubeOps>(
        into: &mut Collected<B>,
        rules: Rules,
        bounds: Option<Tensor<B, 2, Int>>,
        mask: &AttentionMask<B>,
        slopes: Option<Tensor<B, 1>>,
    ) -> Self {
        let call = Self {
            rules,
            bounds: bounds.is_some(),
            hidden: mask.hidden_keys().is_some(),
            positions: mask.hidden_keys().is_some() && slopes.is_some(),
            pairs: mask.hidden_pairs().is_some(),
            bias: mask.has_bias(),
            slopes: slopes.is_some(),
        };
        if let Some(bounds) = bounds {
            into.int(bounds);
        }
        if let Some(hidden) = mask.hidden_keys() {
            into.bool(hidden.clone());
            if call.positions {
                // The kept keys up to each; distances between two are those between their positions.
                into.int(hidden.clone().bool_not().int().cumsum(1).cast(burn::tensor::IntDType::I32));
            }
        }
        if let Some(pairs) = mask.hidden_pairs() {
            into.bool(pairs.clone());
        }
        if let Some(bias) = mask.bias() {
            into.float(bias);
        }
        if let Some(slopes) = slopes {
            into.float(slopes);
        }
        call
    }

    /// The same tensors on the device.
    pub(crate) fn take<R: CubeRuntime>(&self, inputs: &mut Inputs<R>) -> MaskArguments<R> {
        let mut masks = MaskArguments::new(self.rules);
        masks.bounds = self.bounds.then(|| handle(&inputs.rows()));
        if let Some(hidden) = inputs.next_if(self.hidden) {
            masks.hidden_keys = Some(HiddenKeys { hidden, positions: inputs.next_if(self.positions) });
        }
        masks.hidden_pairs = inputs.next_if(self.pairs);
        masks.bias = inputs.next_if(self.bias);
        masks.slopes = inputs.next_if(self.slopes);
        masks
    }
}
