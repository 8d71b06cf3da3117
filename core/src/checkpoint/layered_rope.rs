//! Rotary settings that differ between layers that see all tokens and layers with a window.

use super::class::Setting;
use super::rope::{Rope, RopeKeys};
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::position::TrainedLengths;
use crate::position::rotary::RopeScaling;

/// The rotary settings of a class with a record for each type of layer: Gemma 3 and OLMo 3. Whole heads rotate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LayeredRope {
    /// Of layers that see all tokens.
    pub full: Rope,
    /// Of layers with a window.
    pub sliding: Rope,
}

/// The base of each type of layer outside of the records.
pub(super) struct LayeredBases {
    /// The base of `rope_theta`, which belongs to the layers that see all tokens, if it is absent.
    pub full: f64,
    /// The base of the layers with a window. Without names only their record states it.
    pub sliding: Setting<f64>,
}

impl LayeredRope {
    /// Reads `rope_parameters.full_attention` and `rope_parameters.sliding_attention`, or `rope_theta` and `rope_scaling` of older
    /// files, which belong to the layers that see all tokens. `transformers` ignores settings directly in `rope_parameters`, so
    /// they must repeat those of the layers that see all tokens.
    ///
    /// # Errors
    /// Those of [`Rope::of_record`]; [`ConfigError::UnreadKeys`] and [`ConfigError::Unsupported`].
    pub fn read(fields: &Fields<'_>, bases: &LayeredBases, max_positions: Option<usize>) -> Result<Self, ConfigError> {
        const FULL: &str = "full_attention";
        const SLIDING: &str = "sliding_attention";
        let records = fields.record("rope_parameters")?;
        let of_type = |name| records.as_ref().map_or(Ok(None), |records| records.record(name));
        let (nested, sliding) = (of_type(FULL)?, of_type(SLIDING)?);
        let scaling = fields.record("rope_scaling")?.filter(|record| !record.is_empty());
        if scaling.is_some() && nested.as_ref().is_some_and(|record| !record.is_empty()) {
            let supported = "null next to `rope_parameters.full_attention`; write everything into that record";
            return Err(fields.unsupported("rope_scaling", supported));
        }
        let keys = RopeKeys { theta: Setting::new(&["rope_theta"], bases.full), ..RopeKeys::SHARED };
        let own = scaling.or(nested);
        let full = Rope::of_record(fields, own.as_ref(), &keys, max_positions)?.whole()?;
        if let Some(records) = &records {
            records
                .check_keys(&[FULL, SLIDING, "rope_theta", "rope_type", "type"], "a record for each type of layer")?;
            let names = ["rope_type", "type"];
            let used = own.as_ref().map_or(Ok(None), |own| own.text(&names))?.unwrap_or("default");
            if records.text(&names)?.is_some_and(|kind| kind != "default" && kind != used) {
                let key = records.spelling(&names);
                return Err(records.unsupported(key, &format!("\"{used}\"; write it into `{}`", records.name(FULL))));
            }
            if records.number(&["rope_theta"])?.is_some_and(|theta| theta != full.theta) {
                let supported = format!("{}; write it into `{}`", full.theta, records.name(FULL));
                return Err(records.unsupported("rope_theta", &supported));
            }
        }
        Ok(Self { full, sliding: Self::sliding(fields, sliding.as_ref(), &bases.sliding, max_positions)? })
    }

    fn sliding(
        fields: &Fields<'_>,
        record: Option<&Fields<'_>>,
        theta: &Setting<f64>,
        positions: Option<usize>,
    ) -> Result<Rope, ConfigError> {
        let number = |key: &str| record.map_or(Ok(None), |record| record.number(&[key]));
        let (own, outside) = (number("rope_theta")?, fields.number(theta.names)?);
        if let (Some(record), Some(own), Some(outer)) = (record, own, outside)
            && own != outer
        {
            return Err(record.conflict(fields, ["rope_theta", fields.spelling(theta.names)]));
        }
        let lengths = TrainedLengths { positions, original: None };
        let rope = Rope {
            theta: own.or(outside).unwrap_or(theta.default),
            share: number("partial_rotary_factor")?.unwrap_or(1.0),
            scaling: record.map_or(Ok(RopeScaling::Default), |record| RopeScaling::from_fields(record, lengths))?,
            sections: None,
        };
        rope.whole()
    }
}
