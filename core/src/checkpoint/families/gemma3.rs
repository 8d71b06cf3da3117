//! The language model of Gemma 3: Gemma 2 with a norm of queries and keys in place of softcaps, and rotary settings by type of
//! layer.

use super::{gemma, gemma2, llama};
use crate::checkpoint::class::{Class, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::{LayerPaths, QkNormPaths};
use crate::checkpoint::layer_types::LayerType;
use crate::checkpoint::layered_rope::{LayeredBases, LayeredRope};
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::window;
use crate::qk_norm::{QkNorm, QkNormKind, QkNormWeights};

/// Layers from one that sees all tokens to the next, if `sliding_window_pattern` is not given.
const PATTERN: usize = 6;
const BASES: LayeredBases = LayeredBases { full: 1e6, sliding: Setting::new(&["rope_local_base_freq"], 10000.0) };

pub(super) static FAMILY: Family = Family {
    title: "Gemma 3 (text)",
    about: "norm of queries and keys, window in 5 of 6 layers, which have a rotary base of their own",
    model_types: &["gemma3_text"],
    class: Class {
        name: "Gemma3TextConfig",
        // The files of models that read images, too, leave out what is the default.
        sizes: Some([2304, 8, 26]),
        vocab_size: Setting::new(&["vocab_size"], 262208),
        max_positions: Setting::new(&["max_position_embeddings"], Some(131072)),
        ..gemma2::CLASS
    },
    reads: &[
        "_sliding_window_pattern",
        "attention_bias",
        "attn_logit_softcapping",
        "head_dim",
        "layer_types",
        "num_key_value_heads",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "sliding_window",
        "sliding_window_pattern",
    ],
    rope: Some(RopeKeys::SHARED),
    only: &[
        Only::flag("use_bidirectional_attention", false),
        Only::text("hidden_act", "gelu_pytorch_tanh"),
        Only::number("partial_rotary_factor", 1.0),
        Only::nothing("original_max_position_embeddings", "write it into the record of the rotary settings"),
    ],
    attention: |base, fields| {
        let norm = QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, base.layer_norm_eps).with_plus_one(true);
        let config = gemma2::attention(base, fields, None)?.with_qk_norm(Some(norm));
        let LayeredRope { full, sliding } = LayeredRope::read(fields, &BASES, FAMILY.max_positions(fields)?)?;
        let layers = LayerType::pattern(fields, config.num_hidden_layers.unwrap_or(0), PATTERN)?;
        let kinds = [llama::positions(config.clone(), full)?, llama::positions(config, sliding)?];
        window::attention(kinds, window::size(fields, Some(gemma2::WINDOW))?, layers)
    },
    layer: LayerPaths { qk_norm: Some(QkNormPaths::Whole(["self_attn.q_norm", "self_attn.k_norm"])), ..gemma::LAYER },
    decoder: Some(DecoderPaths { logit_softcap: Some(("final_logit_softcapping", None)), ..gemma2::DECODER }),
    ..Family::SHARED
};
