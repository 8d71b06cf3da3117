//! The masked softmax on a CubeCL kernel, in place where nobody else holds the scores.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::{Machine, softmax};

use super::{Softmax, reference};
use crate::ops::cube::{Collected, CubeCall, CubeOps, Inputs, handle, is_float, owned, planned};

#[derive(Debug, Clone, Copy)]
struct SoftmaxCall {
    scale: f32,
    alibi: bool,
    head_offset: usize,
    mask: bool,
    triangular: Option<usize>,
    window: Option<usize>,
}

/// [`InferenceBackend::softmax`](crate::InferenceBackend::softmax) on CubeCL.
pub(crate) fn softmax<B: CubeOps>(arguments: Softmax<B>) -> Tensor<B, 4> {
    let [batch, heads, tokens, keys] = arguments.scores.dims();
    if batch * heads * tokens * keys == 0 || !is_float(arguments.scores.dtype()) {
        return reference(arguments);
    }
    arguments.check();
    let Softmax { scores, scale, alibi, head_offset, mask, triangular, window } = arguments;
    let call = SoftmaxCall {
        scale: scale as f32,
        alibi: alibi.is_some(),
        head_offset,
        mask: mask.is_some(),
        triangular,
        window,
    };
    let mut inputs = Collected::new();
    inputs.float(scores);
    if let Some(alibi) = alibi {
        inputs.float(alibi);
    }
    if let Some(mask) = mask {
        inputs.float(mask.pairs());
    }
    inputs.call(&call).next()
}

impl CubeCall for SoftmaxCall {
    const NAME: &'static str = "deepspeed_softmax";

    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)> {
        vec![inputs[0].clone()]
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Inputs<R>) -> Vec<CubeTensor<R>> {
        let scores = owned(inputs.rows());
        let (alibi, mask) = (inputs.next_if(self.alibi), inputs.next_if(self.mask));
        let arguments = softmax::Softmax {
            scores: &handle(&scores),
            scale: self.scale,
            alibi: alibi.as_ref(),
            head_offset: self.head_offset,
            mask: mask.as_ref(),
            triangular: self.triangular,
            window: self.window,
        };
        planned("softmax", softmax::launch(&scores.client, &Machine::new(&scores.client), arguments));
        vec![scores]
    }
}
