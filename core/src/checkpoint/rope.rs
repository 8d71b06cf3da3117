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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::WindowKind;
    use crate::position::rotary::Rotary;
    use crate::position::{PositionEncoding, Positions, SectionOrder};
    use crate::visibility::{Visibility, origins};

    /// A part of what `tests/golden/generate_positions.py` wrote with `transformers`.
    fn golden(part: &str) -> Vec<Value> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/positions.json");
        let mut all: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let cases: Vec<Value> = serde_json::from_value(all[part].take()).unwrap();
        assert!(!cases.is_empty());
        cases
    }

    fn floats(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    }

    fn read(case: &Value, dialect: &RopeDialect) -> Rotary {
        let head_dim = case["head_dim"].as_u64().unwrap() as usize;
        let file = json!({ "rope_parameters": case["record"] });
        let max_positions = case.get("max_position_embeddings").map_or(512, |positions| positions.as_u64().unwrap());
        let rope =
            Rope::read_dialect(&Fields::new(&file).unwrap(), &RopeKeys::SHARED, Some(max_positions as usize), dialect);
        let config = rope.unwrap().halves(DeepSpeedInferenceConfig::new(2 * head_dim, 2));
        let rotary = |config: &DeepSpeedInferenceConfig| match config.resolve(0).unwrap().position {
            PositionEncoding::Rotary(rotary) => rotary,
            other => panic!("{case}: {other:?}"),
        };
        // A file in DeepSpeed's form says the same.
        let saved = rotary(&DeepSpeedInferenceConfig::from_json_str(&config.to_string()).unwrap());
        let read = rotary(&config);
        assert_eq!((saved.dim, saved.layout, saved.sections), (read.dim, read.layout, read.sections));
        for length in [1, 100] {
            let ((one, of_one), (two, of_two)) = (saved.frequencies(length), read.frequencies(length));
            assert_near(case, &one, &two, 1e-12);
            assert_near(case, &[of_one], &[of_two], 1e-12);
        }
        read
    }

    #[track_caller]
    fn assert_near(what: &Value, actual: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(actual.len(), expected.len(), "{what}");
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() <= tolerance * e.abs().max(1e-3), "{what}: {a}, expected {e}");
        }
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        for case in golden("frequencies") {
            let rotary = read(&case, &RopeDialect::default());
            for result in case["results"].as_array().unwrap() {
                let (frequencies, amplitude) = rotary.frequencies(result["length"].as_u64().unwrap() as usize);
                assert_near(&case["record"], &frequencies, &floats(&result["frequencies"]), 5e-6);
                assert_near(&case["record"], &[amplitude], &[result["amplitude"].as_f64().unwrap()], 1e-12);
            }
        }
    }

    #[test]
    fn angles_in_sections_are_those_of_transformers() {
        for case in golden("sections") {
            let order: SectionOrder = serde_json::from_value(case["order"].clone()).unwrap();
            let default = RotarySections { pairs: [1, 1, 6], order };
            let rotary = read(&case, &RopeDialect { sections: Some(default), ..RopeDialect::default() });
            let axes: [Vec<i64>; 3] = serde_json::from_value(case["ids"].clone()).unwrap();
            let rows = [1, axes[0].len()];
            let table = rotary.cosines_and_sines(&Positions::from_axes(axes.clone(), rows).unwrap());
            let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
            // `transformers` has angles in f32.
            let near = |actual: &[f32], expected: &Value| {
                let pairs = wide(actual).into_iter().zip(floats(expected));
                assert_eq!(actual.len(), floats(expected).len());
                pairs.for_each(|(a, e)| assert!((a - e).abs() < 1e-5, "{}: {a}, expected {e}", case["record"]));
            };
            near(&table.cosines, &case["cosines"]);
            near(&table.sines, &case["sines"]);

            // Text has three equal positions, and rotates as without sections.
            let [time, ..] = axes;
            let text = Positions::from_axes([(); 3].map(|()| time.clone()), rows).unwrap();
            let plain = Positions::from_rows(time, rows).unwrap();
            let without = Rotary { sections: None, ..rotary.clone() }.cosines_and_sines(&plain);
            assert_eq!(rotary.cosines_and_sines(&text), without);
            assert_eq!(rotary.cosines_and_sines(&plain), without);
        }
    }

    #[test]
    fn windows_are_those_of_transformers() {
        for case in golden("windows") {
            let kind: WindowKind = serde_json::from_value(case["kind"].clone()).unwrap();
            let config = DeepSpeedInferenceConfig::new(8, 1)
                .with_local_attention(true)
                .with_window_size(case["window_size"].as_u64().unwrap() as usize)
                .with_window_kind(kind)
                .with_triangular_masking(kind == WindowKind::Chunked);
            let spec = config.resolve(0).unwrap();
            let rows: Vec<Vec<String>> = serde_json::from_value(case["rows"].clone()).unwrap();
            let keys = rows[0].len();
            let padding = floats(&case["padding"]);
            let hidden: Vec<bool> =
                padding.iter().flat_map(|count| (0..keys).map(|key| (key as f64) < *count)).collect();
            let seen = Visibility { causal: spec.causal, window: spec.window, starts: vec![0], ends: vec![keys] };
            let origins = origins(&hidden, keys);
            for (row, queries) in rows.iter().enumerate() {
                for (query, expected) in queries.iter().enumerate() {
                    let range = seen.range(0, query, origins[row]);
                    let sees = |key: usize| range.contains(&key) && !hidden[row * keys + key];
                    let actual: String = (0..keys).map(|key| if sees(key) { '1' } else { '0' }).collect();
                    assert_eq!(
                        &actual, expected,
                        "{} of {}, row {row}, query {query}",
                        case["kind"], case["window_size"]
                    );
                }
            }
        }
    }

    #[test]
    fn what_a_record_lacks_or_does_not_have_is_an_error() {
        let qwen2 = RopeDialect {
            sections: Some(RotarySections { pairs: [16, 24, 24], order: SectionOrder::Chunked }),
            names: &[("mrope", "default")],
        };
        let phi3 = RopeDialect { names: &[("su", "longrope")], ..RopeDialect::default() };
        let read = |record: &Value, dialect: &RopeDialect| {
            let file = json!({ "rope_scaling": record, "original_max_position_embeddings": 4 });
            Rope::read_dialect(&Fields::new(&file).unwrap(), &RopeKeys::SHARED, Some(16), dialect)
        };
        let long = |name: &str| json!({ "type": name, "short_factor": [1, 1.5], "long_factor": [2, 3.5] });
        let expected = RopeScaling::LongRope {
            short_factor: vec![1.0, 1.5],
            long_factor: vec![2.0, 3.5],
            original_max_position_embeddings: 4,
            attention_factor: 2f64.sqrt(), // the length grows from 4 to 4²
        };
        assert_eq!(read(&long("longrope"), &phi3).unwrap().scaling, expected);
        assert_eq!(read(&long("su"), &phi3).unwrap().scaling, expected);
        assert!(expected.changes(4, 5) && !expected.changes(1, 4) && !expected.changes(5, 6));
        let mrope = json!({ "type": "mrope", "mrope_section": [1, 2, 5] });
        assert_eq!(read(&mrope, &qwen2).unwrap().sections.unwrap().pairs, [1, 2, 5]);
        assert_eq!(read(&json!({ "type": "mrope" }), &qwen2).unwrap().sections, qwen2.sections);

        let message = |record: Value, dialect: &RopeDialect| read(&record, dialect).unwrap_err().to_string();
        let none = RopeDialect::default();
        for (record, dialect, expected) in [
            (long("su"), &none, "rope scaling `su` is unknown"),
            (mrope, &none, "rope scaling `mrope` is unknown"),
            (
                json!({ "mrope_section": [1, 2, 5] }),
                &none,
                "`rope_scaling.mrope_section` is [1,2,5], and the rope scaling",
            ),
            (json!({ "mrope_section": [1, 2] }), &qwen2, "`mrope_section` must have three numbers"),
            (json!({ "mrope_section": "1" }), &qwen2, "`rope_scaling.mrope_section` is \"1\""),
            (
                json!({ "mrope_interleaved": true }),
                &qwen2,
                "`rope_scaling.mrope_interleaved` is true, which is not supported",
            ),
            (json!({ "type": "longrope", "short_factor": [1] }), &none, "`long_factor` is missing"),
            (
                json!({ "type": "longrope", "short_factor": [0], "long_factor": [1] }),
                &none,
                "must be a list of positive",
            ),
            (
                json!({ "type": "longrope", "short_factor": 1, "long_factor": [1] }),
                &none,
                "a list of numbers is expected",
            ),
            (
                json!({ "type": "longrope", "short_factor": ["1"], "long_factor": [1] }),
                &none,
                "a list of numbers is expected",
            ),
            (json!({ "type": "longrope", "truncate": false }), &none, "`rope_scaling.truncate` is false"),
            (json!({ "type": "proportional", "partial_rotary_factor": 1.5 }), &none, "0 to 1"),
            (json!({ "type": "linear", "factor": 2, "partial_rotary_factor": -0.5 }), &none, "0 to 1"),
        ] {
            let text = message(record, dialect);
            assert!(text.contains(expected), "{text}, expected {expected}");
        }
    }

    #[test]
    fn what_does_not_cover_the_pairs_of_a_head_is_an_error() {
        let base = || DeepSpeedInferenceConfig::new(32, 2).with_rotary(RotaryLayout::Half, 16);
        let scaling = RopeScaling::LongRope {
            short_factor: vec![1.0; 8],
            long_factor: vec![1.0; 7],
            original_max_position_embeddings: 4,
            attention_factor: 1.0,
        };
        let message = |config: DeepSpeedInferenceConfig| config.resolve(0).unwrap_err().to_string();
        let long = message(base().with_rope_scaling(scaling));
        assert!(
            long.contains("`rope_scaling.long_factor` has 7 factors, and a head has 8 pairs that rotate"),
            "{long}"
        );
        let sections = RotarySections { pairs: [2, 3, usize::MAX], order: SectionOrder::Chunked };
        let sections = message(base().with_rope_sections(Some(sections)));
        assert!(sections.contains("`rope_sections` has 18446744073709551615 pairs"), "{sections}");
        let inside = |record: &str| {
            let text = format!(r#"{{ "hidden_size": 64, "heads": 4, "rope_scaling": {record} }}"#);
            DeepSpeedInferenceConfig::from_json_str(&text).unwrap_err().to_string()
        };
        let theta = inside(r#"{ "rope_type": "linear", "factor": 2, "rope_theta": 5 }"#);
        assert!(theta.contains("`rope_scaling.rope_theta` (nearest: `rope_theta`)"), "{theta}");
    }
}
