//! The language model of Gemma 4: heads of full layers have a size of their own, the last layers read the keys of earlier ones, and
//! each layer may have an embedding of the tokens.

use super::{gemma2, llama};
use crate::checkpoint::class::{Class, Setting};
use crate::checkpoint::decoder::{DecoderPaths, LayerInputPaths};
use crate::checkpoint::family::{Family, FamilyAttention};
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::layer_paths::{LayerPaths, QkNormPaths};
use crate::checkpoint::layer_types::LayerType;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::{Rope, RopeKeys};
use crate::config::DeepSpeedInferenceConfig;
use crate::error::{ConfigError, Origin};
use crate::fields::Fields;
use crate::kv_source::KvSource;
use crate::position::rotary::RopeScaling;
use crate::qk_norm::{QkNorm, QkNormKind, QkNormWeights};

/// Key/value heads, if `num_key_value_heads` is not given.
const KV_HEADS: usize = 4;
/// Features of a head in layers with a window, if `head_dim` is not given, and in the others, if `global_head_dim` is not.
const HEAD_DIMS: [usize; 2] = [256, 512];
/// Keys that a query sees in a layer with a window, if `sliding_window` is not given.
const WINDOW: usize = 512;
/// Layers from one that sees all tokens to the next, if `layer_types` is not given.
const PATTERN: usize = 6;
/// Kinds of layers that read the keys of another follow those of the layers with keys.
const SHARED: usize = 2;

pub(super) static FAMILY: Family = Family {
    title: "Gemma 4 (text)",
    about: "norm of queries, keys and values; window in 5 of 6 layers; the others have another head size, and keys that may be values; the \
            last layers read the keys of earlier ones; an embedding of the tokens for each layer; no experts",
    model_types: &["gemma4_text"],
    class: Class {
        name: "Gemma4TextConfig",
        vocab_size: Setting::new(&["vocab_size"], 262144),
        max_positions: Setting::new(&["max_position_embeddings"], Some(131072)),
        ..gemma2::CLASS
    },
    reads: &[
        "attention_bias",
        "attention_k_eq_v",
        "global_head_dim",
        "head_dim",
        "hidden_size_per_layer_input",
        "layer_types",
        "num_global_key_value_heads",
        "num_key_value_heads",
        "num_kv_shared_layers",
        "per_layer_config",
        "rope_parameters",
        "sliding_window",
        "use_double_wide_mlp",
        "vocab_size_per_layer_input",
    ],
    only: &[
        Only::flag("enable_moe_block", false),
        // Images see each other, and text is causal.
        Only::text("use_bidirectional_attention", "vision"),
    ],
    // Sizes of experts.
    harmless: &["expert_intermediate_size", "moe_intermediate_size", "num_experts", "top_k_experts"],
    attention,
    layer: LayerPaths { qk_norm: Some(QkNormPaths::Whole(["self_attn.q_norm", "self_attn.k_norm"])), ..llama::LAYER },
    decoder: Some(DecoderPaths {
        logit_softcap: Some(("final_logit_softcapping", None)),
        layer_factor: Some("layer_scalar"),
        ..gemma2::DECODER
    }),
    variant: Some(|fields, _, decoder| {
        let wide = fields.flag(&["use_double_wide_mlp"])?.unwrap_or(false);
        decoder.shared_mlp_widths = if wide { 2 } else { 1 };
        decoder.layer_inputs = layer_inputs(fields)?;
        Ok(())
    }),
    ..Family::SHARED
};

fn layer_inputs(fields: &Fields<'_>) -> Result<Option<LayerInputPaths>, ConfigError> {
    let size = fields.size(&["hidden_size_per_layer_input"])?.unwrap_or(256);
    let rows = fields.positive(&["vocab_size_per_layer_input"])?.unwrap_or(262144);
    Ok((size > 0).then_some(LayerInputPaths {
        size,
        rows,
        tokens: "embed_tokens_per_layer",
        projection: "per_layer_model_projection",
        norm: "per_layer_projection_norm",
        gate: "per_layer_input_gate",
        output: "per_layer_projection",
        output_norm: "post_per_layer_input_norm",
    }))
}

/// Full layers, layers with a window, and those of both that read the keys of another.
fn attention(base: DeepSpeedInferenceConfig, fields: &Fields<'_>) -> Result<FamilyAttention, ConfigError> {
    let count = base.num_hidden_layers.unwrap_or(0);
    let (layers, first) = layers(fields, count)?;
    let is_full = |layer: usize| layers.of(layer) % SHARED == 0;
    let norm = QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, base.layer_norm_eps).with_values(true);
    let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
    let config = base.with_qkv_bias(bias).with_output_bias(bias).with_score_factor(Some(1.0)).with_qk_norm(Some(norm));

    let kv_heads = fields.positive(&["num_key_value_heads"])?.unwrap_or(KV_HEADS);
    let head_dim = fields.positive(&["head_dim"])?.unwrap_or(HEAD_DIMS[0]);
    let alike = fields.flag(&["attention_k_eq_v"])?.unwrap_or(false);
    let global = full_sizes(fields, count, (head_dim, kv_heads), alike, is_full)?;
    let source = if alike { KvSource::KeysAreValues } else { KvSource::Own };
    let sized =
        |(head_dim, kv_heads): (usize, usize)| config.clone().with_head_dim(Some(head_dim)).with_num_kv(Some(kv_heads));
    let window = fields.positive(&["sliding_window"])?.unwrap_or(WINDOW);
    let [full_rope, sliding_rope] = rope(fields)?;
    let full = llama::positions(sized(global), full_rope)?.with_kv_source(source);
    let sliding = llama::positions(sized((head_dim, kv_heads)), sliding_rope)?;
    let mut kinds = vec![full, sliding.with_local_attention(true).with_window_size(window)];
    // A shared kind reads the last layer of its type before the first that shares. The search ends after one pattern.
    for kind in 0..kinds.len() {
        let is_used = layers.has(kind + SHARED, count);
        let of_layer = (0..first).rev().find(|&layer| layers.of(layer) == kind);
        match of_layer {
            Some(layer) => kinds.push(kinds[kind].clone().with_kv_source(KvSource::Layer(layer))),
            None if is_used => {
                let supported = "fewer: a layer of each type before those that share keys";
                return Err(fields.unsupported("num_kv_shared_layers", supported));
            }
            None => kinds.push(kinds[kind].clone()),
        }
    }
    Ok(FamilyAttention { kinds, layers })
}

/// The kinds of layers, and the first layer that reads the keys of another. The class makes the last layer a full one.
fn layers(fields: &Fields<'_>, count: usize) -> Result<(LayerKinds, usize), ConfigError> {
    const KEY: &str = "num_kv_shared_layers";
    let shared = fields.size(&[KEY])?.unwrap_or(0);
    let Some(first) = count.checked_sub(shared) else {
        return Err(fields.unsupported(KEY, &format!("at most {count}, the number of layers")));
    };
    let last = if shared > 0 { SHARED } else { 0 };
    if let Some(types) = LayerType::list(fields, count)? {
        let number = |(layer, kind): (usize, LayerType)| match layer + 1 == count {
            true => last,
            false => kind.number() + if layer < first { 0 } else { SHARED },
        };
        return Ok((LayerKinds::listed(types.into_iter().enumerate().map(number)), first));
    }
    // Patterns from a layer up to another, without a list as long as the file says.
    let run = |from: usize, to: usize, offset: usize| {
        let kind = |layer: usize| offset + usize::from(!(layer + 1).is_multiple_of(PATTERN));
        let pattern: Vec<usize> = (0..PATTERN).map(|layer| kind(from % PATTERN + layer)).collect();
        let length = to - from;
        let rest = pattern[..length % PATTERN].to_vec();
        [(pattern, (length / PATTERN) as u64), (rest, 1)]
    };
    let before_last = count.saturating_sub(1);
    let own = run(0, first.min(before_last), 0);
    let others = run(first.min(before_last), before_last, SHARED);
    Ok((LayerKinds::repeated(own.into_iter().chain(others).chain([(vec![last], 1)])), first))
}

/// Head size and key/value heads of full layers: keys of their own, or in `per_layer_config` an entry for each of these layers, all alike.
fn full_sizes(
    fields: &Fields<'_>,
    count: usize,
    own: (usize, usize),
    alike: bool,
    is_full: impl Fn(usize) -> bool,
) -> Result<(usize, usize), ConfigError> {
    const KEY: &str = "per_layer_config";
    let head_dim = fields.positive(&["global_head_dim"])?;
    let kv_heads = fields.positive(&["num_global_key_value_heads"])?.filter(|_| alike);
    let Some(records) = fields.record(KEY)? else {
        return Ok((head_dim.unwrap_or(HEAD_DIMS[1]), kv_heads.unwrap_or(own.1)));
    };
    let names: Vec<&str> = records.keys().collect();
    let full: Vec<String> =
        (0..count).filter(|&layer| is_full(layer)).take(names.len() + 1).map(|layer| layer.to_string()).collect();
    let refused = || fields.unsupported(KEY, "the same entry for each layer that sees all tokens, and no other");
    if full.len() != names.len() || full.iter().any(|layer| !names.contains(&layer.as_str())) {
        return Err(refused());
    }
    let mut all = None;
    for layer in &full {
        let record = records.record(layer)?.ok_or_else(refused)?;
        record.check_keys(&["head_dim", "num_key_value_heads"], "a layer of Gemma4TextConfig")?;
        let sizes = (record.positive(&["head_dim"])?, record.positive(&["num_key_value_heads"])?);
        if *all.get_or_insert(sizes) != sizes {
            return Err(refused());
        }
    }
    let sizes = all.map_or(own, |(head_dim, kv_heads)| (head_dim.unwrap_or(own.0), kv_heads.unwrap_or(own.1)));
    if head_dim.is_some_and(|given| given != sizes.0) || kv_heads.is_some_and(|given| given != sizes.1) {
        return Err(refused());
    }
    Ok(sizes)
}

/// The rotary settings of full layers, and of those with a window. Only whole records are replaced by the defaults.
fn rope(fields: &Fields<'_>) -> Result<[Rope; 2], ConfigError> {
    const TYPES: [&str; 2] = ["full_attention", "sliding_attention"];
    let Some(records) = fields.record("rope_parameters")? else {
        let scaling = RopeScaling::Proportional { factor: 1.0, partial_rotary_factor: 0.25 };
        let full = Rope { theta: 1e6, share: 1.0, scaling, sections: None };
        return Ok([full.clone(), Rope { theta: 1e4, scaling: RopeScaling::Default, ..full }]);
    };
    records.check_keys(&TYPES, "a record for each type of layer")?;
    let positions = FAMILY.max_positions(fields)?;
    let read = |key: &'static str| {
        let record = records.record(key)?.ok_or(ConfigError::Missing { key, origin: Origin::HuggingFace })?;
        Rope::of_record(fields, Some(&record), &RopeKeys::SHARED, positions)
    };
    Ok([read(TYPES[0])?, read(TYPES[1])?])
}
