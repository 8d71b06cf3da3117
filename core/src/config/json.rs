//! DeepSpeed's JSON, with its spellings and its -1 for "not given".

use std::fmt;
use std::path::Path;

use super::settings::DeepSpeedInferenceConfig;
use crate::data_type::DataType;
use crate::error::{ConfigError, Origin};
use crate::position::rotary::RopeScaling;
use crate::spelling::nearest;

impl DeepSpeedInferenceConfig {
    /// Reads a configuration from a JSON file; see [`from_json`](Self::from_json).
    ///
    /// # Errors
    /// [`ConfigError::File`] if it cannot be read, else those of [`from_json`](Self::from_json), in
    /// [`ConfigError::InFile`].
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        Self::from_json(&read_json(path)?).map_err(|error| error.in_file(path))
    }

    /// The same as [`from_json_file`](Self::from_json_file). What [`save`](Self::save) wrote is read back equal.
    ///
    /// # Errors
    /// Those of [`from_json_file`](Self::from_json_file).
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::from_json_file(path)
    }

    /// Writes the configuration as JSON, with every key.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), ConfigError> {
        let path = path.as_ref();
        std::fs::write(path, self.to_string())
            .map_err(|cause| ConfigError::File { path: path.into(), cause: cause.to_string() })
    }

    /// Reads a configuration from JSON text; see [`from_json`](Self::from_json).
    ///
    /// # Errors
    /// [`ConfigError::Json`] if it is not JSON, else those of [`from_json`](Self::from_json).
    pub fn from_json_str(text: &str) -> Result<Self, ConfigError> {
        let value = serde_json::from_str(text).map_err(|error| ConfigError::Json(error.to_string()))?;
        Self::from_json(&value)
    }

    /// Reads DeepSpeed's keys (its `from_dict`).
    ///
    /// - Absent keys take DeepSpeed's defaults. For `dtype` that is fp16; a `null` there is read as `None`.
    /// - -1 means "not given".
    /// - `dtype` takes DeepSpeed's and PyTorch's spellings, `norm_type` and `mlp_act_func_type` DeepSpeed's names or numbers.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key; an unknown key comes with the nearest known one.
    pub fn from_json(value: &serde_json::Value) -> Result<Self, ConfigError> {
        use serde_json::Value;
        let given = value.as_object().ok_or_else(|| ConfigError::Json("expected an object of settings".into()))?;
        let defaults = serde_json::to_value(Self::new(0, 0).with_dtype(DataType::Fp16))
            .map_err(|error| ConfigError::Json(error.to_string()))?;
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
                return Err(ConfigError::Missing { key, origin: Origin::DeepSpeed });
            }
        }
        serde_path_to_error::deserialize(Value::Object(merged)).map_err(|error| ConfigError::Json(error.to_string()))
    }
}

impl fmt::Display for DeepSpeedInferenceConfig {
    /// The JSON that [`save`](DeepSpeedInferenceConfig::save) writes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string_pretty(self).map_err(|_| fmt::Error)?;
        f.write_str(&json)
    }
}

/// The JSON of a configuration file.
///
/// # Errors
/// [`ConfigError::File`] if it cannot be read, [`ConfigError::Json`] in [`ConfigError::InFile`] if it is not JSON.
pub fn read_json(path: &Path) -> Result<serde_json::Value, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::File { path: path.into(), cause: cause.to_string() })?;
    serde_json::from_str(&text).map_err(|error| ConfigError::Json(error.to_string()).in_file(path))
}

/// A value in DeepSpeed's spelling, translated to this crate's.
fn normalise(key: &str, value: &serde_json::Value) -> Result<serde_json::Value, ConfigError> {
    use serde_json::Value;
    const OPTIONAL: [&str; 12] = [
        "hidden_size",
        "heads",
        "intermediate_size",
        "num_hidden_layers",
        "local_rank",
        "rotary_dim",
        "num_kv",
        "head_dim",
        "softcap",
        "score_factor",
        "qkv_clip",
        "quantize_groups",
    ];
    const NORMS: &[&str] = &["UNKNOWN", "LayerNorm", "GroupNorm", "RMSNorm"];
    const ACTIVATIONS: &[&str] = &["UNKNOWN", "GELU", "ReLU", "GatedGELU", "GatedSILU"];
    Ok(match key {
        _ if OPTIONAL.contains(&key) && value.as_f64() == Some(-1.0) => Value::Null,
        "dtype" if value.is_null() => Value::Null,
        "dtype" => {
            let name =
                value.as_str().ok_or_else(|| ConfigError::Json("`dtype` must be a string, such as \"fp16\"".into()))?;
            DataType::parse(name)?.to_string().into()
        }
        "kv_cache_dtype" => cache_types(value)?,
        "norm_type" => enum_name(key, value, NORMS, 1)?,
        "mlp_act_func_type" => enum_name(key, value, ACTIVATIONS, 0)?,
        "rope_scaling" => rope_scaling(value)?,
        _ => value.clone(),
    })
}

/// A scaling record in this crate's spelling. Settings that a Hugging Face file may have in it are keys of their own here.
fn rope_scaling(value: &serde_json::Value) -> Result<serde_json::Value, ConfigError> {
    let scaling = RopeScaling::from_json(value, None)?;
    let own: &[_] = match scaling {
        RopeScaling::Proportional { .. } => &["rope_theta"],
        _ => &["rope_theta", "partial_rotary_factor"],
    };
    if let Some(key) = own.iter().find(|key| value.get(key).is_some_and(|value| !value.is_null())) {
        let elsewhere = if *key == "rope_theta" { "rope_theta" } else { "rotary_dim" };
        return Err(ConfigError::UnknownKey { key: format!("rope_scaling.{key}"), nearest: Some(elsewhere.into()) });
    }
    serde_json::to_value(scaling).map_err(|error| ConfigError::Json(error.to_string()))
}

/// The name of a member of one of DeepSpeed's enums, given as its name (in any case, with or without the enum's own) or
/// its number. Members before `first` are refused.
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

/// One name for both sides, or an object with one for each, in this crate's spelling.
fn cache_types(value: &serde_json::Value) -> Result<serde_json::Value, ConfigError> {
    use serde_json::Value;
    let side = |value: &Value| match value {
        Value::Null => Ok(Value::Null),
        Value::String(name) => Ok(DataType::parse(name)?.to_string().into()),
        _ => Err(ConfigError::Json("`kv_cache_dtype` must be a string, such as \"int8\"".into())),
    };
    let known = ["key".to_owned(), "value".to_owned()];
    let mut sides = serde_json::Map::new();
    match value {
        Value::Object(given) => {
            for (key, value) in given {
                if !known.contains(key) {
                    let nearest = nearest(key, known.iter());
                    return Err(ConfigError::UnknownKey { key: format!("kv_cache_dtype.{key}"), nearest });
                }
                sides.insert(key.clone(), side(value)?);
            }
        }
        both => sides.extend(known.into_iter().zip([side(both)?, side(both)?])),
    }
    Ok(Value::Object(sides))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::RotaryLayout;

    fn read(text: &str) -> Result<DeepSpeedInferenceConfig, ConfigError> {
        DeepSpeedInferenceConfig::from_json_str(text)
    }

    #[test]
    fn a_file_without_dtype_means_fp16_and_null_means_the_default_of_the_backend() {
        let plain = DeepSpeedInferenceConfig::new(64, 4);
        assert_eq!(plain.dtype, None);
        assert_eq!(read(r#"{ "hidden_size": 64, "heads": 4 }"#), Ok(plain.clone().with_dtype(DataType::Fp16)));
        assert_eq!(read(r#"{ "hidden_size": 64, "heads": 4, "dtype": null }"#), Ok(plain.clone()));
        for config in [plain.clone(), plain.with_dtype(DataType::Int8)] {
            assert_eq!(read(&config.to_string()), Ok(config.clone()));
            assert_eq!(serde_json::from_str::<DeepSpeedInferenceConfig>(&config.to_string()).ok(), Some(config));
        }
    }

    #[test]
    fn one_setter_sets_the_layout_and_the_width_of_rotary_positions() {
        let rotary = |layout| {
            let config = DeepSpeedInferenceConfig::new(64, 4).with_rotary(layout, 16);
            (config.rotary_dim, config.rotate_half, config.rotate_every_two)
        };
        assert_eq!(rotary(RotaryLayout::Half), (Some(16), true, false));
        assert_eq!(rotary(RotaryLayout::Interleaved), (Some(16), false, true));
    }

    #[test]
    fn an_error_names_its_file_and_a_missing_setting_its_origin() {
        let message = |error: ConfigError| error.to_string();
        let missing = |origin| message(ConfigError::Missing { key: "heads", origin });
        assert!(read(r#"{ "hidden_size": 64, "heads": -1 }"#).is_err_and(|e| message(e) == missing(Origin::DeepSpeed)));
        assert!(missing(Origin::DeepSpeed).contains("-1 counts as not given"));
        assert!(missing(Origin::HuggingFace).ends_with("copy it from the `config.json` of the model"));
        assert!(!missing(Origin::Program).contains("-1"));
        let in_file = ConfigError::GroupNorm.in_file(Path::new("a.json"));
        assert_eq!(in_file, in_file.clone().in_file(Path::new("b.json")));
        assert!(message(in_file).starts_with("in a.json: `norm_type` GroupNorm"));
    }
}
