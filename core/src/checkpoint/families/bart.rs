//! BART.

use crate::checkpoint::class::Setting;
use crate::checkpoint::encoder_decoder::{
    BlockSettings, BranchPaths, EncoderDecoder, EncoderDecoderClass, MlpPaths, SourceInput, StackPaths,
};
use crate::checkpoint::family::PositionTable;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::only::Only;
use crate::error::ConfigError;
use crate::fields::Fields;

pub(super) static FAMILY: EncoderDecoder = EncoderDecoder {
    title: "BART",
    about: "post-norm, learned positions, norms of the embeddings, a bias of the logits",
    model_types: &["bart"],
    class: EncoderDecoderClass {
        name: "BartConfig",
        hidden_size: &["d_model", "hidden_size"],
        layers: [&["encoder_layers", "num_hidden_layers"], &["decoder_layers"]],
        same_layers: false,
        heads: [&["encoder_attention_heads", "num_attention_heads"], &["decoder_attention_heads"]],
        head_dim: None,
        mlp_size: [Setting::new(&["encoder_ffn_dim"], 4096), Setting::new(&["decoder_ffn_dim"], 4096)],
        vocab_size: Setting::new(&["vocab_size"], 50265),
        positions: Some([Setting::new(&["max_position_embeddings"], 1024); 2]),
        // The epsilon of BART is part of its code.
        epsilon: Setting::new(&[], 1e-5),
        start_token: Some(2),
        end_token: 2,
    },
    activation: ACTIVATION,
    reads: &[],
    // Models that the class once had, and has no more.
    only: &[
        Only::flag("add_bias_logits", false),
        Only::flag("add_final_layer_norm", false),
        Only::flag("do_blenderbot_90_layernorm", false),
        Only::flag("normalize_before", false),
        Only::flag("normalize_embedding", true),
        Only::flag("static_position_embeddings", false),
        Only::number("extra_pos_embeddings", 2.0),
    ],
    harmless: &[
        "classif_dropout",
        "decoder_layerdrop",
        "encoder_layerdrop",
        "force_bos_token_to_be_generated",
        "output_past",
        "prefix",
    ],
    attention: |base| base.with_pre_layer_norm(false),
    blocks,
    prefix: "model.",
    source: SourceInput::Tokens,
    shared: Some("shared"),
    scaled_embedding: Flag::Key("scale_embedding", false),
    relative: None,
    encoder: StackPaths {
        layers: "encoder.layers",
        tokens: Some("encoder.embed_tokens"),
        positions: Some(PositionTable { path: "encoder.embed_positions", offset: OFFSET }),
        input_norm: Some("encoder.layernorm_embedding"),
        attention: ATTENTION,
        cross: None,
        mlp: MLP,
        final_norm: None,
    },
    decoder: StackPaths {
        layers: "decoder.layers",
        tokens: Some("decoder.embed_tokens"),
        positions: Some(PositionTable { path: "decoder.embed_positions", offset: OFFSET }),
        input_norm: Some("decoder.layernorm_embedding"),
        attention: ATTENTION,
        cross: Some(CROSS),
        mlp: MLP,
        final_norm: None,
    },
    head: "lm_head",
    tied: Flag::Key("tie_word_embeddings", true),
    logit_bias: Some("final_logits_bias"),
    unused: &["decoder.version", "encoder.version"],
};

/// Rows at the start of a table of positions that no position uses.
const OFFSET: usize = 2;

pub(super) const ATTENTION: BranchPaths = BranchPaths {
    path: "self_attn",
    projections: ["q_proj", "k_proj", "v_proj", "out_proj"],
    norm: "self_attn_layer_norm",
};

pub(super) const CROSS: BranchPaths =
    BranchPaths { path: "encoder_attn", norm: "encoder_attn_layer_norm", ..ATTENTION };

pub(super) const MLP: MlpPaths = MlpPaths { norm: "final_layer_norm", up: "fc1", gated: None, down: "fc2", bias: true };

pub(super) const ACTIVATION: &str = "activation_function";

pub(super) fn blocks(fields: &Fields<'_>) -> Result<BlockSettings, ConfigError> {
    let activation = fields.text(&[ACTIVATION])?.unwrap_or("gelu").into();
    Ok(BlockSettings { activation, gated: false, scaled_output: false })
}
