//! GPT-J.

use crate::checkpoint::family::{DecoderPaths, Defaults, Family, Flag, LayerPaths, QkvPaths};
use crate::layout::RotaryLayout;

/// Features of a head that rotate, if `rotary_dim` is not given.
const ROTARY_DIM: usize = 64;

pub(super) static FAMILY: Family = Family {
    model_types: &["gptj"],
    reads: &["rotary_dim"],
    harmless: &[
        "attn_pdrop",
        "embd_pdrop",
        "gradient_checkpointing",
        "n_ctx",
        "resid_pdrop",
        "rotary",
        "scale_attn_weights",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ],
    defaults: Defaults::SHARED,
    attention: |base, fields| {
        let dim = fields.size(&["rotary_dim"]).unwrap_or(ROTARY_DIM);
        let rotary = base.with_rotary(RotaryLayout::Interleaved, dim);
        Ok(rotary.with_qkv_bias(false).with_output_bias(false).into())
    },
    layer: LayerPaths {
        layers: "h",
        prefixes: &["transformer."],
        norm: Some("ln_1"),
        qkv: QkvPaths::projections("attn"),
        output: "attn.out_proj",
        ..LayerPaths::SHARED
    },
    positions: None,
    decoder: Some(DecoderPaths {
        tokens: "wte",
        final_norm: "ln_f",
        head_bias: true,
        up: "mlp.fc_in",
        down: "mlp.fc_out",
        parallel: Flag::Fixed(true),
        ..DecoderPaths::SHARED
    }),
};
