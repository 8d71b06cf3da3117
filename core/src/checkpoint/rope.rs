//! The rotary settings of a `config.json`.

use super::class::Setting;
use crate::config::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::layout::RotaryLayout;
use crate::position::rotary::RopeScaling;
use crate::position::{RopeDialect, RotarySections, TrainedLengths};

/// Where a class keeps its rotary settings, and their defaults. `rope_scaling` or `rope_parameters` is a record that may hold all
/// of them.
#[derive(Debug, Clone, Copy)]
pub struct RopeKeys {
    /// Key of the base outside of the record; `rope_theta` inside.
    pub theta: Setting<f64>,
    /// Key of the rotated part of a head outside of the record; `partial_rotary_factor` inside.
    pub share: Setting<f64>,
}

impl RopeKeys {
    /// `rope_theta` and `partial_rotary_factor`, 10000 and 1.
    pub const SHARED: Self =
        Self { theta: Setting::new(&["rope_theta"], 10000.0), share: Setting::new(&["partial_rotary_factor"], 1.0) };

    /// The keys of a `config.json` that are read.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> {
        const RECORDS: &[&str] = &[
            "original_max_position_embeddings",
            "partial_rotary_factor",
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
        ];
        [RECORDS, self.theta.names, self.share.names].into_iter().flatten().copied()
    }
}

/// The rotary settings of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Part of the features of a head that rotates, 0 to 1; 1 under [`RopeScaling::Proportional`], which has its part itself.
    pub share: f64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
    /// By which of a token's three positions each pair rotates.
    pub sections: Option<RotarySections>,
}

impl Rope {
    /// Reads the settings as `convert_rope_params_to_dict` of `transformers` does. A `rope_scaling` with entries takes the place of
    /// the whole `rope_parameters`. `max_positions` is the length the model was trained for.
    ///
    /// # Errors
    /// Those of [`of_record`](Self::of_record).
    pub fn read(fields: &Fields<'_>, keys: &RopeKeys, max_positions: Option<usize>) -> Result<Self, ConfigError> {
        Self::read_dialect(fields, keys, max_positions, &RopeDialect::default())
    }

    /// The same for a class that reads more in its record.
    ///
    /// # Errors
    /// Those of [`of_record`](Self::of_record).
    pub fn read_dialect(
        fields: &Fields<'_>,
        keys: &RopeKeys,
        max_positions: Option<usize>,
        dialect: &RopeDialect,
    ) -> Result<Self, ConfigError> {
        let scaling = fields.record("rope_scaling")?.filter(|record| !record.is_empty());
        let parameters = fields.record("rope_parameters")?;
        Self::of_dialect(fields, scaling.or(parameters).as_ref(), keys, max_positions, dialect)
    }

    /// The settings in `record`, which may be one of several: that of a layer type. What it lacks is read outside, in `fields`.
    /// `original_max_position_embeddings` outside of the record wins over that inside.
    ///
    /// # Errors
    /// Those of [`RopeScaling::from_fields`]; [`ConfigError::Spellings`] if a base or a part inside of the record is not the one
    /// outside; [`ConfigError::Unsupported`] if a key that the class ignores says something else.
    pub fn of_record(
        fields: &Fields<'_>,
        record: Option<&Fields<'_>>,
        keys: &RopeKeys,
        max_positions: Option<usize>,
    ) -> Result<Self, ConfigError> {
        Self::of_dialect(fields, record, keys, max_positions, &RopeDialect::default())
    }

    fn of_dialect(
        fields: &Fields<'_>,
        record: Option<&Fields<'_>>,
        keys: &RopeKeys,
        max_positions: Option<usize>,
        dialect: &RopeDialect,
    ) -> Result<Self, ConfigError> {
        let number = |inside: &str, keys: &Setting<f64>| {
            let own = record.map_or(Ok(None), |record| record.number(&[inside]))?;
            let outside = fields.number(keys.names)?;
            let value = own.or(outside).unwrap_or(keys.default);
            if let (Some(record), Some(own), Some(outer)) = (record, own, outside)
                && own != outer
            {
                return Err(record.conflict(fields, [inside, fields.spelling(keys.names)]));
            }
            // A class with another name outside ignores this one.
            let ignored = if keys.names.contains(&inside) { None } else { fields.number(&[inside])? };
            match ignored.filter(|&ignored| ignored != value && !fields.allows(inside)) {
                Some(_) => Err(ConfigError::Unsupported {
                    key: inside.into(),
                    value: fields.value(inside).map(ToString::to_string).unwrap_or_default(),
                    supported: format!("{value}, as `{}` says or means by default", fields.spelling(keys.names)),
                }),
                None => Ok(value),
            }
        };
        let lengths =
            TrainedLengths { positions: max_positions, original: fields.size(&["original_max_position_embeddings"])? };
        let (theta, mut share) = (number("rope_theta", &keys.theta)?, number("partial_rotary_factor", &keys.share)?);
        if !(0.0..=1.0).contains(&share) {
            return Err(ConfigError::Unsupported {
                key: "partial_rotary_factor".into(),
                value: share.to_string(),
                supported: "a part of a head, 0 to 1".into(),
            });
        }
        let read = |record| RopeScaling::from_dialect(record, lengths, dialect);
        let mut scaling = record.map_or(Ok(RopeScaling::Default), read)?;
        if let RopeScaling::Proportional { partial_rotary_factor, .. } = &mut scaling {
            *partial_rotary_factor = std::mem::replace(&mut share, 1.0);
        }
        Ok(Self { theta, share, scaling, sections: dialect.read_sections(record)? })
    }

    /// The configuration with these positions, in the layout [`RotaryLayout::Half`].
    pub fn halves(self, base: DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig {
        let dim = (base.head_size() as f64 * self.share) as usize;
        base.with_rotary(RotaryLayout::Half, dim)
            .with_rope_theta(self.theta)
            .with_rope_scaling(self.scaling)
            .with_rope_sections(self.sections)
    }

    /// An error unless all features of a head rotate: the class ignores or cannot use a part.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`].
    pub fn whole(self) -> Result<Self, ConfigError> {
        match self.share == 1.0 {
            true => Ok(self),
            false => Err(ConfigError::Unsupported {
                key: "partial_rotary_factor".into(),
                value: self.share.to_string(),
                supported: "1; this family rotates whole heads".into(),
            }),
        }
    }
}
