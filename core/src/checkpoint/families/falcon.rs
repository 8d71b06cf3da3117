//! Falcon, in its three layouts: one key/value head or one for each query head, or the groups of the new architecture.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::layout::QkvLayout;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::error::ConfigError;
use crate::fields::Fields;

const BIAS: Flag = Flag::Key("bias", false);
const GROUPED: Flag = Flag::Key("new_decoder_architecture", false);
const MULTI_QUERY: Flag = Flag::Key("multi_query", true);
const PARALLEL: Flag = Flag::Key("parallel_attn", true);

pub(super) static FAMILY: Family = Family {
    title: "Falcon",
    about: "parallel residual with one norm or two, QKV by groups of heads; in some ALiBi",
    model_types: &["falcon"],
    class: Class {
        name: "FalconConfig",
        hidden_size: &["hidden_size", "n_embed"],
        mlp_size: Setting::new(&["ffn_hidden_size"], MlpSize::TimesHidden(4)),
        vocab_size: Setting::new(&["vocab_size"], 65024),
        max_positions: Setting::new(&["max_position_embeddings"], Some(2048)),
        epsilon: Setting::new(&["layer_norm_epsilon"], 1e-5),
        activation: Setting::new(&["activation"], "gelu"),
        ..Class::SHARED
    },
    reads: &["alibi", "multi_query", "new_decoder_architecture", "num_kv_heads", "num_ln_in_parallel_attn"],
    rope: Some(RopeKeys::SHARED),
    only: &[Only::flag("apply_residual_connection_post_layernorm", false)],
    // Its product with the hidden size is `ffn_hidden_size`, which the class reads.
    harmless: &["ff_factor"],
    attention: |base, fields| {
        let (bias, heads) = (BIAS.of(fields)?, base.heads);
        let stated = fields.positive(&["num_kv_heads"])?;
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias);
        config.num_kv = match (GROUPED.of(fields)?, MULTI_QUERY.of(fields)?) {
            (true, _) => stated,
            (false, true) => Some(1),
            (false, false) => Some(heads),
        };
        let rope = FAMILY.read_rope(fields)?.whole()?;
        Ok(match fields.flag(&["alibi"])?.unwrap_or(false) {
            true => {
                // The class adds ALiBi to the products before it divides them by the root of the head size.
                let factor = 1.0 / (config.head_size().max(1) as f64).sqrt();
                config.with_bigscience_bloom(true).with_alibi_factor(factor)
            }
            false => rope.halves(config),
        }
        .into())
    },
    layer: LayerPaths {
        layers: "h",
        prefixes: &["transformer."],
        norm: Some("input_layernorm"),
        // One group of all queries, or a group for each query, are special cases.
        qkv: QkvPaths::Fused("self_attention.query_key_value", QkvLayout::PerGroup),
        output: "self_attention.dense",
        ..LayerPaths::SHARED
    },
    decoder: Some(DecoderPaths {
        tokens: "word_embeddings",
        final_norm: "ln_f",
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
        mlp_bias: BIAS,
        parallel: PARALLEL,
        ..DecoderPaths::SHARED
    }),
    variant: Some(|fields, layer, decoder| {
        match norms(fields)? {
            Norms::One => {}
            Norms::Two => (layer.norm, decoder.mlp_norm) = (Some("ln_attn"), Some("ln_mlp")),
            Norms::Sequential => decoder.mlp_norm = Some("post_attention_layernorm"),
        }
        Ok(())
    }),
    ..Family::SHARED
};

/// The norms of a block.
enum Norms {
    /// One for attention and MLP.
    One,
    /// One for attention, and one for the MLP, which reads the input of the block.
    Two,
    /// One for attention, and one for the MLP, which follows attention.
    Sequential,
}

/// The norms that the class builds. It fails in the forward pass for other combinations.
fn norms(fields: &Fields<'_>) -> Result<Norms, ConfigError> {
    const COUNT: &str = "num_ln_in_parallel_attn";
    let count = fields.positive(&[COUNT])?;
    match (GROUPED.of(fields)?, PARALLEL.of(fields)?, count) {
        (true, true, None | Some(2)) => Ok(Norms::Two),
        (_, true, None | Some(1)) => Ok(Norms::One),
        (true, false, _) => Err(fields.unsupported("parallel_attn", "true with `new_decoder_architecture`")),
        (false, false, _) => Ok(Norms::Sequential),
        (true, true, Some(_)) => Err(fields.unsupported(COUNT, "1, 2")),
        (false, true, Some(_)) => Err(fields.unsupported(COUNT, "1 without `new_decoder_architecture`")),
    }
}
