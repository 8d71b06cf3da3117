//! Phi 3 and 4: LLaMA with fused projections, in the long variants with `longrope`.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::{DecoderPaths, Gate};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::layout::QkvLayout;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::{Rope, RopeKeys};
use crate::checkpoint::window;
use crate::config::NormType;
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::position::RopeDialect;
use crate::position::rotary::RopeScaling;

pub(super) static FAMILY: Family = Family {
    title: "Phi 3, Phi 4",
    about: "QKV, and gate with MLP, in one matrix each; window; `longrope` in the long variants",
    model_types: &["phi3"],
    class: Class {
        name: "Phi3Config",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(8192)),
        vocab_size: Setting::new(&["vocab_size"], 32064),
        max_positions: Setting::new(&["max_position_embeddings"], Some(4096)),
        epsilon: Setting::new(&["rms_norm_eps"], 1e-5),
        ..llama::CLASS
    },
    reads: &["head_dim", "num_key_value_heads", "sliding_window"],
    rope: Some(RopeKeys::SHARED),
    only: &[
        Only::flag("attention_bias", false),
        Only::flag("lm_head_bias", false),
        Only::flag("mlp_bias", false),
        Only::number("full_attn_mod", 1.0),
        Only::number("interpolate_factor", 1.0),
    ],
    attention: |base, fields| {
        let mut config = base.with_norm_type(NormType::RMSNorm).with_qkv_bias(false).with_output_bias(false);
        config.num_kv = fields.positive(&["num_key_value_heads"])?;
        config.head_dim = fields.positive(&["head_dim"])?;
        let config = rope(fields)?.halves(config);
        let window = window::size(fields, None)?;
        let layers = LayerKinds::all(usize::from(window.is_some()));
        window::attention([config.clone(), config], window, layers)
    },
    layer: LayerPaths { qkv: QkvPaths::Fused("self_attn.qkv_proj", QkvLayout::Concat), ..llama::LAYER },
    decoder: Some(DecoderPaths { gate: Gate::WithUp, up: "mlp.gate_up_proj", ..llama::DECODER }),
    ..Family::SHARED
};

/// The class takes two kinds of scaling, and reads two names of early files as `longrope`. It reads the first length outside of the
/// record only.
fn rope(fields: &Fields<'_>) -> Result<Rope, ConfigError> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let early = &[("su", "longrope"), ("yarn", "longrope")];
    let dialect = RopeDialect { names: early, ..RopeDialect::default() };
    let rope = Rope::read_dialect(fields, &RopeKeys::SHARED, FAMILY.max_positions(fields)?, &dialect)?;
    match rope.scaling {
        RopeScaling::LongRope { .. } if fields.positive(&[ORIGINAL])?.is_none() => Err(ConfigError::RopeScaling {
            family: "longrope",
            key: ORIGINAL,
            problem: "is missing outside of the record, where the class reads it; write it there (the class's own is 4096)",
        }),
        RopeScaling::Default | RopeScaling::LongRope { .. } => Ok(rope),
        _ => {
            let record = fields.record("rope_scaling")?.filter(|record| !record.is_empty());
            let record = record.or(fields.record("rope_parameters")?);
            let names = ["rope_type", "type"];
            let unsupported =
                |record: &Fields<'_>| record.unsupported(record.spelling(&names), "\"default\", \"longrope\"");
            Err(record.as_ref().map_or_else(|| fields.unsupported("rope_scaling", "null"), unsupported))
        }
    }
}
