//! ViT, an encoder of images.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::encoder::{BlockNorms, ClassPooling, EncoderInput, EncoderPaths, PatchPaths};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};

pub(super) static FAMILY: Family = Family {
    title: "ViT",
    about: "a class token before the patches, in some a pooler, an encoder",
    model_types: &["vit"],
    class: Class {
        name: "ViTConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(3072)),
        vocab_size: Setting::new(&[], 0),
        max_positions: Setting::new(&[], None),
        epsilon: Setting::new(&["layer_norm_eps"], 1e-12),
        ..Class::SHARED
    },
    reads: &["qkv_bias"],
    harmless: &["encoder_stride"],
    attention: |base, fields| {
        let bias = fields.flag(&["qkv_bias"])?.unwrap_or(true);
        Ok(base.with_triangular_masking(false).with_qkv_bias(bias).into())
    },
    layer: LayerPaths {
        layers: "encoder.layer",
        prefixes: &["vit."],
        norm: Some("layernorm_before"),
        qkv: QkvPaths::Separate("attention.attention", ["query", "key", "value"]),
        output: "attention.output.dense",
        ..LayerPaths::SHARED
    },
    encoder: Some(EncoderPaths {
        input: EncoderInput::Patches(PatchPaths {
            projection: "embeddings.patch_embeddings.projection",
            bias: true,
            class_token: Some("embeddings.cls_token"),
            positions: "embeddings.position_embeddings",
            image_size: 224,
            patch_size: 16,
            pairs: true,
        }),
        norms: BlockNorms::Before { mlp: "layernorm_after" },
        up: "intermediate.dense",
        down: "output.dense",
        final_norm: Some("layernorm"),
        pooling: ClassPooling::FirstToken { norm: None, pooler: Some("pooler.dense") },
        unused: &["embeddings.mask_token"],
        heads: &["classifier.", "decoder."],
        ..EncoderPaths::SHARED
    }),
    ..Family::SHARED
};
