//! RoBERTa and XLM-RoBERTa: BERT whose positions count from the row after the token of padding.

use super::bert;
use crate::checkpoint::class::{Class, Setting};
use crate::checkpoint::encoder::{EncoderInput, EncoderPaths, PositionIds, TokenPaths};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::LayerPaths;

pub(super) static FAMILY: Family = Family {
    title: "RoBERTa",
    about: "BERT whose positions count from the token of padding, an encoder",
    model_types: &["roberta"],
    class: Class { name: "RobertaConfig", vocab_size: Setting::new(&["vocab_size"], 50265), ..bert::CLASS },
    ..SHARED
};

pub(super) static XLM: Family = Family {
    title: "XLM-RoBERTa",
    about: "RoBERTa with the tokens of many languages, an encoder",
    model_types: &["xlm-roberta"],
    class: Class { name: "XLMRobertaConfig", ..bert::CLASS },
    ..SHARED
};

const SHARED: Family = Family {
    only: bert::ONLY,
    harmless: &["output_past"],
    attention: |base, _| Ok(base.with_pre_layer_norm(false).with_triangular_masking(false).into()),
    layer: LayerPaths { prefixes: &["roberta."], ..bert::LAYER },
    positions: Some(bert::POSITIONS),
    encoder: Some(EncoderPaths {
        input: EncoderInput::Tokens(TokenPaths { position_ids: PositionIds::AfterPadding(1), ..bert::TOKENS }),
        heads: &["classifier.", "lm_head.", "qa_outputs."],
        ..bert::ENCODER
    }),
    ..Family::SHARED
};
