//! Whisper, which writes down speech.

use super::bart;
use crate::checkpoint::class::Setting;
use crate::checkpoint::encoder_decoder::{EncoderDecoder, EncoderDecoderClass, SourceInput, StackPaths};
use crate::checkpoint::family::PositionTable;
use crate::checkpoint::flag::Flag;

pub(super) static FAMILY: EncoderDecoder = EncoderDecoder {
    title: "Whisper",
    about: "convolutions over features of sound, learned positions, keys without a bias",
    model_types: &["whisper"],
    class: EncoderDecoderClass {
        name: "WhisperConfig",
        hidden_size: &["d_model", "hidden_size"],
        layers: [&["encoder_layers", "num_hidden_layers"], &["decoder_layers"]],
        same_layers: false,
        heads: [
            &["encoder_attention_heads", "num_attention_heads", "num_key_value_heads"],
            &["decoder_attention_heads"],
        ],
        head_dim: None,
        mlp_size: [Setting::new(&["encoder_ffn_dim"], 1536), Setting::new(&["decoder_ffn_dim"], 1536)],
        vocab_size: Setting::new(&["vocab_size"], 51865),
        positions: Some([Setting::new(&["max_source_positions"], 1500), Setting::new(&["max_target_positions"], 448)]),
        // The epsilon of Whisper is part of its code.
        epsilon: Setting::new(&[], 1e-5),
        start_token: Some(50257),
        end_token: 50256,
    },
    activation: bart::ACTIVATION,
    reads: &[],
    only: &[],
    harmless: &[
        // The class computes a factor from it and does not use it.
        "scale_embedding",
        // Masks and drops of training, a head for classification, and what `generate` of the class does.
        "apply_spec_augment",
        "classifier_proj_size",
        "decoder_layerdrop",
        "encoder_layerdrop",
        "forced_decoder_ids",
        "mask_feature_length",
        "mask_feature_min_masks",
        "mask_feature_prob",
        "mask_time_length",
        "mask_time_min_masks",
        "mask_time_prob",
        "median_filter_width",
        "use_weighted_layer_sum",
    ],
    attention: |base| base.with_key_bias(false),
    blocks: bart::blocks,
    prefix: "model.",
    source: SourceInput::Features {
        convolutions: ["encoder.conv1", "encoder.conv2"],
        bins: Setting::new(&["num_mel_bins"], 80),
    },
    shared: None,
    scaled_embedding: Flag::Fixed(false),
    relative: None,
    encoder: StackPaths {
        layers: "encoder.layers",
        tokens: None,
        positions: Some(PositionTable { path: "encoder.embed_positions", offset: 0 }),
        input_norm: None,
        attention: bart::ATTENTION,
        cross: None,
        mlp: bart::MLP,
        final_norm: Some("encoder.layer_norm"),
    },
    decoder: StackPaths {
        layers: "decoder.layers",
        tokens: Some("decoder.embed_tokens"),
        positions: Some(PositionTable { path: "decoder.embed_positions", offset: 0 }),
        input_norm: None,
        attention: bart::ATTENTION,
        cross: Some(bart::CROSS),
        mlp: bart::MLP,
        final_norm: Some("decoder.layer_norm"),
    },
    head: "proj_out",
    tied: Flag::Key("tie_word_embeddings", true),
    logit_bias: None,
    unused: &[],
};
