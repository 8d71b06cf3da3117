//! ModernBERT: pre-norm, windows on both sides of a token, rotary positions, a gated MLP.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::Gate;
use crate::checkpoint::encoder::{BlockNorms, EncoderInput, EncoderPaths, PositionIds, TokenPaths};
use crate::checkpoint::family::{Family, FamilyAttention};
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::layer_types::LayerType;
use crate::checkpoint::layout::QkvLayout;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::{Rope, RopeKeys};
use crate::config::{DeepSpeedInferenceConfig, WindowKind};
use crate::error::ConfigError;
use crate::fields::Fields;

pub(super) static FAMILY: Family = Family {
    title: "ModernBERT",
    about: "symmetric window in 2 of 3 layers, which have a rotary base of their own, no norm before the first attention, gate and \
            MLP in one matrix, an encoder",
    model_types: &["modernbert"],
    class: Class {
        name: "ModernBertConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(1152)),
        vocab_size: Setting::new(&["vocab_size"], 50368),
        max_positions: Setting::new(&["max_position_embeddings"], Some(8192)),
        epsilon: Setting::new(&["norm_eps"], 1e-5),
        activation: Setting::new(&["hidden_activation"], "gelu"),
        ..Class::SHARED
    },
    reads: &[
        "attention_bias",
        "global_attn_every_n_layers",
        "global_rope_theta",
        "layer_types",
        "local_attention",
        "local_rope_theta",
        "norm_bias",
        RECORDS,
    ],
    only: &[
        Only::text("position_embedding_type", "absolute"),
        Only::nothing("rope_scaling", "write it into the records of `rope_parameters`"),
    ],
    harmless: &[
        "classifier_activation",
        "classifier_bias",
        "classifier_pooling",
        "decoder_bias",
        "deterministic_flash_attn",
        "embedding_dropout",
        "initializer_cutoff_factor",
        // Published files have it next to `norm_eps`, which the class reads.
        "layer_norm_eps",
        "mlp_dropout",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",
    ],
    attention,
    layer: LayerPaths {
        layers: "layers",
        prefixes: &["model."],
        norm: Some("attn_norm"),
        qkv: QkvPaths::Fused("attn.Wqkv", QkvLayout::Concat),
        output: "attn.Wo",
        ..LayerPaths::SHARED
    },
    encoder: Some(EncoderPaths {
        input: EncoderInput::Tokens(TokenPaths {
            words: "embeddings.tok_embeddings",
            segments: None,
            position_ids: PositionIds::Slots,
        }),
        input_norm: Some("embeddings.norm"),
        norms: BlockNorms::Before { mlp: "mlp_norm" },
        gate: Gate::WithUp,
        up: "mlp.Wi",
        down: "mlp.Wo",
        mlp_bias: Flag::Key("mlp_bias", false),
        final_norm: Some("final_norm"),
        heads: &["classifier.", "decoder.", "head."],
        ..EncoderPaths::SHARED
    }),
    ..Family::SHARED
};

/// The record of the rotary settings of each type of layer.
const RECORDS: &str = "rope_parameters";
/// Layers from one that sees all tokens to the next, if the file does not say.
const INTERVAL: usize = 3;
/// Tokens of a window, if the file does not say.
const WINDOW: usize = 128;

/// Kinds 0 and 1 see all tokens and a window. Kinds 2 and 3 are the same without a norm, for the first layer.
fn attention(base: DeepSpeedInferenceConfig, fields: &Fields<'_>) -> Result<FamilyAttention, ConfigError> {
    let flag = |key: &str| fields.flag(&[key]).map(|flag| flag.unwrap_or(false));
    let bias = flag("attention_bias")?;
    let layers = base.num_hidden_layers.unwrap_or(0);
    let config = base
        .with_triangular_masking(false)
        .with_qkv_bias(bias)
        .with_output_bias(bias)
        .with_norm_bias(flag("norm_bias")?);
    let records = fields.record(RECORDS)?;
    if let Some(records) = &records {
        records.check_keys(&["full_attention", "sliding_attention"], "a record for each type of layer")?;
    }
    let rope = |name: &str, key: &'static [&'static str], theta: f64| {
        let record = records.as_ref().map_or(Ok(None), |records| records.record(name))?;
        let keys = RopeKeys { theta: Setting::new(key, theta), ..RopeKeys::SHARED };
        Rope::of_record(fields, record.as_ref(), &keys, FAMILY.max_positions(fields)?)?.whole()
    };
    let full = rope("full_attention", &["global_rope_theta"], 160_000.0)?.halves(config.clone());
    let window = fields.positive(&["local_attention"])?.unwrap_or(WINDOW);
    let local = rope("sliding_attention", &["local_rope_theta"], 10_000.0)?
        .halves(config)
        .with_local_attention(true)
        .with_window_kind(WindowKind::Symmetric)
        .with_window_size(window);
    let first = [full.clone(), local.clone()].map(|kind| kind.with_pre_layer_norm(false));
    let interval = fields.positive(&["global_attn_every_n_layers"])?.unwrap_or(INTERVAL);
    let kinds = match LayerType::list(fields, layers)? {
        Some(types) => {
            let kind = |(layer, kind): (usize, LayerType)| kind.number() + if layer == 0 { 2 } else { 0 };
            LayerKinds::listed(types.into_iter().enumerate().map(kind))
        }
        None => LayerKinds::every(interval, 0, 1).after(2),
    };
    let [first_full, first_local] = first;
    Ok(FamilyAttention { kinds: vec![full, local, first_full, first_local], layers: kinds })
}
