//! Reads the rotary scaling of a configuration.

use serde_json::Value;

use super::rotary::RopeScaling;
use super::sections::{RotarySections, SectionOrder};
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

/// What a class of `transformers` reads in its rotary record, and no other class.
///
/// ```
/// use burn_deepspeed_core::position::{RopeDialect, RotarySections, SectionOrder};
/// let phi3 = RopeDialect { names: &[("su", "longrope"), ("yarn", "longrope")], ..RopeDialect::default() };
/// let qwen2_vl = RopeDialect {
///     sections: Some(RotarySections { pairs: [16, 24, 24], order: SectionOrder::Chunked }),
///     names: &[("mrope", "default")],
/// };
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct RopeDialect {
    /// Sections, with their numbers of pairs where `mrope_section` is absent; `None` for a class without them.
    pub sections: Option<RotarySections>,
    /// Names that the class gives to scaling families: what the record says, and what it means.
    pub names: &'static [(&'static str, &'static str)],
}

impl RopeDialect {
    const SECTION_KEYS: &'static [&'static str] = &["mrope_section", "mrope_interleaved"];

    /// The sections of a record.
    ///
    /// # Errors
    /// [`ConfigError::RopeScaling`] unless `mrope_section` has three numbers; [`ConfigError::Unsupported`] for an order that the class
    /// does not have.
    pub fn read_sections(&self, record: Option<&Fields<'_>>) -> Result<Option<RotarySections>, ConfigError> {
        const KEY: &str = "mrope_section";
        let (Some(mut sections), Some(record)) = (self.sections, record) else { return Ok(self.sections) };
        if record.value(KEY).is_some() {
            sections.pairs = record.sizes(KEY)?.try_into().map_err(|_| ConfigError::RopeScaling {
                family: "mrope",
                key: KEY,
                problem: "must have three numbers: pairs that rotate by time, height and width",
            })?;
        }
        let interleaved = sections.order == SectionOrder::Interleaved;
        match record.flag(&["mrope_interleaved"])? {
            Some(given) if given != interleaved => {
                Err(record.unsupported("mrope_interleaved", &format!("{interleaved}, the order of this family")))
            }
            _ => Ok(Some(sections)),
        }
    }
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
        Self::from_dialect(record, lengths, &RopeDialect::default())
    }

    /// The same for a class that reads more.
    ///
    /// # Errors
    /// Those of [`from_fields`](Self::from_fields).
    pub fn from_dialect(
        record: &Fields<'_>,
        lengths: TrainedLengths,
        dialect: &RopeDialect,
    ) -> Result<Self, ConfigError> {
        let given = record.text(&["rope_type", "type"])?.unwrap_or("default");
        let name = dialect.names.iter().find(|(name, _)| *name == given).map_or(given, |(_, meaning)| meaning);
        let (family, keys): (_, &[&str]) = match name {
            "default" => ("default", &[]),
            "linear" => ("linear", &["factor"]),
            "dynamic" => ("dynamic", &["factor"]),
            "llama3" => ("llama3", &["factor", "low_freq_factor", "high_freq_factor"]),
            "yarn" => (
                "yarn",
                &["factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"],
            ),
            "longrope" => ("longrope", &["factor", "attention_factor", "short_factor", "long_factor"]),
            "proportional" => ("proportional", &["factor"]),
            other => return Err(ConfigError::UnknownRopeScaling(other.into())),
        };
        let sections = if dialect.sections.is_some() { RopeDialect::SECTION_KEYS } else { &[] };
        record.check_keys(&[ANY, LENGTHS, keys, sections].concat(), &format!("the rope scaling `{family}`"))?;
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
            "longrope" => reader.longrope()?,
            "proportional" => reader.proportional()?,
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

    fn longrope(&self) -> Result<RopeScaling, ConfigError> {
        let original = self.original()?;
        Ok(RopeScaling::LongRope {
            short_factor: self.factors("short_factor")?,
            long_factor: self.factors("long_factor")?,
            original_max_position_embeddings: original,
            attention_factor: match self.positive_or_absent("attention_factor")? {
                Some(given) => given,
                None => self.longrope_amplitude(original)?,
            },
        })
    }

    fn longrope_amplitude(&self, original: usize) -> Result<f64, ConfigError> {
        let factor = match self.positive_or_absent("factor")? {
            Some(factor) => factor,
            None => self.positions()? as f64 / original as f64,
        };
        match (factor > 1.0, original) {
            (false, _) => Ok(1.0),
            (true, 1) => Err(self.problem("original_max_position_embeddings", "is 1, and its logarithm is a divisor")),
            (true, _) => Ok((1.0 + factor.ln() / (original as f64).ln()).sqrt()),
        }
    }

    /// A list of divisors of frequencies.
    fn factors(&self, key: &'static str) -> Result<Vec<f64>, ConfigError> {
        let factors = self.record.numbers(key)?.ok_or_else(|| self.missing(key))?;
        match factors.iter().all(|factor| *factor > 0.0 && factor.is_finite()) {
            true => Ok(factors),
            false => Err(self.problem(key, "must be a list of positive numbers")),
        }
    }

    fn proportional(&self) -> Result<RopeScaling, ConfigError> {
        const KEY: &str = "partial_rotary_factor";
        let share = self.record.number(&[KEY])?.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&share) {
            return Err(self.problem(KEY, "must be at least 0 and at most 1"));
        }
        let factor = self.positive_or_absent("factor")?.unwrap_or(1.0);
        Ok(RopeScaling::Proportional { factor, partial_rotary_factor: share })
    }
}
