//! The kind of attention in each layer, as a `config.json` lists it.

use serde_json::Value;

use super::layer_kinds::LayerKinds;
use crate::error::ConfigError;
use crate::fields::{Fields, shown};

/// The attention of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerType {
    /// A token sees all tokens before it.
    Full,
    /// A token sees a window.
    Sliding,
    /// A token sees its chunk.
    Chunked,
}

impl LayerType {
    /// Names in a configuration, the older ones too.
    const NAMES: [(&str, Self); 4] = [
        ("full_attention", Self::Full),
        ("sliding_attention", Self::Sliding),
        ("chunked_attention", Self::Chunked),
        ("attention", Self::Full),
    ];
    /// The key of the list.
    const KEY: &str = "layer_types";

    /// The list `layer_types` of a configuration with this number of layers, of layers that see all tokens or a window; `None` if it is
    /// absent. No more entries are stored than the file has.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`] for another kind of layer, [`ConfigError::LayerCount`], [`ConfigError::WrongType`].
    pub fn list(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<Self>>, ConfigError> {
        Self::list_with(Self::Sliding, fields, layers)
    }

    /// The same, of layers that see all tokens, or those of the type `other`.
    ///
    /// # Errors
    /// Those of [`list`](Self::list).
    pub fn list_with(other: Self, fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<Self>>, ConfigError> {
        let Some(list) = fields.list(Self::KEY)? else { return Ok(None) };
        let types = list.iter().enumerate().map(|(layer, entry)| other.of(entry, &fields.name(Self::KEY), layer));
        let types = types.collect::<Result<Vec<_>, _>>()?;
        match types.len() == layers {
            true => Ok(Some(types)),
            false => Err(ConfigError::LayerCount { key: fields.name(Self::KEY), listed: types.len() as u64, layers }),
        }
    }

    /// The kinds of layers that repeat after the number of layers in `sliding_window_pattern`, of which the last sees all tokens:
    /// kind 0. The others are of kind 1. `default` is what absence of the key means. A list `layer_types` takes the place of the
    /// pattern, and must agree with it if both are given.
    ///
    /// # Errors
    /// Those of [`list`](Self::list) and [`Fields::positive`]; [`ConfigError::Spellings`].
    pub(super) fn pattern(fields: &Fields<'_>, layers: usize, default: usize) -> Result<LayerKinds, ConfigError> {
        const PATTERN: &str = "sliding_window_pattern";
        // `transformers` writes this one and does not read it.
        const WRITTEN: &str = "_sliding_window_pattern";
        let stated = fields.positive(&[PATTERN])?;
        let written = fields.positive(&[WRITTEN])?;
        let pattern = LayerKinds::every(stated.unwrap_or(default), 0, 1);
        match Self::list(fields, layers)? {
            Some(types) => {
                let differs = |(layer, kind): (usize, &Self)| pattern.of(layer) != kind.number();
                match stated.is_some() && types.iter().enumerate().any(differs) {
                    true => Err(fields.conflict(fields, [Self::KEY, PATTERN])),
                    false => Ok(types.into_iter().collect()),
                }
            }
            None if written.is_some_and(|written| written != stated.unwrap_or(default)) => {
                Err(fields.unsupported(WRITTEN, &format!("{}; write `{PATTERN}`", stated.unwrap_or(default))))
            }
            None => Ok(pattern),
        }
    }

    /// 0 for a layer that sees all tokens, 1 for one with a window.
    pub(super) fn number(self) -> usize {
        usize::from(self != Self::Full)
    }

    /// The type of a layer, which sees all tokens or is of this type.
    fn of(self, entry: &Value, key: &str, layer: usize) -> Result<Self, ConfigError> {
        let key = format!("{key}[{layer}]");
        let Some(name) = entry.as_str() else {
            return Err(ConfigError::WrongType { key, found: shown(entry), expected: "a text" });
        };
        let mut accepted = Self::NAMES.iter().filter(|(_, kind)| *kind == Self::Full || *kind == self);
        let known = accepted.clone().find(|(known, _)| *known == name);
        known.map(|(_, kind)| *kind).ok_or_else(|| {
            let own = accepted.find(|(_, kind)| *kind == self).map_or("full_attention", |(known, _)| known);
            let supported = format!("\"full_attention\", \"{own}\"");
            ConfigError::Unsupported { key, value: shown(entry), supported }
        })
    }
}

impl FromIterator<LayerType> for LayerKinds {
    /// Kind 1 for layers with a window.
    fn from_iter<I: IntoIterator<Item = LayerType>>(types: I) -> Self {
        Self::listed(types.into_iter().map(LayerType::number))
    }
}
