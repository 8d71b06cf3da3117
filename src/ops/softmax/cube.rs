//! The masked softmax on a CubeCL kernel, in place if the scores have no other owner.

use burn::tensor::Tensor;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::{Machine, softmax};

use super::arguments::Softmax;
use super::reference::reference;
use crate::ops::cube::{
    CubeCall, CubeDevice, TensorKind, TensorLike, float, from_float, handle, is_float, kernel_accepts, optional_handle,
    owned, rows,
};

/// The arguments of a softmax, with `T` for each tensor.
#[derive(Debug, Clone)]
struct SoftmaxCall<T> {
    scores: T,
    scale: f32,
    alibi: Option<T>,
    head_offset: usize,
    mask: Option<T>,
    triangular: Option<usize>,
    window: Option<usize>,
}

/// [`Operations::softmax`](crate::ops::Operations::softmax) on CubeCL.
pub(crate) fn softmax<B: CubeDevice>(arguments: Softmax<B>) -> Tensor<B, 4> {
    if arguments.scores.shape().num_elements() == 0 || !is_float(arguments.scores.dtype()) {
        return reference(arguments);
    }
    arguments.check();
    let Softmax { scores, scale, alibi, head_offset, mask, triangular, window } = arguments;
    from_float(B::run::<SoftmaxCall<()>>(SoftmaxCall {
        scores: float(scores),
        scale: scale as f32,
        alibi: alibi.map(float),
        head_offset,
        mask: mask.map(|mask| float(mask.pairs())),
        triangular,
        window,
    }))
}

impl CubeCall for SoftmaxCall<()> {
    const NAME: &'static str = "deepspeed_softmax";

    type Arguments<T: TensorLike> = SoftmaxCall<T>;
    type Output<T: TensorLike> = T;

    fn walk<T: TensorLike, U: TensorLike>(call: SoftmaxCall<T>, visit: &mut impl FnMut(T) -> U) -> SoftmaxCall<U> {
        let SoftmaxCall { scores, scale, alibi, head_offset, mask, triangular, window } = call;
        SoftmaxCall {
            scores: visit(scores),
            scale,
            alibi: alibi.map(&mut *visit),
            head_offset,
            mask: mask.map(&mut *visit),
            triangular,
            window,
        }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(output: T, visit: &mut impl FnMut(T) -> U) -> U {
        visit(output)
    }

    fn announce(call: SoftmaxCall<TensorKind>) -> TensorKind {
        call.scores
    }

    fn launch<R: CubeRuntime>(call: SoftmaxCall<CubeTensor<R>>) -> CubeTensor<R> {
        let scores = owned(rows(call.scores));
        let (alibi, mask) = (optional_handle(call.alibi.as_ref()), optional_handle(call.mask.as_ref()));
        let arguments = softmax::Softmax {
            scores: &handle(&scores),
            scale: call.scale,
            alibi: alibi.as_ref(),
            head_offset: call.head_offset,
            mask: mask.as_ref(),
            triangular: call.triangular,
            window: call.window,
        };
        kernel_accepts("softmax", softmax::launch(&scores.client, &Machine::new(&scores.client), arguments));
        scores
    }
}
