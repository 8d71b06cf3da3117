//! Norms on the CubeCL kernel, of an input or of its sum with a residual.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::{Machine, norm};

use crate::ops::cube::{
    CubeCall, CubeDevice, TensorKind, TensorLike, empty, float, from_float, handle, kernel_accepts, rows,
};
use crate::spec::NormSpec;
use crate::weight::FusedNorm;

/// The parameters of a norm, with `T` for each tensor.
#[derive(Debug, Clone)]
pub(super) struct Parameters<T> {
    pub spec: NormSpec,
    pub gamma: T,
    pub beta: Option<T>,
}

impl<T> Parameters<T> {
    /// Replaces every tensor.
    pub fn map<U>(self, visit: &mut impl FnMut(T) -> U) -> Parameters<U> {
        Parameters { spec: self.spec, gamma: visit(self.gamma), beta: self.beta.map(visit) }
    }
}

/// The parameters of a norm, for the arguments of a call.
pub(super) fn parameters<B: CubeDevice>(norm: &FusedNorm<B>) -> Parameters<FloatTensor<B>> {
    Parameters { spec: norm.spec(), gamma: float(norm.gamma()), beta: norm.beta().map(float) }
}

/// The arguments of a norm, with `T` for each tensor.
#[derive(Debug, Clone)]
struct NormCall<T> {
    /// `[rows, E]`.
    input: T,
    /// Added to the input first, `[rows, E]`.
    residual: Option<T>,
    norm: Parameters<T>,
}

/// LayerNorm or RMSNorm over the last axis of `input`, or of `input + residual`, rounded to the input's element type.
///
/// # Shapes
/// - input, residual, output: `[B, T, E]`
pub(in crate::ops) fn normalise<B: CubeDevice>(
    input: Tensor<B, 3>,
    residual: Option<Tensor<B, 3>>,
    norm: &FusedNorm<B>,
) -> Tensor<B, 3> {
    let [batch, tokens, width] = input.dims();
    let flat = |tensor: Tensor<B, 3>| float(tensor.reshape([batch * tokens, width]));
    let (input, residual, norm) = (flat(input), residual.map(flat), parameters(norm));
    let normed: Tensor<B, 2> = from_float(B::run::<NormCall<()>>(NormCall { input, residual, norm }));
    normed.reshape([batch, tokens, width])
}

impl CubeCall for NormCall<()> {
    const NAME: &'static str = "norm";

    type Arguments<T: TensorLike> = NormCall<T>;
    type Output<T: TensorLike> = T;

    fn walk<T: TensorLike, U: TensorLike>(call: NormCall<T>, visit: &mut impl FnMut(T) -> U) -> NormCall<U> {
        NormCall { input: visit(call.input), residual: call.residual.map(&mut *visit), norm: call.norm.map(visit) }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(output: T, visit: &mut impl FnMut(T) -> U) -> U {
        visit(output)
    }

    fn announce(call: NormCall<TensorKind>) -> TensorKind {
        call.input
    }

    fn launch<R: CubeRuntime>(call: NormCall<CubeTensor<R>>) -> CubeTensor<R> {
        let input = rows(call.input);
        let residual = call.residual.map(|residual| handle(&rows(residual)));
        let Parameters { spec, gamma, beta } = call.norm.map(&mut |tensor| handle(&rows(tensor)));
        let output = empty(&input, input.meta.shape().clone());
        let arguments = norm::Norm {
            input: &handle(&input),
            residual: residual.as_ref(),
            gamma: &gamma,
            beta: beta.as_ref(),
            output: &handle(&output),
            epsilon: spec.epsilon as f32,
            rms: spec.rms,
        };
        kernel_accepts(Self::NAME, norm::launch(&input.client, &Machine::new(&input.client), arguments));
        output
    }
}
