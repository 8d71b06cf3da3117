//! Ministral: Mistral, where `layer_types` says which layers have a window.

use super::{llama, mistral};
use crate::checkpoint::class::Class;
use crate::checkpoint::family::Family;
use crate::checkpoint::rope::RopeKeys;

pub(super) static FAMILY: Family = Family {
    title: "Ministral",
    about: "window in some layers",
    model_types: &["ministral"],
    class: Class { name: "MinistralConfig", ..mistral::CLASS },
    reads: mistral::READS,
    rope: Some(RopeKeys::SHARED),
    only: mistral::ONLY,
    harmless: llama::HARMLESS,
    attention: |base, fields| mistral::attention(base, fields, &FAMILY),
    layer: llama::LAYER,
    decoder: Some(llama::DECODER),
    ..Family::SHARED
};
