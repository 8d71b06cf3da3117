//! A JSON object whose values are read strictly.

use serde_json::{Map, Value};

use crate::error::ConfigError;
use crate::spelling::nearest;

/// The fields of a JSON object, such as a `config.json` or a record in it.
///
/// `null` counts as absent. A value of another type is an error that names the key, the value and the expected type. A getter
/// takes every spelling of a setting; two spellings with different values are an error.
///
/// ```
/// use burn_deepspeed_core::fields::Fields;
/// let record = serde_json::json!({ "n_head": 4, "num_attention_heads": 4, "n_layer": "12", "n_inner": null });
/// let fields = Fields::new(&record)?;
/// assert_eq!(fields.size(&["n_head", "num_attention_heads"]), Ok(Some(4)));
/// assert_eq!(fields.size(&["n_inner"]), Ok(None));
/// let message = fields.size(&["n_layer"]).unwrap_err().to_string();
/// assert_eq!(message, "`n_layer` is \"12\", and a whole number is expected; correct the value");
/// # Ok::<_, burn_deepspeed_core::error::ConfigError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    entries: &'a Map<String, Value>,
    /// What precedes a key in messages: `rope_scaling.` for the record of that name.
    path: String,
    /// Keys, with their paths, that the caller knows to be harmless.
    allowed: &'a [String],
    /// Keys that the caller reads itself.
    read: &'static [&'static str],
}

impl<'a> Fields<'a> {
    /// The fields of a file's record.
    ///
    /// # Errors
    /// [`ConfigError::Json`] if it is not an object.
    pub fn new(record: &'a Value) -> Result<Self, ConfigError> {
        let entries = record
            .as_object()
            .ok_or_else(|| ConfigError::Json(format!("expected an object of settings and found {}", shown(record))))?;
        Ok(Self { entries, path: String::new(), allowed: &[], read: &[] })
    }

    /// The fields of the record `name` of a file.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`] if it is not an object.
    pub fn nested(name: &str, record: &'a Value) -> Result<Self, ConfigError> {
        let entries = record.as_object().ok_or_else(|| wrong_type(name.into(), record, RECORD))?;
        Ok(Self { entries, path: format!("{name}."), allowed: &[], read: &[] })
    }

    /// The same fields; keys in `allowed` are known to be harmless. The key of a record within is `record.key`.
    pub fn allowing(self, allowed: &'a [String]) -> Self {
        Self { allowed, ..self }
    }

    /// The same fields, of which the caller reads these keys itself: [`check_keys`](Self::check_keys) knows them.
    pub fn reading(self, read: &'static [&'static str]) -> Self {
        Self { read, ..self }
    }

    /// The key as messages and [`allowing`](Self::allowing) name it.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the caller knows this key to be harmless.
    pub fn allows(&self, key: &str) -> bool {
        self.allowed.contains(&self.name(key))
    }

    /// Whether the key is there, with `null` as its value.
    pub fn is_null(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(Value::is_null)
    }

    /// The keys whose value is not `null`.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.entries.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str())
    }

    /// The value of a key, of any type.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.entries.get(key).filter(|value| !value.is_null())
    }

    /// The first of these spellings that is given.
    fn given<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &'a Value)> {
        names.iter().find_map(|name| Some((*name, self.value(name)?)))
    }

    /// The value of the first of these spellings that is given, as `read` takes it. Each spelling that is given must say the same.
    fn read<T: PartialEq>(
        &self,
        names: &[&str],
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let mut found: Option<(&str, T)> = None;
        for name in names {
            let Some(value) = self.value(name) else { continue };
            let read = read(value).ok_or_else(|| self.wrong(name, expected))?;
            match &found {
                Some((first, other)) if *other != read => return Err(self.conflict(self, [first, name])),
                Some(_) => {}
                None => found = Some((name, read)),
            }
        }
        Ok(found.map(|(_, value)| value))
    }

    /// A whole number of at least 0.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`] or [`ConfigError::Spellings`], as every getter.
    pub fn size(&self, names: &[&str]) -> Result<Option<usize>, ConfigError> {
        self.read(names, "a whole number", |value| value.as_u64().and_then(|size| usize::try_from(size).ok()))
    }

    /// A whole number of at least 1.
    ///
    /// # Errors
    /// Those of [`size`](Self::size); [`ConfigError::Unsupported`] for 0.
    pub fn positive(&self, names: &[&str]) -> Result<Option<usize>, ConfigError> {
        match self.size(names)? {
            Some(0) => Err(self.unsupported(self.spelling(names), "at least 1")),
            other => Ok(other),
        }
    }

    /// A whole number of at least 1 under one name, where `null` is a value: `None`. `default` is what absence means.
    ///
    /// # Errors
    /// Those of [`positive`](Self::positive).
    pub fn positive_or_null(&self, name: &str, default: Option<usize>) -> Result<Option<usize>, ConfigError> {
        if self.is_null(name) { Ok(None) } else { Ok(self.positive(&[name])?.or(default)) }
    }

    /// One whole number of at least 0, or a list of them; an empty list if absent.
    ///
    /// # Errors
    /// Those of [`size`](Self::size).
    pub fn sizes(&self, name: &str) -> Result<Vec<usize>, ConfigError> {
        let size = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
        let read = |value: &Value| match value {
            Value::Array(list) => list.iter().map(size).collect(),
            one => size(one).map(|size| vec![size]),
        };
        Ok(self.read(&[name], "a whole number or a list of them", read)?.unwrap_or_default())
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// Those of [`size`](Self::size).
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f64>>, ConfigError> {
        self.read(&[name], "a list of numbers", |value| value.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// A number.
    ///
    /// # Errors
    /// Those of [`size`](Self::size).
    pub fn number(&self, names: &[&str]) -> Result<Option<f64>, ConfigError> {
        self.read(names, "a number", Value::as_f64)
    }

    /// A number above 0.
    ///
    /// # Errors
    /// Those of [`size`](Self::size); [`ConfigError::Unsupported`] for other numbers.
    pub fn above_zero(&self, names: &[&str]) -> Result<Option<f64>, ConfigError> {
        match self.number(names)? {
            Some(value) if !(value > 0.0 && value.is_finite()) => {
                Err(self.unsupported(self.spelling(names), "a number above 0"))
            }
            other => Ok(other),
        }
    }

    /// A number above 0 under one name, where `null` is a value: `None`. `default` is what absence means.
    ///
    /// # Errors
    /// Those of [`above_zero`](Self::above_zero).
    pub fn above_zero_or_null(&self, name: &str, default: Option<f64>) -> Result<Option<f64>, ConfigError> {
        if self.is_null(name) { Ok(None) } else { Ok(self.above_zero(&[name])?.or(default)) }
    }

    /// A text.
    ///
    /// # Errors
    /// Those of [`size`](Self::size).
    pub fn text(&self, names: &[&str]) -> Result<Option<&'a str>, ConfigError> {
        self.read(names, "a text", Value::as_str)
    }

    /// A boolean.
    ///
    /// # Errors
    /// Those of [`size`](Self::size).
    pub fn flag(&self, names: &[&str]) -> Result<Option<bool>, ConfigError> {
        self.read(names, "true or false", Value::as_bool)
    }

    /// A list.
    ///
    /// # Errors
    /// Those of [`size`](Self::size).
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ConfigError> {
        self.read(&[name], "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// A record.
    ///
    /// # Errors
    /// Those of [`size`](Self::size).
    pub fn record(&self, name: &str) -> Result<Option<Self>, ConfigError> {
        let entries = self.read(&[name], RECORD, Value::as_object)?;
        let path = format!("{}.", self.name(name));
        Ok(entries.map(|entries| Self { entries, path, allowed: self.allowed, read: &[] }))
    }

    /// An error unless every key that is given is known or allowed. `reader` is what reads the keys, for the message.
    ///
    /// # Errors
    /// [`ConfigError::UnreadKeys`] with all the others and the known key that is spelled most like the first.
    pub fn check_keys(&self, known: &[&str], reader: &str) -> Result<(), ConfigError> {
        let unread: Vec<&str> =
            self.keys().filter(|key| !known.contains(key) && !self.read.contains(key) && !self.allows(key)).collect();
        let Some(first) = unread.first() else { return Ok(()) };
        let known: Vec<String> = known.iter().map(|key| (*key).into()).collect();
        Err(ConfigError::UnreadKeys {
            reader: reader.into(),
            keys: unread.iter().map(|key| self.name(key)).collect(),
            value: self.value(first).map(shown).unwrap_or_default(),
            nearest: nearest(first, known.iter()).map(|key| self.name(&key)),
        })
    }

    /// The error for a value of the wrong type.
    pub fn wrong(&self, key: &str, expected: &'static str) -> ConfigError {
        wrong_type(self.name(key), self.entries.get(key).unwrap_or(&Value::Null), expected)
    }

    /// The error for a value that is not supported; `supported` lists the ones that are.
    pub fn unsupported(&self, key: &str, supported: &str) -> ConfigError {
        let value = shown(self.entries.get(key).unwrap_or(&Value::Null));
        ConfigError::Unsupported { key: self.name(key), value, supported: supported.into() }
    }

    /// The error for two spellings of one setting, the second in `other`, that differ.
    pub fn conflict(&self, other: &Self, [one, two]: [&str; 2]) -> ConfigError {
        let value = |fields: &Self, key: &str| shown(fields.entries.get(key).unwrap_or(&Value::Null));
        ConfigError::Spellings {
            keys: [self.name(one), other.name(two)],
            values: [value(self, one), value(other, two)],
        }
    }

    /// Which of these spellings is given; the first of them if none is.
    pub fn spelling<'n>(&self, names: &[&'n str]) -> &'n str {
        self.given(names).map(|(name, _)| name).or(names.first().copied()).unwrap_or_default()
    }
}

const RECORD: &str = "a record of settings";

/// Characters of a value that messages show.
const SHOWN: usize = 60;

/// A value as JSON, cut if it is long.
pub fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn wrong_type(key: String, value: &Value, expected: &'static str) -> ConfigError {
    ConfigError::WrongType { key, found: shown(value), expected }
}
