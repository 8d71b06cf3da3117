//! SigLIP: CLIP whose texts see their padding, and whose images have no class token.

use super::clip;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::encoder::{ClassPooling, EncoderInput, EncoderPaths, PatchPaths};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::LayerPaths;
use crate::checkpoint::only::Only;
use crate::checkpoint::pair::Pair;

pub(super) static TEXT: Family = Family {
    title: "SigLIP (text)",
    about: "the vector is that of the last token, padding included, an encoder",
    model_types: &["siglip_text_model"],
    class: Class {
        name: "SiglipTextConfig",
        vocab_size: Setting::new(&["vocab_size"], 32000),
        max_positions: Setting::new(&["max_position_embeddings"], Some(64)),
        ..CLASS
    },
    attention: |base, _| Ok(base.with_triangular_masking(false).into()),
    layer: LayerPaths { prefixes: &["text_model."], ..clip::LAYER },
    positions: Some(clip::POSITIONS),
    encoder: Some(EncoderPaths {
        pooling: ClassPooling::LastToken { projection: "head", size: "projection_size", padding: 1 },
        ..clip::TEXT_ENCODER
    }),
    ..Family::SHARED
};

pub(super) static VISION: Family = Family {
    title: "SigLIP (images)",
    about: "no class token, the vector is attention of a learned query, an encoder",
    model_types: &["siglip_vision_model"],
    class: Class { name: "SiglipVisionConfig", max_positions: Setting::new(&[], None), ..CLASS },
    // Without its head the class has no vector.
    only: &[Only::flag("vision_use_head", true)],
    attention: |base, _| Ok(base.with_triangular_masking(false).into()),
    layer: LayerPaths { prefixes: &["vision_model."], ..clip::LAYER },
    encoder: Some(EncoderPaths {
        input: EncoderInput::Patches(PatchPaths {
            projection: "embeddings.patch_embedding",
            bias: true,
            class_token: None,
            positions: "embeddings.position_embedding.weight",
            image_size: 224,
            patch_size: 16,
            pairs: false,
        }),
        final_norm: Some("post_layernorm"),
        pooling: ClassPooling::Probe("head"),
        heads: &["classifier."],
        ..clip::BLOCK
    }),
    ..Family::SHARED
};

pub(super) static PAIR: Pair = Pair {
    model_type: "siglip",
    class: "SiglipConfig",
    text: &TEXT,
    vision: &VISION,
    older_records: false,
    reads: &[],
    harmless: &[],
    unused: &["logit_bias", "logit_scale"],
};

const CLASS: Class = Class {
    sizes: Some([768, 12, 12]),
    mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(3072)),
    vocab_size: Setting::new(&[], 0),
    epsilon: Setting::new(&["layer_norm_eps"], 1e-6),
    activation: Setting::new(&["hidden_act"], "gelu_pytorch_tanh"),
    ..Class::SHARED
};
