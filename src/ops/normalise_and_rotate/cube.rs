//! Normalised and rotated heads on CubeCL: the launch that writes into a cache, into new tensors.

use burn::tensor::{Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::Machine;
use burn_deepspeed_kernels::cube::cache_write::{self, CacheWrite};

use super::{NormaliseAndRotate, reference};
use crate::config::KvSource;
use crate::element::element_type;
use crate::ops::attention::cube::{Side, SideHandles, plan};
use crate::ops::cube::{
    CubeCall, CubeDevice, TensorKind, TensorLike, empty, float, from_float, handle, kernel_accepts, rows,
};
use crate::ops::softmax_context::cube::{HeadNorm, Rotation, head_norm, norm_of_heads, rotation};
use burn_deepspeed_core::path::ContextProblem;

/// The arguments, with `T` for each tensor.
#[derive(Debug, Clone)]
struct HeadsCall<T> {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    qkv: T,
    norm: Option<HeadNorm<T>>,
    rotation: Option<Rotation<T>>,
}

/// Queries, keys and values, with `T` for each tensor.
struct Heads<T>([T; 3]);

/// [`Operations::normalise_and_rotate`](crate::ops::Operations::normalise_and_rotate) on CubeCL.
pub(crate) fn normalise_and_rotate<B: CubeDevice>(arguments: NormaliseAndRotate<'_, B>) -> [Tensor<B, 4>; 3] {
    let (qkv, spec) = (&arguments.qkv, arguments.spec);
    // The kernel takes what the decoding kernels take, however many tokens there are.
    let problem = ContextProblem::new(element_type(qkv.dtype()), 1, spec.head_dim, None);
    if plan::<B>(&problem, &qkv.device()).is_err() || !arguments.changes_heads() {
        return reference(arguments);
    }
    arguments.check();
    let NormaliseAndRotate { qkv, norm: weights, table, spec } = arguments;
    let Heads(heads) = B::run::<HeadsCall<()>>(HeadsCall {
        heads: spec.heads(),
        kv_heads: spec.kv_heads(),
        head_dim: spec.head_dim,
        qkv: float(qkv),
        norm: spec.qk_norm.map(|norm| norm_of_heads(norm, spec, weights, None)),
        rotation: table.map(rotation),
    });
    heads.map(from_float)
}

impl CubeCall for HeadsCall<()> {
    const NAME: &'static str = "normalise_and_rotate";

    type Arguments<T: TensorLike> = HeadsCall<T>;
    type Output<T: TensorLike> = Heads<T>;

    fn walk<T: TensorLike, U: TensorLike>(call: HeadsCall<T>, visit: &mut impl FnMut(T) -> U) -> HeadsCall<U> {
        HeadsCall {
            heads: call.heads,
            kv_heads: call.kv_heads,
            head_dim: call.head_dim,
            qkv: visit(call.qkv),
            norm: call.norm.map(|norm| norm.map(visit)),
            rotation: call.rotation.map(|rotation| rotation.map(visit)),
        }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(Heads(heads): Heads<T>, visit: &mut impl FnMut(T) -> U) -> Heads<U> {
        Heads(heads.map(visit))
    }

    fn announce(call: HeadsCall<TensorKind>) -> Heads<TensorKind> {
        let (qkv, dtype) = call.qkv;
        let heads = |heads| (Shape::new([qkv[0], heads, qkv[1], call.head_dim]), dtype);
        Heads([call.heads, call.kv_heads, call.kv_heads].map(heads))
    }

    fn launch<R: CubeRuntime>(call: HeadsCall<CubeTensor<R>>) -> Heads<CubeTensor<R>> {
        let qkv = rows(call.qkv);
        let (batch, tokens) = (qkv.meta.shape()[0], qkv.meta.shape()[1]);
        let new = |heads| empty(&qkv, [batch, heads, tokens, call.head_dim]);
        let [query, key, value] = [call.heads, call.kv_heads, call.kv_heads].map(new);
        let sides = [key, value].map(Side::Dense);
        let [to_key, to_value] = sides.each_ref().map(SideHandles::from);
        let own = [call.heads, call.kv_heads].map(|heads| heads * call.head_dim);
        let norm = call.norm.map(|norm| head_norm(norm, &qkv, own));
        let rotation = call.rotation.map(Rotation::handles);
        let write = CacheWrite {
            qkv: &handle(&qkv),
            source: KvSource::Own,
            query: &handle(&query),
            key: to_key.tensor(),
            value: to_value.tensor(),
            norm: norm.as_ref(),
            rotation: rotation.as_ref(),
            factors: None,
            bounds: None,
            start: 0,
            end: tokens as u32,
        };
        kernel_accepts(Self::NAME, cache_write::launch(&qkv.client, &Machine::new(&qkv.client), write));
        let [key, value] = sides.map(Side::into_elements);
        Heads([query, key, value])
    }
}
