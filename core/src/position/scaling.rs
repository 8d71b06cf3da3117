//! Reads the rotary scaling of a configuration.

use serde_json::Value;

use super::rotary::RopeScaling;
use crate::error::ConfigError;
use crate::fields::Fields;

/// Keys of every record, which the caller reads or which change nothing.
const ANY: &[&str] = &["rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"];
/// Keys that tell a length of training. A family that does not need one ignores it.
const LENGTHS: &[&str] = &["max_position_embeddings", "original_max_position_embeddings"];

/// Lengths that a configuration states outside of the record, in tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrainedLengths {
    /// `max_position_embeddings`.
    pub positions: Option<usize>,
    /// `original_max_position_embeddings`; it wins over that of the record.
    pub original: Option<usize>,
}

impl RopeScaling {
    /// Reads the record of a Hugging Face configuration; `trained` is the configuration's `max_position_embeddings`,
    /// which the record itself may also hold.
    ///
    /// # Errors
    /// Those of [`from_fields`](Self::from_fields).
    pub fn from_json(record: &Value, trained: Option<usize>) -> Result<Self, ConfigError> {
        if record.is_null() {
            return Ok(Self::Default);
        }
        let lengths = TrainedLengths { positions: trained, original: None };
        Self::from_fields(&Fields::nested("rope_scaling", record)?, lengths)
    }

    /// Reads the record `rope_scaling` or `rope_parameters` of a Hugging Face configuration, as `modeling_rope_utils.py` of
    /// `transformers` does. Without `original_max_position_embeddings` the original length is `max_position_embeddings`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownRopeScaling`] for another family, [`ConfigError::RopeScaling`] for a missing or impossible number,
    /// [`ConfigError::WrongType`], [`ConfigError::Spellings`], and [`ConfigError::UnreadKeys`] for a key that the family does not
    /// have.
    pub fn from_fields(record: &Fields<'_>, lengths: TrainedLengths) -> Result<Self, ConfigError> {
        let name = record.text(&["rope_type", "type"])?.unwrap_or("default");
        let (family, keys): (_, &[&str]) = match name {
            "default" => ("default", &[]),
            "linear" => ("linear", &["factor"]),
            "dynamic" => ("dynamic", &["factor"]),
            "llama3" => ("llama3", &["factor", "low_freq_factor", "high_freq_factor"]),
            "yarn" => (
                "yarn",
                &["factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"],
            ),
            other => return Err(ConfigError::UnknownRopeScaling(other.into())),
        };
        record.check_keys(&[ANY, LENGTHS, keys].concat(), &format!("the rope scaling `{family}`"))?;
        let reader = Reader { record, lengths, family };
        Ok(match family {
            "linear" => Self::Linear { factor: reader.factor()? },
            "dynamic" => Self::Dynamic { factor: reader.factor()?, max_position_embeddings: reader.dynamic_length()? },
            "llama3" => {
                let (low, high) = (reader.positive("low_freq_factor")?, reader.positive("high_freq_factor")?);
                if high <= low {
                    return Err(reader.problem("high_freq_factor", "must be greater than `low_freq_factor`"));
                }
                Self::Llama3 {
                    factor: reader.factor()?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: reader.original()?,
                }
            }
            "yarn" => reader.yarn()?,
            _ => Self::Default,
        })
    }
}

struct Reader<'r, 'a> {
    record: &'r Fields<'a>,
    lengths: TrainedLengths,
    family: &'static str,
}

impl Reader<'_, '_> {
    fn problem(&self, key: &'static str, problem: &'static str) -> ConfigError {
        ConfigError::RopeScaling { family: self.family, key, problem }
    }

    fn missing(&self, key: &'static str) -> ConfigError {
        self.problem(key, "is missing; copy it from the checkpoint's config.json")
    }

    fn positive_or_absent(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        match self.record.number(&[key])? {
            Some(value) if !(value > 0.0 && value.is_finite()) => Err(self.problem(key, "must be a positive number")),
            other => Ok(other),
        }
    }

    fn positive(&self, key: &'static str) -> Result<f64, ConfigError> {
        self.positive_or_absent(key)?.ok_or_else(|| self.missing(key))
    }

    fn factor(&self) -> Result<f64, ConfigError> {
        let factor = self.positive("factor")?;
        if factor >= 1.0 { Ok(factor) } else { Err(self.problem("factor", "must be at least 1")) }
    }

    /// `max_position_embeddings`, which the configuration has, or DeepSpeed's file in the record.
    fn positions(&self) -> Result<usize, ConfigError> {
        const KEY: &str = "max_position_embeddings";
        let own = self.length(KEY)?;
        match (own, self.lengths.positions) {
            (Some(own), Some(outer)) if own != outer => Err(ConfigError::Spellings {
                keys: [self.record.name(KEY), KEY.into()],
                values: [own.to_string(), outer.to_string()],
            }),
            (own, outer) => own.or(outer).ok_or_else(|| self.missing(KEY)),
        }
    }

    fn length(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        match self.record.size(&[key])? {
            Some(0) => Err(self.problem(key, "must be at least 1")),
            other => Ok(other),
        }
    }

    /// `transformers` measures dynamic scaling from `max_position_embeddings` and ignores the original length.
    fn dynamic_length(&self) -> Result<usize, ConfigError> {
        let positions = self.positions()?;
        let original = self.lengths.original.or(self.length("original_max_position_embeddings")?);
        match original {
            Some(original) if original != positions => Err(self.problem(
                "original_max_position_embeddings",
                "is not `max_position_embeddings`, from which dynamic scaling starts; remove it, or correct one of them",
            )),
            _ => Ok(positions),
        }
    }

    fn original(&self) -> Result<usize, ConfigError> {
        match (self.lengths.original, self.length("original_max_position_embeddings")?) {
            (Some(0), _) => Err(self.problem("original_max_position_embeddings", "must be at least 1")),
            (Some(outer), _) => Ok(outer),
            (None, Some(own)) => Ok(own),
            (None, None) => self.positions().map_err(|error| match error {
                ConfigError::RopeScaling { .. } => self.missing("original_max_position_embeddings"),
                other => other,
            }),
        }
    }

    fn yarn(&self) -> Result<RopeScaling, ConfigError> {
        let original = self.original()?;
        // `null` means the growth of the length. Absence is an error, as in `transformers`.
        let factor = match self.record.is_null("factor") {
            true => self.positions()? as f64 / original as f64,
            false => self.factor()?,
        };
        // 0 means absent to `transformers`.
        let or_zero = |key: &'static str, default: f64| match self.record.number(&[key])? {
            None | Some(0.0) => Ok(default),
            Some(_) => self.positive(key),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: or_zero("beta_fast", 32.0)?,
            beta_slow: or_zero("beta_slow", 1.0)?,
            attention_factor: match self.positive_or_absent("attention_factor")? {
                Some(given) => given,
                None => self.yarn_amplitude(factor)?,
            },
            truncate: self.record.flag(&["truncate"])?.unwrap_or(true),
        })
    }

    fn yarn_amplitude(&self, factor: f64) -> Result<f64, ConfigError> {
        let amplitude = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let scale = |key: &str| Ok::<_, ConfigError>(self.record.number(&[key])?.filter(|&scale| scale != 0.0));
        Ok(match (scale("mscale")?, scale("mscale_all_dim")?) {
            (Some(scale), Some(all)) => amplitude(scale) / amplitude(all),
            _ => amplitude(1.0),
        })
    }
}
