//! T5, T5 1.1, Flan-T5 and mT5.

use crate::checkpoint::class::Setting;
use crate::checkpoint::encoder_decoder::{
    BlockSettings, BranchPaths, EncoderDecoder, EncoderDecoderClass, MlpPaths, RelativePaths, SourceInput, StackPaths,
};
use crate::checkpoint::flag::Flag;
use crate::config::NormType;
use crate::error::ConfigError;
use crate::fields::Fields;

pub(super) static FAMILY: EncoderDecoder = T5;

const T5: EncoderDecoder = EncoderDecoder {
    title: "T5, T5 1.1, Flan-T5",
    about: "relative positions, scores are not scaled, RMS norms, in some a gate",
    model_types: &["t5"],
    class: EncoderDecoderClass {
        name: "T5Config",
        hidden_size: &["d_model", "hidden_size"],
        layers: [&["num_layers", "num_hidden_layers"], &["num_decoder_layers"]],
        same_layers: true,
        heads: [HEADS; 2],
        head_dim: Some(Setting::new(&["d_kv", "head_dim"], 64)),
        mlp_size: [Setting::new(&["d_ff"], 2048); 2],
        vocab_size: Setting::new(&["vocab_size"], 32128),
        positions: None,
        epsilon: Setting::new(&["layer_norm_epsilon"], 1e-6),
        start_token: None,
        end_token: 1,
    },
    activation: PROJECTION,
    reads: &[DENSE, GATED, SCALED],
    only: &[],
    harmless: &["dropout_rate", "n_positions", "output_past"],
    attention: |base| {
        base.with_norm_type(NormType::RMSNorm).with_scale_attention(false).with_qkv_bias(false).with_output_bias(false)
    },
    blocks,
    prefix: "",
    source: SourceInput::Tokens,
    shared: Some("shared"),
    scaled_embedding: Flag::Fixed(false),
    relative: Some(RelativePaths {
        table: "layer.0.SelfAttention.relative_attention_bias",
        buckets: Setting::new(&["relative_attention_num_buckets"], 32),
        max_distance: Setting::new(&["relative_attention_max_distance"], 128),
    }),
    encoder: StackPaths {
        layers: "encoder.block",
        tokens: Some("encoder.embed_tokens"),
        positions: None,
        input_norm: None,
        attention: ATTENTION,
        cross: None,
        mlp: MlpPaths {
            norm: "layer.1.layer_norm",
            up: "layer.1.DenseReluDense.wi",
            gated: Some(["layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"]),
            down: "layer.1.DenseReluDense.wo",
            bias: false,
        },
        final_norm: Some("encoder.final_layer_norm"),
    },
    decoder: StackPaths {
        layers: "decoder.block",
        tokens: Some("decoder.embed_tokens"),
        positions: None,
        input_norm: None,
        attention: ATTENTION,
        cross: Some(BranchPaths { path: "layer.1.EncDecAttention", norm: "layer.1.layer_norm", ..ATTENTION }),
        mlp: MlpPaths {
            norm: "layer.2.layer_norm",
            up: "layer.2.DenseReluDense.wi",
            gated: Some(["layer.2.DenseReluDense.wi_0", "layer.2.DenseReluDense.wi_1"]),
            down: "layer.2.DenseReluDense.wo",
            bias: false,
        },
        final_norm: Some("decoder.final_layer_norm"),
    },
    head: "lm_head",
    // The class ties what a checkpoint lacks, whatever `tie_word_embeddings` says.
    tied: Flag::Fixed(true),
    logit_bias: None,
    unused: &["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
};

/// T5 1.1 with another vocabulary, whose class never scales the states of the decoder.
pub(super) static MULTILINGUAL: EncoderDecoder = EncoderDecoder {
    title: "mT5",
    about: "relative positions, scores are not scaled, RMS norms, gated",
    model_types: &["mt5"],
    class: EncoderDecoderClass {
        name: "MT5Config",
        mlp_size: [Setting::new(&["d_ff"], 1024); 2],
        vocab_size: Setting::new(&["vocab_size"], 250_112),
        start_token: Some(0),
        ..T5.class
    },
    reads: &[DENSE, GATED],
    blocks: |fields| {
        let (activation, gated) = mlp(fields, "gated-gelu")?;
        Ok(BlockSettings { activation, gated, scaled_output: false })
    },
    ..T5
};

const HEADS: &[&str] = &["num_heads", "num_attention_heads"];
const ATTENTION: BranchPaths =
    BranchPaths { path: "layer.0.SelfAttention", projections: ["q", "k", "v", "o"], norm: "layer.0.layer_norm" };
const DENSE: &str = "dense_act_fn";
const GATED: &str = "is_gated_act";
const PROJECTION: &str = "feed_forward_proj";
const SCALED: &str = "scale_decoder_outputs";

fn blocks(fields: &Fields<'_>) -> Result<BlockSettings, ConfigError> {
    let (activation, gated) = mlp(fields, "relu")?;
    // Files from before that key said it with the other.
    let tied = fields.flag(&["tie_word_embeddings"])?.unwrap_or(true);
    let scaled_output = fields.flag(&[SCALED])?.unwrap_or(tied);
    Ok(BlockSettings { activation, gated, scaled_output })
}

/// The activation, with `gated-` before it if the MLP has a gate, is one key. Files repeat what the class makes of it, and the class
/// would take their word.
fn mlp(fields: &Fields<'_>, default: &str) -> Result<(String, bool), ConfigError> {
    let named = fields.text(&[PROJECTION])?.unwrap_or(default);
    let (gated, activation) = match named.split_once('-') {
        None => (false, named),
        Some(("gated", activation)) if !activation.contains('-') => (true, activation),
        Some(_) => return Err(fields.unsupported(PROJECTION, "an activation, or `gated-` and an activation")),
    };
    let activation = if named == "gated-gelu" { "gelu_new" } else { activation };
    if fields.text(&[DENSE])?.is_some_and(|dense| dense != activation) {
        return Err(fields.unsupported(DENSE, &format!("\"{activation}\", as `{PROJECTION}` says")));
    }
    if fields.flag(&[GATED])?.is_some_and(|flag| flag != gated) {
        return Err(fields.unsupported(GATED, &format!("{gated}, as `{PROJECTION}` says")));
    }
    Ok((activation.into(), gated))
}
