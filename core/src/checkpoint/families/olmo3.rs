//! OLMo 3: OLMo 2 with a window in three of four layers, and rotary scaling in the others only.

use super::{llama, olmo2};
use crate::checkpoint::class::{Class, Setting};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::layer_types::LayerType;
use crate::checkpoint::layered_rope::{LayeredBases, LayeredRope};
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::window;

/// Keys that a query sees in a layer with a window, if `sliding_window` is not given.
const WINDOW: usize = 4096;
const BASES: LayeredBases = LayeredBases { full: 5e5, sliding: Setting::new(&[], 5e5) };

pub(super) static FAMILY: Family = Family {
    title: "OLMo 3",
    about: "OLMo 2 with a window in 3 of 4 layers, and rotary scaling in the others",
    model_types: &["olmo3"],
    class: Class { name: "Olmo3Config", ..olmo2::CLASS },
    reads: &["attention_bias", "head_dim", "layer_types", "num_key_value_heads", "sliding_window"],
    rope: Some(RopeKeys::SHARED),
    only: &[
        Only::number("partial_rotary_factor", 1.0),
        Only::nothing("original_max_position_embeddings", "write it into the record of the rotary settings"),
    ],
    attention: |base, fields| {
        let config = olmo2::attention(base, fields)?;
        let LayeredRope { full, sliding } = LayeredRope::read(fields, &BASES, FAMILY.max_positions(fields)?)?;
        let types = LayerType::list(fields, config.num_hidden_layers.unwrap_or(0))?;
        let layers = types.map_or(LayerKinds::every(4, 0, 1), |types| types.into_iter().collect());
        let kinds = [llama::positions(config.clone(), full)?, llama::positions(config, sliding)?];
        window::attention(kinds, window::size(fields, Some(WINDOW))?, layers)
    },
    layer: olmo2::LAYER,
    decoder: Some(olmo2::DECODER),
    ..Family::SHARED
};
