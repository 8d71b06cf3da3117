//! The kind of attention in each layer, as a `config.json` lists it.

use serde_json::Value;

use super::local::LocalLayers;
use crate::error::ConfigError;
use crate::fields::{Fields, shown};

/// The attention of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerType {
    /// A token sees all tokens before it.
    Full,
    /// A token sees a window.
    Sliding,
}

impl LayerType {
    /// Names in a configuration, the older ones too.
    const NAMES: [(&str, Self); 3] =
        [("full_attention", Self::Full), ("sliding_attention", Self::Sliding), ("attention", Self::Full)];

    /// The list `layer_types` of a configuration with this number of layers; `None` if it is absent. No more entries are stored
    /// than the file has.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`] for another kind of layer, [`ConfigError::LayerCount`], [`ConfigError::WrongType`].
    pub fn list(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<Self>>, ConfigError> {
        const KEY: &str = "layer_types";
        let Some(list) = fields.list(KEY)? else { return Ok(None) };
        let types = list.iter().enumerate().map(|(layer, entry)| Self::of(entry, &fields.name(KEY), layer));
        let types = types.collect::<Result<Vec<_>, _>>()?;
        match types.len() == layers {
            true => Ok(Some(types)),
            false => Err(ConfigError::LayerCount { key: fields.name(KEY), listed: types.len() as u64, layers }),
        }
    }

    fn of(entry: &Value, key: &str, layer: usize) -> Result<Self, ConfigError> {
        let key = format!("{key}[{layer}]");
        let Some(name) = entry.as_str() else {
            return Err(ConfigError::WrongType { key, found: shown(entry), expected: "a text" });
        };
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, kind)| *kind).ok_or_else(|| ConfigError::Unsupported {
            key,
            value: shown(entry),
            supported: "\"full_attention\", \"sliding_attention\"".into(),
        })
    }
}

impl FromIterator<LayerType> for LocalLayers {
    fn from_iter<I: IntoIterator<Item = LayerType>>(types: I) -> Self {
        Self::Patterns(vec![(types.into_iter().map(|kind| kind == LayerType::Sliding).collect(), 1)])
    }
}
