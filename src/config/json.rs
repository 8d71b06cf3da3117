//! DeepSpeed's JSON, with its spellings and its -1 for "not given".

use std::path::Path;

use super::{DataType, DeepSpeedInferenceConfig, KvCacheType};
use crate::error::ConfigError;
use crate::position::rotary::RopeScaling;

impl DeepSpeedInferenceConfig {
    /// Reads a configuration from a JSON file; see [`from_json`](Self::from_json).
    ///
    /// # Errors
    /// [`ConfigError::File`] if it cannot be read, else those of [`from_json`](Self::from_json).
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::from_json(&read_json(path.as_ref())?)
    }

    /// The same as [`from_json_file`](Self::from_json_file); what [`save`](burn::config::Config::save) wrote is read back equal.
    ///
    /// # Errors
    /// Those of [`from_json_file`](Self::from_json_file).
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::from_json_file(path)
    }

    /// Reads a configuration from JSON text; see [`from_json`](Self::from_json).
    ///
    /// # Errors
    /// [`ConfigError::Json`] if it is not JSON, else those of [`from_json`](Self::from_json).
    pub fn from_json_str(text: &str) -> Result<Self, ConfigError> {
        let value = serde_json::from_str(text).map_err(|error| ConfigError::Json(error.to_string()))?;
        Self::from_json(&value)
    }

    /// Reads DeepSpeed's keys (its `from_dict`): absent ones take its defaults, -1 is read as not given, `dtype` takes
    /// its and PyTorch's spellings, `norm_type` and `mlp_act_func_type` its names or numbers.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key; an unknown key comes with the nearest known one.
    pub fn from_json(value: &serde_json::Value) -> Result<Self, ConfigError> {
        use serde_json::Value;
        let given = value.as_object().ok_or_else(|| ConfigError::Json("expected an object of settings".into()))?;
        let defaults = serde_json::to_value(Self::new(0, 0)).map_err(|error| ConfigError::Json(error.to_string()))?;
        let Value::Object(mut merged) = defaults else {
            return Err(ConfigError::Json("expected an object of settings".into()));
        };
        for (key, value) in given {
            let key = match key.as_str() {
                "epsilon" => "layer_norm_eps", // the name of the attribute, in a dump of DeepSpeed's object
                "layer_id" => continue,        // a counter of DeepSpeed's; here an argument of `resolve`
                other => other,
            };
            if !merged.contains_key(key) {
                return Err(ConfigError::UnknownKey { key: key.into(), nearest: nearest(key, merged.keys()) });
            }
            merged.insert(key.into(), normalise(key, value)?);
        }
        for key in ["hidden_size", "heads"] {
            if !given.contains_key(key) || merged[key].is_null() {
                return Err(ConfigError::Missing(key));
            }
        }
        serde_path_to_error::deserialize(Value::Object(merged)).map_err(|error| ConfigError::Json(error.to_string()))
    }
}

/// The JSON of a configuration file.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::File { path: path.into(), cause: cause.to_string() })?;
    serde_json::from_str(&text).map_err(|error| ConfigError::Json(format!("{}: {error}", path.display())))
}

/// The known name that is spelled most like `name`, if any is close.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<String> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.clone())
}

/// DeepSpeed's spellings of a value, in ours.
fn normalise(key: &str, value: &serde_json::Value) -> Result<serde_json::Value, ConfigError> {
    use serde_json::Value;
    const OPTIONAL: [&str; 10] = [
        "hidden_size",
        "heads",
        "intermediate_size",
        "num_hidden_layers",
        "local_rank",
        "rotary_dim",
        "num_kv",
        "head_dim",
        "softcap",
        "quantize_groups",
    ];
    const NORMS: &[&str] = &["UNKNOWN", "LayerNorm", "GroupNorm", "RMSNorm"];
    const ACTIVATIONS: &[&str] = &["UNKNOWN", "GELU", "ReLU", "GatedGELU", "GatedSILU"];
    Ok(match key {
        _ if OPTIONAL.contains(&key) && value.as_f64() == Some(-1.0) => Value::Null,
        "dtype" => {
            let name =
                value.as_str().ok_or_else(|| ConfigError::Json("`dtype` must be a string, such as \"fp16\"".into()))?;
            DataType::parse(name)?.to_string().into()
        }
        "kv_cache_dtype" => KvCacheType::spelled(value)?,
        "norm_type" => enum_name(key, value, NORMS, 1)?,
        "mlp_act_func_type" => enum_name(key, value, ACTIVATIONS, 0)?,
        "rope_scaling" => serde_json::to_value(RopeScaling::from_json(value, None)?)
            .map_err(|error| ConfigError::Json(error.to_string()))?,
        _ => value.clone(),
    })
}

/// The name of a member of one of DeepSpeed's enums, given as its name (in any case, with or without the enum's own) or
/// its number. Members before `first` are not taken.
fn enum_name(
    key: &str,
    value: &serde_json::Value,
    names: &[&str],
    first: usize,
) -> Result<serde_json::Value, ConfigError> {
    let plain = |name: &str| name.rsplit('.').next().unwrap_or(name).replace('_', "").to_lowercase();
    let found = match value {
        serde_json::Value::String(text) => names.iter().position(|name| plain(name) == plain(text)),
        other => other.as_u64().map(|index| index as usize),
    };
    match found.and_then(|index| names.get(index).filter(|_| index >= first)) {
        Some(name) => Ok((*name).into()),
        None => Err(ConfigError::UnknownValue {
            key: key.into(),
            value: value.to_string(),
            accepted: names[first..].join(", "),
        }),
    }
}
