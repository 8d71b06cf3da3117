//! GLM-4-9B: GLM-4 without the norms after the branches.

use super::{glm4, llama, rotary};
use crate::checkpoint::class::Class;
use crate::checkpoint::decoder::{DecoderPaths, Gate};
use crate::checkpoint::family::Family;
use crate::checkpoint::rope::RopeKeys;

pub(super) static FAMILY: Family = Family {
    title: "GLM-4 (9B)",
    about: "interleaved partial rotary, gate and MLP in one matrix",
    model_types: &["glm"],
    class: Class { name: "GlmConfig", ..glm4::CLASS },
    reads: glm4::READS,
    rope: Some(RopeKeys { share: rotary::share(0.5), ..RopeKeys::SHARED }),
    attention: |base, fields| glm4::attention(base, fields, FAMILY.read_rope(fields)?),
    layer: llama::LAYER,
    decoder: Some(DecoderPaths { gate: Gate::WithUp, up: "mlp.gate_up_proj", ..llama::DECODER }),
    ..Family::SHARED
};
