//! The names under which a checkpoint keeps a layer of latent attention.

use super::names::{NormNames, WeightNames};
use crate::layout::Orientation;

/// Where the parameters of a layer of latent attention are in a checkpoint.
///
/// ```
/// use burn_deepspeed_core::checkpoint::LatentNames;
/// let names = LatentNames::deepseek("model.layers.0.self_attn", true).with_norm("model.layers.0.input_layernorm");
/// assert_eq!(names.up.matrix, "model.layers.0.self_attn.kv_b_proj.weight");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatentNames {
    /// The norm before attention; read if the module has one.
    pub norm: Option<NormNames>,
    /// The projection to the latent of queries, and its norm; `None` if queries have none.
    pub query_latent: Option<(WeightNames, NormNames)>,
    /// The projection to queries.
    pub query: WeightNames,
    /// The projection to the latent of keys and values, and to the shared part of the keys.
    pub rows: WeightNames,
    /// The norm of that latent.
    pub latent_norm: NormNames,
    /// The projection from that latent to keys and values.
    pub up: WeightNames,
    /// The output projection.
    pub output: WeightNames,
    /// How the checkpoint stores its matrices.
    pub orientation: Orientation,
}

impl LatentNames {
    /// The names of DeepSeek V2 and V3 below `path`, which ends in `self_attn`. `query_latent` says whether queries have a latent
    /// (`q_lora_rank` is not null).
    pub fn deepseek(path: &str, query_latent: bool) -> Self {
        let weight = |name: &str| WeightNames::of(&format!("{path}.{name}"));
        let norm = |name: &str| NormNames::of(&format!("{path}.{name}"));
        Self {
            norm: None,
            query_latent: query_latent.then(|| (weight("q_a_proj"), norm("q_a_layernorm"))),
            query: weight(if query_latent { "q_b_proj" } else { "q_proj" }),
            rows: weight("kv_a_proj_with_mqa"),
            latent_norm: norm("kv_a_layernorm"),
            up: weight("kv_b_proj"),
            output: weight("o_proj"),
            orientation: Orientation::OutputInput,
        }
    }

    /// The same, with the norm before attention at `path`.
    pub fn with_norm(self, path: &str) -> Self {
        Self { norm: Some(NormNames::of(path)), ..self }
    }
}
