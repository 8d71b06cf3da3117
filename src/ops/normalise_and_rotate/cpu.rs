//! Normalised and rotated heads on the CPU kernels: one pass over queries and keys, none over values.

use burn::tensor::Tensor;

use super::{NormaliseAndRotate, reference};
use crate::ops::cpu::{InMemory, is_float, tensor};
use crate::ops::heads::split;
use crate::ops::softmax_context::cpu::{Packed, with_transform};

/// [`Operations::normalise_and_rotate`](crate::ops::Operations::normalise_and_rotate) for backends on the CPU.
pub(crate) fn normalise_and_rotate<B: InMemory>(arguments: NormaliseAndRotate<'_, B>) -> [Tensor<B, 4>; 3] {
    if !is_float(arguments.qkv.dtype()) || !arguments.changes_heads() {
        return reference(arguments);
    }
    arguments.check();
    let NormaliseAndRotate { qkv, norm: weights, table, spec } = arguments;
    let ([batch, tokens, width], head_dim) = (qkv.dims(), spec.head_dim);
    let (device, dtype) = (qkv.device(), qkv.dtype());
    let (queries, keys) = (spec.query_width(), spec.kv_width());
    let table = table.map(|table| table.of_rows(batch));
    let value = split(qkv.clone().narrow(2, queries + keys, keys), spec.kv_heads());
    let [query, key] = B::with_elements(&qkv, |qkv| {
        let elements = &qkv.dense();
        with_transform(spec, (weights, None), table.as_ref(), |rotation, norms| {
            let packed = Packed { elements, norm: None, rotation, factors: None, batch, tokens, width, head_dim };
            let [query_norm, key_norm, _] = norms;
            [(query_norm, 0, spec.heads()), (key_norm, queries, spec.kv_heads())].map(|(norm, first, heads)| {
                let moved = Packed { norm, ..packed }.part(first, heads).moved();
                tensor(moved, [batch, tokens, heads, head_dim], (&device, dtype)).swap_dims(1, 2)
            })
        })
    });
    [query, key, value]
}
