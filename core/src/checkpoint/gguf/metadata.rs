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
    /// Adds the value after its type, as [`read`](Self::read) reads it. See [`CheckpointWriter::metadata`] for the types.
    ///
    /// [`CheckpointWriter::metadata`]: crate::checkpoint::CheckpointWriter::metadata
    pub(super) fn write(&self, into: &mut Vec<u8>) {
        match self {
            Self::Integer(value) => match (u32::try_from(*value), i32::try_from(*value)) {
                (Ok(value), _) => typed(into, 4, &value.to_le_bytes()),
                (_, Ok(value)) => typed(into, 5, &value.to_le_bytes()),
                _ => typed(into, 11, &value.to_le_bytes()),
            },
            Self::Float(value) => match single(*value) {
                Some(value) => typed(into, 6, &value.to_le_bytes()),
                None => typed(into, 12, &value.to_le_bytes()),
            },
            Self::Bool(value) => typed(into, 7, &[u8::from(*value)]),
            Self::Text(value) => {
                typed(into, TEXT, &[]);
                text(into, value);
            }
            Self::Integers(values) => {
                if let Some(values) = all(values, |value| i32::try_from(value).ok()) {
                    array(into, 5, values, |into, value| into.extend(value.to_le_bytes()));
                } else if let Some(values) = all(values, |value| u32::try_from(value).ok()) {
                    array(into, 4, values, |into, value| into.extend(value.to_le_bytes()));
                } else {
                    array(into, 11, values.clone(), |into, value| into.extend(value.to_le_bytes()));
                }
            }
            Self::Floats(values) => match all(values, single) {
                Some(values) => array(into, 6, values, |into, value| into.extend(value.to_le_bytes())),
                None => array(into, 12, values.clone(), |into, value| into.extend(value.to_le_bytes())),
            },
            Self::Bools(values) => array(into, 7, values.clone(), |into, value| into.push(u8::from(value))),
            Self::Texts(values) => array(into, TEXT, values.iter().collect(), |into, value| text(into, value)),
        }
    }
}

/// A text after its length.
pub(super) fn text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

fn typed(into: &mut Vec<u8>, kind: u32, value: &[u8]) {
    into.extend(kind.to_le_bytes());
    into.extend(value);
}

fn array<T>(into: &mut Vec<u8>, kind: u32, values: Vec<T>, each: impl Fn(&mut Vec<u8>, T)) {
    typed(into, ARRAY, &kind.to_le_bytes());
    into.extend((values.len() as u64).to_le_bytes());
    values.into_iter().for_each(|value| each(into, value));
}

/// The values in a narrower type, if it holds all of them.
fn all<T: Copy, N>(values: &[T], narrow: impl Fn(T) -> Option<N>) -> Option<Vec<N>> {
    values.iter().map(|&value| narrow(value)).collect()
}

/// The same number in f32, if there is one.
fn single(value: f64) -> Option<f32> {
    let narrow = value as f32;
    (f64::from(narrow).to_bits() == value.to_bits()).then_some(narrow)
}

macro_rules! from {
    ($($from:ty => $case:ident, |$value:ident| $made:expr;)*) => {$(
        impl From<$from> for Metadata {
            fn from($value: $from) -> Self {
                Self::$case($made)
            }
        }
    )*};
}

from! {
    u32 => Integer, |value| value.into();
    i32 => Integer, |value| value.into();
    i64 => Integer, |value| value;
    f32 => Float, |value| value.into();
    f64 => Float, |value| value;
    bool => Bool, |value| value;
    &str => Text, |value| value.into();
    String => Text, |value| value;
    Vec<u32> => Integers, |values| values.into_iter().map(i64::from).collect();
    Vec<i32> => Integers, |values| values.into_iter().map(i64::from).collect();
    Vec<i64> => Integers, |values| values;
    Vec<f32> => Floats, |values| values.into_iter().map(f64::from).collect();
    Vec<f64> => Floats, |values| values;
    Vec<bool> => Bools, |values| values;
    Vec<String> => Texts, |values| values;
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
