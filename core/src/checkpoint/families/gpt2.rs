//! GPT-2.

use crate::checkpoint::family::{DecoderPaths, Defaults, Family, LayerPaths, PositionTable, QkvPaths};
use crate::checkpoint::layout::QkvLayout;
use crate::layout::Orientation;

pub(super) static FAMILY: Family = Family {
    model_types: &["gpt2"],
    reads: &["scale_attn_weights", "scale_attn_by_inverse_layer_idx"],
    harmless: &[
        // The tensors of a cross attention would be reported as unused.
        "add_cross_attention",
        "attn_pdrop",
        "embd_pdrop",
        "n_ctx",
        // It moves a factor within the same product.
        "reorder_and_upcast_attn",
        "resid_pdrop",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ],
    defaults: Defaults::SHARED,
    attention: |base, fields| {
        let inverse_layer = fields.flag("scale_attn_by_inverse_layer_idx", false);
        let scaled = base.with_scale_attention(fields.flag("scale_attn_weights", true));
        Ok(scaled.with_scale_attn_by_inverse_layer_idx(inverse_layer).into())
    },
    layer: LayerPaths {
        layers: "h",
        prefixes: &["transformer."],
        norm: Some("ln_1"),
        qkv: QkvPaths::Fused("attn.c_attn", QkvLayout::Concat),
        output: "attn.c_proj",
        orientation: Orientation::InputOutput, // its `Conv1D`
    },
    positions: Some(PositionTable { path: "wpe", offset: 0 }),
    decoder: Some(DecoderPaths {
        tokens: "wte",
        final_norm: "ln_f",
        mlp_norm: Some("ln_2"),
        up: "mlp.c_fc",
        down: "mlp.c_proj",
        ..DecoderPaths::SHARED
    }),
};
