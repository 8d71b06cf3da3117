//! Checkpoints that hold two encoders, one of texts and one of images.

use std::fmt;

use serde_json::Value;

use super::family::Family;
use super::known;
use crate::error::{ConfigError, Origin};
use crate::fields::Fields;

/// One of the two encoders of a checkpoint such as a whole CLIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The encoder of texts.
    Text,
    /// The encoder of images.
    Vision,
}

/// A checkpoint that holds two encoders, whose settings are in `text_config` and `vision_config`.
pub struct Pair {
    /// The value of `model_type`.
    pub model_type: &'static str,
    /// Its configuration class in `transformers`.
    pub class: &'static str,
    /// The family of the encoder of texts.
    pub text: &'static Family,
    /// The family of the encoder of images.
    pub vision: &'static Family,
    /// Whether `text_config_dict` and `vision_config_dict`, which older files have too, take the place of the records.
    pub older_records: bool,
    /// Keys next to the records that the projections are read from.
    pub reads: &'static [&'static str],
    /// Keys next to the records that change nothing.
    pub harmless: &'static [&'static str],
    /// Beginnings of the names of tensors that belong to neither encoder.
    pub unused: &'static [&'static str],
}

/// One of two encoders that a file describes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SideOfPair {
    pub(super) pair: &'static Pair,
    pub(super) side: Side,
    /// The key of its settings.
    pub(super) key: &'static str,
}

impl SideOfPair {
    /// The settings of this encoder in a file.
    pub(super) fn fields<'a>(&self, file: &Fields<'a>) -> Result<Fields<'a>, ConfigError> {
        file.record(self.key)?.ok_or(ConfigError::Missing { key: self.key, origin: Origin::HuggingFace })
    }
}

impl Side {
    /// The record of its settings, and the one that may take its place.
    const fn keys(self) -> [&'static str; 2] {
        match self {
            Self::Text => ["text_config", "text_config_dict"],
            Self::Vision => ["vision_config", "vision_config_dict"],
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Text => Self::Vision,
            Self::Vision => Self::Text,
        }
    }
}

impl Pair {
    /// The family of one of the two.
    pub fn family(&self, side: Side) -> &'static Family {
        match side {
            Side::Text => self.text,
            Side::Vision => self.vision,
        }
    }

    /// Gives a file that leaves out the record of a side an empty one: each setting is then the default of its class.
    pub(super) fn complete(record: &mut Value, side: Side) {
        if let Some(entries) = record.as_object_mut() {
            let own = entries.entry(side.keys()[0]).or_insert(Value::Null);
            if own.is_null() {
                *own = Value::Object(serde_json::Map::new());
            }
        }
    }

    /// Checks what is next to the records, and returns the key of the record that has the settings of a side.
    ///
    /// # Errors
    /// [`ConfigError::UnreadKeys`], [`ConfigError::WrongType`] or [`ConfigError::Unsupported`].
    pub(super) fn key(&self, file: &Fields<'_>, side: Side) -> Result<&'static str, ConfigError> {
        let records = [Side::Text.keys(), Side::Vision.keys()].concat();
        let records = records.iter().filter(|key| self.older_records || !key.ends_with("_dict"));
        let shared = known::READ.iter().chain(known::HARMLESS.iter().copied().flatten());
        let only = known::ONLY.iter().map(|only| only.key);
        let own = self.reads.iter().chain(self.harmless);
        let known: Vec<&str> =
            records.chain(shared).chain(own).copied().chain(only).chain(["tie_word_embeddings"]).collect();
        file.check_keys(&known, self.class)?;
        known::ONLY.iter().try_for_each(|only| only.check(file))?;
        self.reads.iter().try_for_each(|key| file.positive(&[key]).map(|_| ()))?;
        let [own, older] = side.keys();
        match self.older_records && file.value(older).is_some() {
            true => Ok(older),
            false => Ok(own),
        }
    }

    /// Whether a tensor belongs to the encoder that was not chosen, or to neither.
    pub(super) fn is_foreign(&self, name: &str, side: Side) -> bool {
        let other = self.family(side.other());
        let projection = other.encoder.and_then(|paths| paths.projection);
        other.layer.prefixes.iter().chain(self.unused).any(|start| name.starts_with(start))
            || projection
                .and_then(|projection| name.strip_prefix(projection.path))
                .is_some_and(|rest| rest.starts_with('.'))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pair").field(&self.model_type).finish()
    }
}
