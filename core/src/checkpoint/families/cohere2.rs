//! Cohere 2 (Command R7B and later): a window in three of four layers, and no positions in the others.

use super::{cohere, llama};
use crate::checkpoint::class::Class;
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_types::LayerType;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::window;

/// Keys that a query sees in a layer with a window, if `sliding_window` is not given.
const WINDOW: usize = 4096;
/// Layers from one that sees all tokens to the next, if `sliding_window_pattern` is not given.
const PATTERN: usize = 4;

pub(super) static FAMILY: Family = Family {
    title: "Cohere 2 (Command R7B, Command A)",
    about: "as Cohere; window in 3 of 4 layers, and no positions in the others",
    model_types: &["cohere2"],
    class: Class { name: "Cohere2Config", ..cohere::CLASS },
    reads: &[
        "_sliding_window_pattern",
        "attention_bias",
        "head_dim",
        "layer_types",
        "num_key_value_heads",
        "sliding_window",
        "sliding_window_pattern",
    ],
    rope: Some(RopeKeys::SHARED),
    // What the code of the class fixes, and the files say.
    only: &[
        Only::flag("use_gated_activation", true),
        Only::flag("use_parallel_block", true),
        Only::number("layer_switch", 4.0),
        Only::number("rotary_pct", 1.0),
        Only::text("order_of_interleaved_layers", "local_attn_first"),
        Only::text("position_embedding_type", "rope_gptj"),
    ],
    harmless: &["use_embedding_sharing", "use_parallel_embedding"],
    attention: |base, fields| {
        let rotary = cohere::attention(base, fields, FAMILY.read_rope(fields)?)?;
        let layers = LayerType::pattern(fields, rotary.num_hidden_layers.unwrap_or(0), PATTERN)?;
        let kinds = [rotary.clone().with_rotary_dim(None), rotary];
        window::attention(kinds, window::size(fields, Some(WINDOW))?, layers)
    },
    layer: llama::LAYER,
    decoder: Some(cohere::DECODER),
    ..Family::SHARED
};
