//! DistilBERT: BERT without segments, under other names.

use super::bert;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::encoder::{BlockNorms, EncoderInput, EncoderPaths, TokenPaths};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};

pub(super) static FAMILY: Family = Family {
    title: "DistilBERT",
    about: "BERT without segments, an encoder",
    model_types: &["distilbert"],
    class: Class {
        name: "DistilBertConfig",
        hidden_size: &["dim", "hidden_size"],
        heads: &["n_heads", "num_attention_heads"],
        layers: &["n_layers", "num_hidden_layers"],
        mlp_size: Setting::new(&["hidden_dim"], MlpSize::Fixed(3072)),
        epsilon: Setting::new(&[], 1e-12),
        activation: Setting::new(&["activation"], "gelu"),
        ..bert::CLASS
    },
    // The table of positions is a parameter, whatever its first values were.
    harmless: &["output_past", "qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds", "tie_weights_"],
    attention: |base, _| Ok(base.with_pre_layer_norm(false).with_triangular_masking(false).into()),
    layer: LayerPaths {
        layers: "transformer.layer",
        prefixes: &["distilbert."],
        qkv: QkvPaths::Separate("attention", ["q_lin", "k_lin", "v_lin"]),
        output: "attention.out_lin",
        ..LayerPaths::SHARED
    },
    positions: Some(bert::POSITIONS),
    encoder: Some(EncoderPaths {
        input: EncoderInput::Tokens(TokenPaths { segments: None, ..bert::TOKENS }),
        input_norm: Some("embeddings.LayerNorm"),
        norms: BlockNorms::After { attention: "sa_layer_norm", mlp: "output_layer_norm" },
        up: "ffn.lin1",
        down: "ffn.lin2",
        heads: &[
            "classifier.",
            "pre_classifier.",
            "qa_outputs.",
            "vocab_layer_norm.",
            "vocab_projector.",
            "vocab_transform.",
        ],
        ..EncoderPaths::SHARED
    }),
    ..Family::SHARED
};
