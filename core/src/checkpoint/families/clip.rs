//! CLIP: an encoder of texts and an encoder of images, whose vectors are comparable.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::encoder::{
    BlockNorms, ClassPooling, EncoderInput, EncoderPaths, PatchPaths, PositionIds, TokenPaths, VectorProjection,
};
use crate::checkpoint::family::{Family, PositionTable};
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::pair::Pair;

pub(super) static TEXT: Family = Family {
    title: "CLIP (text)",
    about: "causal, the vector is that of the end token, an encoder",
    model_types: &["clip_text_model"],
    class: Class {
        name: "CLIPTextConfig",
        sizes: Some([512, 8, 12]),
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(2048)),
        vocab_size: Setting::new(&["vocab_size"], 49408),
        max_positions: Setting::new(&["max_position_embeddings"], Some(77)),
        activation: Setting::new(&["hidden_act"], "quick_gelu"),
        ..Class::SHARED
    },
    layer: LayerPaths { prefixes: &["text_model."], ..LAYER },
    positions: Some(POSITIONS),
    encoder: Some(EncoderPaths {
        pooling: ClassPooling::EndToken(49407),
        projection: Some(VectorProjection { path: "text_projection", size: PROJECTION }),
        ..TEXT_ENCODER
    }),
    ..Family::SHARED
};

pub(super) static VISION: Family = Family {
    title: "CLIP (images)",
    about: "a class token before the patches, an encoder",
    model_types: &["clip_vision_model"],
    class: Class {
        name: "CLIPVisionConfig",
        sizes: Some([768, 12, 12]),
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(3072)),
        vocab_size: Setting::new(&[], 0),
        max_positions: Setting::new(&[], None),
        activation: Setting::new(&["hidden_act"], "quick_gelu"),
        ..Class::SHARED
    },
    attention: |base, _| Ok(base.with_triangular_masking(false).into()),
    layer: LayerPaths { prefixes: &["vision_model."], ..LAYER },
    encoder: Some(EncoderPaths {
        input: EncoderInput::Patches(PatchPaths {
            projection: "embeddings.patch_embedding",
            bias: false,
            class_token: Some("embeddings.class_embedding"),
            positions: "embeddings.position_embedding.weight",
            image_size: 224,
            patch_size: 32,
            pairs: false,
        }),
        // The class spells it this way.
        input_norm: Some("pre_layrnorm"),
        pooling: ClassPooling::FirstToken { norm: Some("post_layernorm"), pooler: None },
        projection: Some(VectorProjection { path: "visual_projection", size: PROJECTION }),
        heads: &["classifier."],
        ..BLOCK
    }),
    ..Family::SHARED
};

pub(super) static PAIR: Pair = Pair {
    model_type: "clip",
    class: "CLIPConfig",
    text: &TEXT,
    vision: &VISION,
    older_records: true,
    reads: &["projection_dim"],
    harmless: &["logit_scale_init_value"],
    unused: &["logit_scale"],
};

const PROJECTION: Setting<usize> = Setting::new(&["projection_dim"], 512);

pub(super) const LAYER: LayerPaths = LayerPaths {
    layers: "encoder.layers",
    norm: Some("layer_norm1"),
    qkv: QkvPaths::projections("self_attn"),
    output: "self_attn.out_proj",
    ..LayerPaths::SHARED
};

pub(super) const POSITIONS: PositionTable = PositionTable { path: "embeddings.position_embedding", offset: 0 };

pub(super) const BLOCK: EncoderPaths = EncoderPaths {
    norms: BlockNorms::Before { mlp: "layer_norm2" },
    up: "mlp.fc1",
    down: "mlp.fc2",
    ..EncoderPaths::SHARED
};

pub(super) const TEXT_ENCODER: EncoderPaths = EncoderPaths {
    input: EncoderInput::Tokens(TokenPaths {
        words: "embeddings.token_embedding",
        segments: None,
        position_ids: PositionIds::Slots,
    }),
    final_norm: Some("final_layer_norm"),
    ..BLOCK
};
