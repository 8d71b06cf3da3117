//! A matrix with its bias, and the norm in front of one.

mod int8;

use std::borrow::Cow;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Distribution, Tensor, backend::Backend};

use crate::element::require_int8;
use crate::error::{ConfigError, WeightError};
use crate::spec::NormSpec;
pub use burn_deepspeed_core::layout::Orientation;
pub use int8::{Int8Blocks, Int8Matrix};

/// Standard deviation of freshly initialised matrices; GPT-2's and BLOOM's.
const INITIAL_DEVIATION: f64 = 0.02;

/// Outputs of a matrix of int8 that are dense at a time: enough for a product at full speed, and little memory.
const DENSE_OUTPUTS: usize = 1024;

/// A projection: `x · matrix + bias`.
#[derive(Module, Debug)]
pub struct Weight<B: Backend> {
    /// Either this one is there, or the next.
    matrix: Option<Param<Tensor<B, 2>>>,
    int8: Option<Int8Matrix<B>>,
    bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    orientation: Orientation,
    #[module(skip)]
    rounds_input: bool,
}

impl<B: Backend> Weight<B> {
    /// A fresh projection: normally distributed matrix, zero bias. Memory is taken when it is first used, so loading a
    /// checkpoint into it allocates once.
    pub fn init(
        input: usize,
        output: usize,
        bias: bool,
        orientation: Orientation,
        dtype: DType,
        device: &B::Device,
    ) -> Self {
        let shape = orientation.shape(input, output);
        let normal = Distribution::Normal(0.0, INITIAL_DEVIATION);
        Self {
            matrix: Some(lazy(shape, dtype, device, move |device| Tensor::random(shape, normal, (device, DType::F32)))),
            int8: None,
            bias: bias.then(|| lazy([output], dtype, device, move |device| Tensor::zeros([output], device))),
            orientation,
            rounds_input: false,
        }
    }

    /// The same with a matrix of int8, which lies `[out, in]` and never was dense; bias and activations are of `dtype`.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedDataType`] where the backend computes with no int8.
    pub fn init_int8(
        input: usize,
        output: usize,
        bias: bool,
        blocks: Int8Blocks,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        require_int8::<B>(device)?;
        let orientation = Orientation::OutputInput;
        let int8 = Some(Int8Matrix::init([output, input], blocks, dtype, device));
        Ok(Self { matrix: None, int8, ..Self::init(input, output, bias, orientation, dtype, device) })
    }

    /// A projection with these values.
    ///
    /// # Shapes
    /// - matrix: `[in, out]` or `[out, in]`, as `orientation` says
    /// - bias: `[out]`
    pub fn new(matrix: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, orientation: Orientation) -> Self {
        let matrix = Some(given(matrix));
        let weight = Self { matrix, int8: None, bias: bias.map(given), orientation, rounds_input: false };
        if let Some(bias) = &weight.bias {
            crate::error::check_shape("Weight::new", "bias", &[weight.output_size()], &bias.val().dims());
        }
        weight
    }

    /// A projection with a matrix of int8.
    pub(crate) fn of_int8(matrix: Int8Matrix<B>, bias: Option<Tensor<B, 1>>) -> Self {
        let orientation = Orientation::OutputInput;
        Self { matrix: None, int8: Some(matrix), bias: bias.map(given), orientation, rounds_input: false }
    }

    /// The same with a matrix of int8, which lies `[out, in]`; the bias stays as it is.
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](crate::weight::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let inputs = self.input_size();
        self.quantize_in(blocks.sizes(inputs))
    }

    /// The same with blocks of so many outputs and inputs.
    pub(crate) fn quantize_in(self, blocks: [usize; 2]) -> Result<Self, WeightError> {
        let int8 = Int8Matrix::quantize_in(self.input_output().transpose(), blocks)?;
        Ok(Self { matrix: None, int8: Some(int8), orientation: Orientation::OutputInput, ..self })
    }

    /// The same with an input that is rounded in front of an int8 matrix, or not: to whole numbers of 14 bits times the largest
    /// magnitude of a token over 8191, so that the product is one of whole numbers (dynamic quantisation). A result is off by no more than
    /// half of such a step times the sum of the magnitudes of its weights; where a token has features far larger than the
    /// others, that is much. Faster on the CPU kernels with AVX2; everywhere else, and beside a dense matrix, nothing is rounded.
    /// Default: not.
    pub fn with_rounded_input(self, rounds_input: bool) -> Self {
        Self { rounds_input, ..self }
    }

    /// Whether the input may be rounded; see [`with_rounded_input`](Self::with_rounded_input).
    pub fn rounds_input(&self) -> bool {
        self.rounds_input
    }

    /// The matrix, if it is int8.
    pub fn int8(&self) -> Option<&Int8Matrix<B>> {
        self.int8.as_ref()
    }

    /// The device that the parameters are, or will be, on.
    pub fn device(&self) -> B::Device {
        self.either(Param::lazy_device, Int8Matrix::device)
    }

    /// Shape of the matrix as it is stored.
    fn shape(&self) -> [usize; 2] {
        self.either(|matrix| matrix.lazy_shape().dims(), Int8Matrix::shape)
    }

    /// Input features.
    pub fn input_size(&self) -> usize {
        self.shape()[match self.orientation {
            Orientation::InputOutput => 0,
            Orientation::OutputInput => 1,
        }]
    }

    /// Output features.
    pub fn output_size(&self) -> usize {
        self.shape()[match self.orientation {
            Orientation::InputOutput => 1,
            Orientation::OutputInput => 0,
        }]
    }

    /// The element type of the matrix; where it is int8, the one that it had before.
    pub fn dtype(&self) -> DType {
        self.either(|matrix| matrix.val().dtype(), Int8Matrix::dtype)
    }

    /// The matrix as it is stored; see [`orientation`](Self::orientation). One of int8 is made dense.
    pub fn matrix(&self) -> Tensor<B, 2> {
        self.either(Param::val, Int8Matrix::dense)
    }

    fn either<T>(&self, dense: impl FnOnce(&Param<Tensor<B, 2>>) -> T, int8: impl FnOnce(&Int8Matrix<B>) -> T) -> T {
        match (&self.matrix, &self.int8) {
            (Some(matrix), _) => dense(matrix),
            (None, Some(matrix)) => int8(matrix),
            (None, None) => unreachable!("a projection has a matrix"),
        }
    }

    /// The matrix in parts of the outputs, each `[in, part]` with elements of `dtype`: one of int8 is never dense as a whole.
    pub(crate) fn parts(&self, dtype: DType) -> impl Iterator<Item = Tensor<B, 2>> {
        let outputs = self.output_size();
        let len = if self.int8.is_some() { DENSE_OUTPUTS.min(outputs) } else { outputs };
        (0..outputs.max(1)).step_by(len.max(1)).map(move |start| {
            let len = len.min(outputs - start);
            let part = self.int8.as_ref().map(|matrix| matrix.dense_outputs(start, len).transpose());
            part.unwrap_or_else(|| self.input_output()).cast(dtype)
        })
    }

    /// The matrix as `[in, out]`, whatever way it is stored.
    pub fn input_output(&self) -> Tensor<B, 2> {
        match self.orientation {
            Orientation::InputOutput => self.matrix(),
            Orientation::OutputInput => self.matrix().transpose(),
        }
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<Tensor<B, 1>> {
        self.bias.as_ref().map(Param::val)
    }

    /// Whether there is a bias.
    pub fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// How the matrix is stored.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// The columns `start..start + len` of the outputs, as a projection of their own.
    pub fn outputs(&self, start: usize, len: usize) -> Self {
        let dim = match self.orientation {
            Orientation::InputOutput => 1,
            Orientation::OutputInput => 0,
        };
        // Not `Param::from_tensor`: it asks for gradients, which a part of a tracked matrix refuses.
        let cut =
            |matrix: &Param<Tensor<B, 2>>| Param::initialized(ParamId::new(), matrix.val().narrow(dim, start, len));
        Self {
            matrix: self.matrix.as_ref().map(cut),
            int8: self.int8.as_ref().map(|matrix| matrix.outputs(start, len)),
            bias: self.bias().map(|bias| Param::initialized(ParamId::new(), bias.narrow(0, start, len))),
            orientation: self.orientation,
            rounds_input: self.rounds_input,
        }
    }
}

/// A norm that is fused: in front of a projection, or behind a sum.
#[derive(Module, Debug)]
pub struct FusedNorm<B: Backend> {
    gamma: Param<Tensor<B, 1>>,
    beta: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    spec: NormSpec,
}

impl<B: Backend> FusedNorm<B> {
    /// A fresh norm: gamma of ones, beta of zeros. An RMSNorm has no beta.
    pub fn init(size: usize, bias: bool, spec: NormSpec, dtype: DType, device: &B::Device) -> Self {
        let bias = bias && !spec.rms;
        Self {
            gamma: lazy([size], dtype, device, move |device| Tensor::ones([size], device)),
            beta: bias.then(|| lazy([size], dtype, device, move |device| Tensor::zeros([size], device))),
            spec,
        }
    }

    /// A norm with these values, each `[E]`.
    pub fn new(gamma: Tensor<B, 1>, beta: Option<Tensor<B, 1>>, spec: NormSpec) -> Self {
        if let Some(beta) = &beta {
            crate::error::check_shape("FusedNorm::new", "beta", &gamma.dims(), &beta.dims());
        }
        Self { gamma: given(gamma), beta: beta.map(given), spec }
    }

    /// Factor of each feature, `[E]`.
    pub fn gamma(&self) -> Tensor<B, 1> {
        self.gamma.val()
    }

    /// Summand of each feature, `[E]`.
    pub fn beta(&self) -> Option<Tensor<B, 1>> {
        self.beta.as_ref().map(Param::val)
    }

    /// Whether there is a summand.
    pub fn has_beta(&self) -> bool {
        self.beta.is_some()
    }

    /// Which norm, and its epsilon.
    pub fn spec(&self) -> NormSpec {
        self.spec
    }

    /// Features that are normalised over.
    pub fn size(&self) -> usize {
        self.gamma.lazy_shape()[0]
    }
}

/// The QKV projection: one fused matrix, or one for each.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a module cannot be boxed, and there is one to a layer")]
pub enum QkvWeight<B: Backend> {
    /// `attn_qkvw`: outputs are `q | k | v`, `(N + 2K)·H` of them.
    Fused(Weight<B>),
    /// `attn_qw`, `attn_kw`, `attn_vw`: as DeepSpeed keeps them under `set_empty_params`, and for cross attention.
    Separate(SeparateQkv<B>),
}

/// Query, key and value projections of their own; inputs may differ in width (cross attention).
#[derive(Module, Debug)]
pub struct SeparateQkv<B: Backend> {
    /// To `N·H` features.
    pub query: Weight<B>,
    /// To `K·H` features.
    pub key: Weight<B>,
    /// To `K·H` features.
    pub value: Weight<B>,
}

impl<B: Backend> QkvWeight<B> {
    /// The same with matrices of int8.
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](crate::weight::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(match self {
            Self::Fused(weight) => Self::Fused(weight.quantize(blocks)?),
            Self::Separate(SeparateQkv { query, key, value }) => Self::Separate(SeparateQkv {
                query: query.quantize(blocks)?,
                key: key.quantize(blocks)?,
                value: value.quantize(blocks)?,
            }),
        })
    }

    /// The same with inputs that are rounded in front of int8 matrices, or not; see [`Weight::with_rounded_input`].
    pub fn with_rounded_input(self, rounds_input: bool) -> Self {
        match self {
            Self::Fused(weight) => Self::Fused(weight.with_rounded_input(rounds_input)),
            Self::Separate(SeparateQkv { query, key, value }) => Self::Separate(SeparateQkv {
                query: query.with_rounded_input(rounds_input),
                key: key.with_rounded_input(rounds_input),
                value: value.with_rounded_input(rounds_input),
            }),
        }
    }

    /// Projections of their own: lent if they are, cut out of the fused one otherwise. `query_width` is `N·H`.
    pub fn separate(&self, query_width: usize) -> Cow<'_, SeparateQkv<B>> {
        match self {
            // Lent, not cloned: a clone of a parameter that was never read draws values of its own.
            Self::Separate(separate) => Cow::Borrowed(separate),
            Self::Fused(fused) => {
                let kv_width = (fused.output_size() - query_width) / 2;
                Cow::Owned(SeparateQkv {
                    query: fused.outputs(0, query_width),
                    key: fused.outputs(query_width, kv_width),
                    value: fused.outputs(query_width + kv_width, kv_width),
                })
            }
        }
    }
}

/// The transpose, laid out anew, so that products read it row by row. A transposed view would be copied by every one.
pub fn transposed<B: Backend>(matrix: Tensor<B, 2>) -> Tensor<B, 2> {
    let (device, dtype) = (matrix.device(), matrix.dtype());
    Tensor::from_data(matrix.transpose().into_data(), (&device, dtype))
}

/// A parameter that is drawn when it is first read.
fn lazy<B: Backend, const D: usize>(
    shape: [usize; D],
    dtype: DType,
    device: &B::Device,
    init: impl Fn(&B::Device) -> Tensor<B, D> + Send + Sync + 'static,
) -> Param<Tensor<B, D>> {
    let ready = move |device: &B::Device, require_grad: bool| {
        let tensor = init(device).cast(dtype);
        if require_grad { tensor.require_grad() } else { tensor }
    };
    steady(Param::uninitialized(ParamId::new(), ready, device.clone(), true, shape.into()), shape, dtype)
}

/// A parameter with this value.
fn given<B: Backend, const D: usize>(value: Tensor<B, D>) -> Param<Tensor<B, D>> {
    let (shape, dtype) = (value.dims(), value.dtype());
    steady(Param::from_tensor(value), shape, dtype)
}

/// Keeps shape and element type when a record is loaded, which may hold others.
fn steady<B: Backend, const D: usize>(
    param: Param<Tensor<B, D>>,
    shape: [usize; D],
    dtype: DType,
) -> Param<Tensor<B, D>> {
    param.load_mapper(move |loaded: Tensor<B, D>| {
        crate::error::check_shape("load_record", "parameter of the record", &shape, &loaded.dims());
        loaded.cast(dtype)
    })
}
