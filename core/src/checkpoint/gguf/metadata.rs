//! The values of a header.

use std::fmt;
use std::io::Read;

use super::source::{Problem, Source};
use crate::error::ConfigError;
use crate::fields::shown;

/// A value of a GGUF header. Integers of every width are [`Integer`](Self::Integer), and f32 and f64 are [`Float`](Self::Float).
#[derive(Debug, Clone, PartialEq)]
pub enum Metadata {
    /// An integer.
    Integer(i64),
    /// A float.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A text.
    Text(String),
    /// An array of integers.
    Integers(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f64>),
    /// An array of booleans.
    Bools(Vec<bool>),
    /// An array of texts.
    Texts(Vec<String>),
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

impl Metadata {
    /// The value after its type.
    pub(super) fn read(source: &mut Source<impl Read>) -> Result<Self, Problem> {
        match source.u32()? {
            ARRAY => Self::array(source),
            kind => Self::one(source, kind),
        }
    }

    /// A value of a type that is not an array.
    fn one(source: &mut Source<impl Read>, kind: u32) -> Result<Self, Problem> {
        let integer = Self::Integer;
        Ok(match kind {
            0 => integer(u8::from_le_bytes(source.bytes()?).into()),
            1 => integer(i8::from_le_bytes(source.bytes()?).into()),
            2 => integer(u16::from_le_bytes(source.bytes()?).into()),
            3 => integer(i16::from_le_bytes(source.bytes()?).into()),
            4 => integer(u32::from_le_bytes(source.bytes()?).into()),
            5 => integer(i32::from_le_bytes(source.bytes()?).into()),
            6 => Self::Float(f32::from_le_bytes(source.bytes()?).into()),
            7 => match source.bytes()? {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                [other] => return Err(format!("a boolean before byte {} is {other}", source.position)),
            },
            TEXT => Self::Text(source.text()?),
            10 => {
                let value = source.u64()?;
                let too_large = |_| format!("an integer before byte {} is {value}, above i64::MAX", source.position);
                integer(i64::try_from(value).map_err(too_large)?)
            }
            11 => integer(i64::from_le_bytes(source.bytes()?)),
            12 => Self::Float(f64::from_le_bytes(source.bytes()?)),
            ARRAY => return Err(format!("an array before byte {} holds arrays, which are not read", source.position)),
            _ => {
                return Err(format!("a value before byte {} has type {kind}; types are 0 to 12", source.position));
            }
        })
    }

    fn array(source: &mut Source<impl Read>) -> Result<Self, Problem> {
        let (kind, count) = (source.u32()?, source.u64()?);
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            _ => 8,
        };
        source.expect(count, least, "values of an array")?;
        let mut values = match kind {
            6 | 12 => Self::Floats(Vec::new()),
            7 => Self::Bools(Vec::new()),
            TEXT => Self::Texts(Vec::new()),
            _ => Self::Integers(Vec::new()),
        };
        for _ in 0..count {
            match (&mut values, Self::one(source, kind)?) {
                (Self::Integers(all), Self::Integer(one)) => all.push(one),
                (Self::Floats(all), Self::Float(one)) => all.push(one),
                (Self::Bools(all), Self::Bool(one)) => all.push(one),
                (Self::Texts(all), Self::Text(one)) => all.push(one),
                _ => return Err(format!("an array before byte {} mixes types", source.position)),
            }
        }
        // The type of an empty array was not looked at.
        match (count, kind) {
            (0, ARRAY | 13..) => Err(format!("an array before byte {} has elements of type {kind}", source.position)),
            _ => Ok(values),
        }
    }
}

impl Metadata {
    /// The error for a value of the wrong type.
    pub(super) fn wrong(&self, key: &str, expected: &'static str) -> ConfigError {
        ConfigError::WrongType { key: key.into(), found: self.to_string(), expected }
    }
}

impl fmt::Display for Metadata {
    /// The value as JSON, or the length of an array.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let array = |f: &mut fmt::Formatter<'_>, len, what| write!(f, "an array of {len} {what}");
        match self {
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::Text(value) => f.write_str(&shown(&value.as_str().into())),
            Self::Integers(values) => array(f, values.len(), "integers"),
            Self::Floats(values) => array(f, values.len(), "floats"),
            Self::Bools(values) => array(f, values.len(), "booleans"),
            Self::Texts(values) => array(f, values.len(), "texts"),
        }
    }
}
