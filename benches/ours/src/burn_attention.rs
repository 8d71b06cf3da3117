//! Burn's own attention.

use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Tensor, TensorData, backend::Backend};

use crate::call::{Call, Failure};
use crate::ours::{read, tensor};
use crate::workload::{Heads, Workload};

/// The call for a problem. Burn knows no grouped heads: keys and values are repeated in every call.
pub fn prepare<B: Backend>(workload: &Workload) -> Result<Call, Failure> {
    let Workload::Attention(heads) = workload else { return Err("not attention alone".into()) };
    let &Heads { heads: query_heads, kv_heads, .. } = heads;
    let [query, key, value] = [heads.query(), heads.key(), heads.value()].map(tensor::<B>);
    let is_causal = heads.plain_causal() && heads.queries == heads.keys;
    let hidden = if is_causal { None } else { heads.hidden() };
    let mask = hidden.map(|hidden| {
        let data = TensorData::new(hidden.elements, hidden.shape);
        Tensor::<B, 4, Bool>::from_data(data, &B::Device::default())
    });
    let bias = heads.bias().map(tensor::<B>);
    let options = AttentionModuleOptions { is_causal, ..Default::default() };
    Ok(Box::new(move || {
        let [key, value] = [&key, &value].map(|side| repeated(side.clone(), query_heads / kv_heads));
        Ok(read(attention(query.clone(), key, value, mask.clone(), bias.clone(), options)))
    }))
}

/// Repeats every head.
fn repeated<B: Backend>(heads: Tensor<B, 4>, times: usize) -> Tensor<B, 4> {
    if times == 1 {
        return heads;
    }
    let [batch, count, tokens, features] = heads.dims();
    let heads = heads.unsqueeze_dim::<5>(2).expand([batch, count, times, tokens, features]);
    heads.reshape([batch, count * times, tokens, features])
}
