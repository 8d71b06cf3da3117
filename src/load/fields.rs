//! The fields of a Hugging Face configuration.

use serde_json::Value;

use crate::config::DeepSpeedInferenceConfig;
use crate::error::{ConfigError, Origin};
use crate::position::rotary::RopeScaling;

/// The fields of a configuration, under the names that the families give them.
pub(super) struct Fields<'a>(pub(super) &'a Value);

impl<'a> Fields<'a> {
    fn first(&self, names: &[&str]) -> Option<&'a Value> {
        names.iter().filter_map(|name| self.0.get(name)).find(|value| !value.is_null())
    }

    pub(super) fn size(&self, names: &[&str]) -> Option<usize> {
        self.first(names)?.as_u64().map(|size| size as usize)
    }

    /// One size or a list of them.
    pub(super) fn sizes(&self, name: &str) -> Vec<usize> {
        match self.first(&[name]) {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_u64).map(|size| size as usize).collect(),
            Some(value) => value.as_u64().map(|size| size as usize).into_iter().collect(),
            None => Vec::new(),
        }
    }

    pub(super) fn number(&self, names: &[&str]) -> Option<f64> {
        self.first(names)?.as_f64()
    }

    pub(super) fn text(&self, names: &[&str]) -> Option<&'a str> {
        self.first(names)?.as_str()
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> bool {
        self.first(&[name]).and_then(Value::as_bool).unwrap_or(default)
    }

    pub(super) fn required(&self, key: &'static str, names: &[&str]) -> Result<usize, ConfigError> {
        self.size(names).ok_or(ConfigError::Missing { key, origin: Origin::HuggingFace })
    }

    /// A number of `rope_parameters` (or of the configuration itself, where older versions keep it).
    pub(super) fn rope_number(&self, name: &str) -> Option<f64> {
        let inside = ["rope_parameters", "rope_scaling"].iter().filter_map(|record| self.0.get(record)?.get(name));
        inside.chain(self.0.get(name)).find_map(Value::as_f64)
    }

    pub(super) fn rotary_halves(
        &self,
        base: DeepSpeedInferenceConfig,
        share: f64,
        trained: Option<usize>,
    ) -> Result<DeepSpeedInferenceConfig, ConfigError> {
        let record = self.first(&["rope_parameters", "rope_scaling"]).unwrap_or(&Value::Null);
        let theta = self.rope_number("rope_theta").or(self.number(&["rotary_emb_base"])).unwrap_or(10000.0);
        let dim = (base.head_size() as f64 * share) as usize;
        Ok(base
            .with_rotary_dim(Some(dim))
            .with_rotate_half(true)
            .with_rotate_every_two(false)
            .with_rope_theta(theta)
            .with_rope_scaling(RopeScaling::from_json(record, trained)?))
    }

    /// `[[["global", "local"], 12]]`: a pattern and how often it repeats; or the expanded `attention_layers`.
    pub(super) fn gpt_neo_layers(&self, layers: usize) -> Vec<bool> {
        let is_local = |kind: &Value| kind.as_str() == Some("local");
        if let Some(list) = self.first(&["attention_layers"]).and_then(Value::as_array) {
            return list.iter().map(is_local).collect();
        }
        let types = self.first(&["attention_types"]).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut local = Vec::with_capacity(layers);
        for entry in &types {
            let pattern = entry.get(0).and_then(Value::as_array).cloned().unwrap_or_default();
            let times = entry.get(1).and_then(Value::as_u64).unwrap_or(1);
            for _ in 0..times {
                local.extend(pattern.iter().map(is_local));
            }
        }
        if local.is_empty() {
            local.extend((0..layers).map(|layer| layer % 2 == 1));
        }
        local
    }
}
