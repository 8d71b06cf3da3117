//! The heads of a projection after norm and rotation, before they are joined with those of other tokens. DeepSpeed has none.

#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;

use burn::tensor::{Tensor, backend::Backend};

use super::heads::split_all;
use super::softmax_context::{Transform, check_norm_weights};
use crate::error::check_shape;
use crate::position::rotary::RotaryTable;
use crate::spec::{AttentionSpec, KvSource};
use crate::weight::QueryKeyNorm;
use crate::zeros::cast;

/// The arguments of [`Operations::normalise_and_rotate`](crate::ops::Operations::normalise_and_rotate).
#[derive(Debug)]
pub struct NormaliseAndRotate<'a, B: Backend> {
    /// `q | k | v`, `[B, T, (N + 2K)·H]`.
    pub qkv: Tensor<B, 3>,
    /// The weights of the norm of queries and keys, if the layer has a norm with weights.
    pub norm: Option<&'a QueryKeyNorm<B>>,
    /// Cosine and sine of these tokens, `[B or 1, 1, T, rotary_dim / 2]`, if they are rotated.
    pub table: Option<RotaryTable<B>>,
    /// Sizes of the layer, and its norm of queries and keys.
    pub spec: &'a AttentionSpec,
}

impl<B: Backend> NormaliseAndRotate<'_, B> {
    /// Panics unless all parts fit together.
    #[track_caller]
    fn check(&self) {
        let (operation, spec) = ("normalise_and_rotate", self.spec);
        let [batch, tokens, _] = self.qkv.dims();
        assert!(
            spec.kv_source == KvSource::Own && !spec.qk_norm.is_some_and(|norm| norm.values),
            "{operation}: the layer has no values of its own, or normalises them; no path does that before tokens are joined"
        );
        check_shape(operation, "qkv", &[batch, tokens, spec.qkv_width()], &self.qkv.dims());
        if let Some(RotaryTable { cos, sin, .. }) = &self.table {
            let [rows, .., half] = cos.dims();
            let rows = if rows == 1 { 1 } else { batch };
            for (name, part) in [("cosines", cos), ("sines", sin)] {
                check_shape(operation, name, &[rows, 1, tokens, half.min(spec.head_dim / 2)], &part.dims());
            }
        }
        check_norm_weights(operation, spec, self.norm);
    }

    /// Whether there is something to compute: otherwise the heads are views of the projection.
    #[cfg(any(feature = "cpu", feature = "cubecl"))]
    fn changes_heads(&self) -> bool {
        let [batch, tokens, _] = self.qkv.dims();
        batch * tokens > 0 && (self.table.is_some() || self.spec.qk_norm.is_some())
    }
}

/// The definition of [`Operations::normalise_and_rotate`](crate::ops::Operations::normalise_and_rotate).
pub fn reference<B: Backend>(arguments: NormaliseAndRotate<'_, B>) -> [Tensor<B, 4>; 3] {
    arguments.check();
    let NormaliseAndRotate { qkv, norm: weights, table, spec } = arguments;
    let ([batch, tokens, _], dtype) = (qkv.dims(), qkv.dtype());
    if batch * tokens == 0 {
        return split_all(qkv, spec);
    }
    let (query, own) = Transform { norm: spec.qk_norm, weights, table, factors: None }.apply(qkv, None, spec);
    let Some([key, value]) = own else { unreachable!("`check` refuses a layer without keys") };
    [query, key, value].map(|heads| cast(heads, dtype))
}
