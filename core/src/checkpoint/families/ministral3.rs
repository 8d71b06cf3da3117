//! Ministral 3, whose queries grow with their positions.

use super::{llama, mistral};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::rope::{Rope, RopeKeys};
use crate::checkpoint::window;
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::position::QueryFactor;
use crate::position::rotary::RopeScaling;

/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
const KV_HEADS: usize = 8;
/// Features of a head, if `head_dim` is not given; `null` is the hidden size over the heads.
const HEAD_DIM: usize = 128;
/// The key of the factor of queries, in the record of the rotary settings.
const BETA: &str = "llama_4_scaling_beta";
/// The key of the interval of the factor, in the same record.
const ORIGINAL: &str = "original_max_position_embeddings";

pub(super) static FAMILY: Family = Family {
    title: "Ministral 3",
    about: "queries grow with their positions, YaRN",
    model_types: &["ministral3"],
    class: Class {
        name: "Ministral3Config",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(14336)),
        vocab_size: Setting::new(&["vocab_size"], 131072),
        max_positions: Setting::new(&["max_position_embeddings"], Some(262144)),
        epsilon: Setting::new(&["rms_norm_eps"], 1e-5),
        ..llama::CLASS
    },
    reads: &["head_dim", "num_key_value_heads", "sliding_window"],
    rope: Some(RopeKeys::SHARED),
    only: mistral::ONLY,
    harmless: llama::HARMLESS,
    attention: |base, fields| {
        let mut config = base.with_qkv_bias(false).with_output_bias(false);
        config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
        let window = window::size(fields, None)?;
        let (rope, factor) = rope(fields)?;
        config.head_dim = fields.positive_or_null("head_dim", Some(HEAD_DIM))?;
        let config = llama::positions(config, rope)?.with_query_factor(Some(factor));
        let layers = LayerKinds::all(usize::from(window.is_some()));
        window::attention([config.clone(), config], window, layers)
    },
    layer: llama::LAYER,
    decoder: Some(llama::DECODER),
    ..Family::SHARED
};

/// The rotary settings and the factor of queries, which are in one record.
fn rope(fields: &Fields<'_>) -> Result<(Rope, QueryFactor), ConfigError> {
    let scaling = fields.record("rope_scaling")?.filter(|record| !record.is_empty());
    let Some(record) = scaling.or(fields.record("rope_parameters")?) else {
        let scaling = RopeScaling::Yarn {
            factor: 16.0,
            original_max_position_embeddings: 16384,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
            truncate: true,
        };
        let rope = Rope { theta: 1e6, scaling, ..FAMILY.read_rope(fields)? };
        return Ok((rope, QueryFactor::ministral3(0.1, 16384)));
    };
    let required = |key: &'static str| ConfigError::RopeScaling {
        family: "of Ministral 3",
        key,
        problem: "is missing; copy it from the checkpoint's config.json",
    };
    let beta = record.number(&[BETA])?.ok_or_else(|| required(BETA))?;
    let original = fields.positive(&[ORIGINAL])?.or(record.positive(&[ORIGINAL])?).ok_or_else(|| required(ORIGINAL))?;
    let record = record.reading(&[BETA]);
    let rope = Rope::of_record(fields, Some(&record), &RopeKeys::SHARED, FAMILY.max_positions(fields)?)?;
    Ok((rope, QueryFactor::ministral3(beta, original)))
}
