//! A setting of a family that is a boolean.

use crate::error::ConfigError;
use crate::fields::Fields;

/// A boolean of a family, fixed or given by `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// The same for every model of the family.
    Fixed(bool),
    /// The value of a key, and what it is if the key is absent.
    Key(&'static str, bool),
}

impl Flag {
    /// The value for the model of this `config.json`.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`].
    pub fn of(self, fields: &Fields<'_>) -> Result<bool, ConfigError> {
        match self {
            Self::Fixed(value) => Ok(value),
            Self::Key(key, default) => Ok(fields.flag(&[key])?.unwrap_or(default)),
        }
    }

    pub(super) fn key(self) -> Option<&'static str> {
        match self {
            Self::Fixed(_) => None,
            Self::Key(key, _) => Some(key),
        }
    }
}
