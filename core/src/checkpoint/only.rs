//! Keys that are supported with one value only.

use crate::error::ConfigError;
use crate::fields::Fields;

/// A key whose other values change the model in a way that is not supported. Absence and `null` are supported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Only {
    /// The key.
    pub key: &'static str,
    value: Supported,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Supported {
    Flag(bool),
    Text(&'static str),
    Number(f64),
    /// `null`, and records or lists without entries.
    Nothing(&'static str),
}

impl Only {
    /// Only this boolean.
    pub const fn flag(key: &'static str, value: bool) -> Self {
        Self { key, value: Supported::Flag(value) }
    }

    /// Only this text.
    pub const fn text(key: &'static str, value: &'static str) -> Self {
        Self { key, value: Supported::Text(value) }
    }

    /// Only this number.
    pub const fn number(key: &'static str, value: f64) -> Self {
        Self { key, value: Supported::Number(value) }
    }

    /// Only `null`, an empty record or an empty list. `why` says what to do with a file that has more.
    pub const fn nothing(key: &'static str, why: &'static str) -> Self {
        Self { key, value: Supported::Nothing(why) }
    }

    /// Checks the value in a file, unless the caller allows the key.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`] or [`ConfigError::WrongType`].
    pub fn check(&self, fields: &Fields<'_>) -> Result<(), ConfigError> {
        if fields.allows(self.key) || self.holds(fields)? {
            return Ok(());
        }
        let supported = match self.value {
            Supported::Flag(only) => only.to_string(),
            Supported::Text(only) => format!("\"{only}\""),
            Supported::Number(only) => only.to_string(),
            Supported::Nothing(why) => format!("null; {why}"),
        };
        Err(fields.unsupported(self.key, &supported))
    }

    /// Whether the value in a file is supported.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`].
    pub(super) fn holds(&self, fields: &Fields<'_>) -> Result<bool, ConfigError> {
        let names = &[self.key][..];
        Ok(match self.value {
            Supported::Flag(only) => fields.flag(names)?.is_none_or(|value| value == only),
            Supported::Text(only) => fields.text(names)?.is_none_or(|value| value == only),
            Supported::Number(only) => fields.number(names)?.is_none_or(|value| value == only),
            Supported::Nothing(_) => fields.value(self.key).is_none_or(|value| {
                value.as_object().is_some_and(serde_json::Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
            }),
        })
    }
}
