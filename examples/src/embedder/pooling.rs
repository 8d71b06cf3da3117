//! From the vectors of tokens to one vector of the sentence; `Pooling` of `sentence-transformers`.

use burn::tensor::{Bool, Tensor, TensorData, backend::Backend};
use burn_deepspeed::ConfigError;
use burn_deepspeed::fields::{Fields, shown};
use burn_deepspeed::load::{Gguf, Metadata};

/// Fewest tokens that a mean divides by, as in `sentence-transformers`: no tokens give zeros.
const FEWEST: f32 = 1e-9;

/// How the vectors of the tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The vector of the first token.
    First,
    /// The largest value of each feature.
    Max,
    /// The mean.
    Mean,
    /// The sum over the root of the number of tokens.
    MeanSqrtLength,
    /// The mean, weighted by the position, which counts from 1.
    WeightedMean,
    /// The vector of the last token.
    Last,
}

impl Mode {
    /// Each with its name, and with the flag that older files have instead, in the order in which several are joined.
    const ALL: [(Self, &str, &str); 6] = [
        (Self::First, "cls", "pooling_mode_cls_token"),
        (Self::Max, "max", "pooling_mode_max_tokens"),
        (Self::Mean, "mean", "pooling_mode_mean_tokens"),
        (Self::MeanSqrtLength, "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
        (Self::WeightedMean, "weightedmean", "pooling_mode_weightedmean_tokens"),
        (Self::Last, "lasttoken", "pooling_mode_lasttoken"),
    ];
}

/// A pooling module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pooling {
    /// The results are joined in this order; at least one.
    pub modes: Vec<Mode>,
    /// Whether the tokens of a prompt are pooled, too.
    pub include_prompt: bool,
}

impl Pooling {
    /// The mean over all tokens: what a checkpoint without a pooling module means.
    pub fn mean() -> Self {
        Self { modes: vec![Mode::Mean], include_prompt: true }
    }

    /// What a GGUF file says: the mean, if it says nothing.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn of_gguf(gguf: &Gguf) -> Result<Self, ConfigError> {
        const KEY: &str = "bert.pooling_type";
        let mode = match gguf.value(KEY) {
            None | Some(Metadata::Integer(1)) => Mode::Mean,
            Some(Metadata::Integer(2)) => Mode::First,
            Some(Metadata::Integer(3)) => Mode::Last,
            Some(other) => {
                let supported = "1, the mean; 2, the first token; 3, the last token".into();
                return Err(ConfigError::Unsupported { key: KEY.into(), value: other.to_string(), supported });
            }
        };
        Ok(Self { modes: vec![mode], include_prompt: true })
    }

    /// Reads `1_Pooling/config.json` of an encoder with vectors of this width.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn read(fields: &Fields<'_>, width: usize) -> Result<Self, ConfigError> {
        const WIDTHS: [&str; 2] = ["embedding_dimension", "word_embedding_dimension"];
        let flags = Mode::ALL.map(|(_, _, flag)| flag);
        fields.check_keys(&[&WIDTHS[..], &["include_prompt", "pooling_mode"], &flags].concat(), "a pooling module")?;
        if fields.size(&WIDTHS)?.is_some_and(|given| given != width) {
            return Err(fields.unsupported(fields.spelling(&WIDTHS), &format!("{width}, the hidden size")));
        }
        let mut flagged = Vec::new();
        for (mode, _, flag) in Mode::ALL {
            if fields.flag(&[flag])?.unwrap_or(false) {
                flagged.push(mode);
            }
        }
        let named = Self::named(fields)?;
        let modes = match (named, flagged.is_empty()) {
            (Some(named), false) if named != flagged => {
                return Err(
                    fields.unsupported("pooling_mode", "what the flags `pooling_mode_…` say; keep one of the two")
                );
            }
            (Some(named), _) => named,
            (None, false) => flagged,
            (None, true) => vec![Mode::Mean],
        };
        Ok(Self { modes, include_prompt: fields.flag(&["include_prompt"])?.unwrap_or(true) })
    }

    /// The modes in words.
    pub fn describe(&self) -> String {
        let name = |mode: &Mode| match mode {
            Mode::First => "the state of the first token",
            Mode::Max => "the largest value of each feature",
            Mode::Mean => "the mean over the tokens",
            Mode::MeanSqrtLength => "the sum over the root of the number of tokens",
            Mode::WeightedMean => "the mean over the tokens, weighted by their positions",
            Mode::Last => "the state of the last token",
        };
        let modes: Vec<&str> = self.modes.iter().map(name).collect();
        let prompt = if self.include_prompt { "" } else { ", without the prompt" };
        format!("{}{prompt}", modes.join(" and "))
    }

    /// The modes of `pooling_mode`, a name or a list of names.
    fn named(fields: &Fields<'_>) -> Result<Option<Vec<Mode>>, ConfigError> {
        const KEY: &str = "pooling_mode";
        let names = match fields.value(KEY) {
            None => return Ok(None),
            Some(serde_json::Value::Array(names)) if !names.is_empty() => names.iter().collect(),
            Some(name) => vec![name],
        };
        let mode = |name: &serde_json::Value| {
            let text = name.as_str().ok_or_else(|| fields.wrong(KEY, "a text or a list of texts"))?;
            Mode::ALL.iter().find(|(_, known, _)| *known == text).map(|(mode, ..)| *mode).ok_or_else(|| {
                let supported = Mode::ALL.map(|(_, name, _)| name).join(", ");
                ConfigError::Unsupported { key: KEY.into(), value: shown(name), supported }
            })
        };
        names.into_iter().map(mode).collect::<Result<_, _>>().map(Some)
    }

    /// One vector for each sentence. `lengths` are the tokens of the sentences, `prompt` the first tokens that are not pooled.
    ///
    /// # Shapes
    /// - hidden: `[B, T, E]`, with padding on the right; output: `[B, modes · E]`
    pub fn forward<B: Backend>(&self, hidden: Tensor<B, 3>, lengths: &[usize], prompt: usize) -> Tensor<B, 2> {
        let [_, width, _] = hidden.dims();
        let first = if self.include_prompt { 0 } else { prompt };
        let pooled = |&length: &usize| first.min(width)..length.min(width).max(first.min(width));
        let spans: Vec<std::ops::Range<usize>> = lengths.iter().map(pooled).collect();
        let outside =
            spans.iter().flat_map(|span| (0..width).map(move |at| !span.contains(&at))).collect::<Vec<bool>>();
        let outside = TensorData::new(outside, [lengths.len(), width, 1]);
        let outside: Tensor<B, 3, Bool> = Tensor::from_data(outside, &hidden.device());
        // What is not pooled must not reach a sum, not even as 0 · NaN.
        let inside = hidden.clone().mask_fill(outside.clone().expand(hidden.dims()), 0.0);
        let modes = self.modes.iter().map(|mode| match mode {
            Mode::Max => hidden.clone().mask_fill(outside.clone().expand(hidden.dims()), f32::NEG_INFINITY).max_dim(1),
            Mode::First => weighted(&inside, &spans, |at, span| f32::from(at == span.start), |_| 1.0),
            Mode::Last => weighted(&inside, &spans, |at, span| f32::from(at + 1 == span.end), |_| 1.0),
            Mode::Mean => weighted(&inside, &spans, |_, _| 1.0, |sum| sum),
            Mode::MeanSqrtLength => weighted(&inside, &spans, |_, _| 1.0, f32::sqrt),
            Mode::WeightedMean => weighted(&inside, &spans, |at, _| (at + 1) as f32, |sum| sum),
        });
        Tensor::cat(modes.collect(), 2).squeeze_dim(1)
    }
}

/// The sum of the vectors times their weights, over what `divisor` makes of the sum of the weights.
fn weighted<B: Backend>(
    inside: &Tensor<B, 3>,
    spans: &[std::ops::Range<usize>],
    weight: impl Fn(usize, &std::ops::Range<usize>) -> f32,
    divisor: impl Fn(f32) -> f32,
) -> Tensor<B, 3> {
    let ([batch, width, _], device) = (inside.dims(), inside.device());
    let of = |span: &std::ops::Range<usize>, at: usize| if span.contains(&at) { weight(at, span) } else { 0.0 };
    let weights: Vec<f32> =
        spans.iter().flat_map(|span| (0..width).map(move |at| (span, at))).map(|(span, at)| of(span, at)).collect();
    let divisors: Vec<f32> =
        spans.iter().map(|span| divisor((0..width).map(|at| of(span, at)).sum::<f32>().max(FEWEST))).collect();
    let weights = Tensor::<B, 3>::from_data(TensorData::new(weights, [batch, width, 1]), &device);
    let divisors = Tensor::<B, 3>::from_data(TensorData::new(divisors, [batch, 1, 1]), &device);
    (inside.clone() * weights).sum_dim(1) / divisors
}

#[cfg(all(test, feature = "ndarray"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    type B = burn_ndarray::NdArray;

    /// Two sentences of 3 and 2 tokens, of two features; what padding holds is NaN.
    fn hidden() -> Tensor<B, 3> {
        let nan = f32::NAN;
        Tensor::from_data(
            [[[1.0, -2.0], [4.0, 8.0], [2.5, 3.0]], [[-1.0, 5.0], [3.0, -7.0], [nan, nan]]],
            &Default::default(),
        )
    }

    fn read(record: Value) -> Result<Pooling, ConfigError> {
        Pooling::read(&Fields::new(&record)?, 2)
    }

    #[track_caller]
    fn assert_pooled(record: Value, prompt: usize, expected: &[f32]) {
        let pooled = read(record).unwrap().forward(hidden(), &[3, 2], prompt);
        let found: Vec<f32> = pooled.into_data().iter().collect();
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{found:?} and {expected:?}");
        }
    }

    #[test]
    fn each_mode_is_that_of_sentence_transformers() {
        let (three, two) = (3f32.sqrt(), 2f32.sqrt());
        for (name, flag, expected) in [
            ("cls", "pooling_mode_cls_token", [1.0, -2.0, -1.0, 5.0]),
            ("max", "pooling_mode_max_tokens", [4.0, 8.0, 3.0, 5.0]),
            ("mean", "pooling_mode_mean_tokens", [2.5, 3.0, 1.0, -1.0]),
            (
                "mean_sqrt_len_tokens",
                "pooling_mode_mean_sqrt_len_tokens",
                [7.5 / three, 9.0 / three, 2.0 / two, -2.0 / two],
            ),
            ("weightedmean", "pooling_mode_weightedmean_tokens", [16.5 / 6.0, 23.0 / 6.0, 5.0 / 3.0, -3.0]),
            ("lasttoken", "pooling_mode_lasttoken", [2.5, 3.0, 3.0, -7.0]),
        ] {
            assert_pooled(json!({ "pooling_mode": name }), 0, &expected);
            assert_pooled(json!({ "word_embedding_dimension": 2, flag: true }), 0, &expected);
            // A prompt counts, unless the module leaves it out.
            assert_pooled(json!({ "pooling_mode": name }), 1, &expected);
        }
    }

    #[test]
    fn several_modes_are_joined_in_their_order() {
        let flags = json!({ "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true });
        assert_pooled(flags, 0, &[1.0, -2.0, 2.5, 3.0, -1.0, 5.0, 1.0, -1.0]);
        assert_pooled(json!({ "pooling_mode": ["mean", "cls"] }), 0, &[2.5, 3.0, 1.0, -2.0, 1.0, -1.0, -1.0, 5.0]);
    }

    #[test]
    fn a_prompt_is_left_out_if_the_module_says_so() {
        let without = |mode: &str| json!({ "pooling_mode": mode, "include_prompt": false });
        assert_pooled(without("mean"), 1, &[3.25, 5.5, 3.0, -7.0]);
        assert_pooled(without("cls"), 1, &[4.0, 8.0, 3.0, -7.0]);
        assert_pooled(without("max"), 1, &[4.0, 8.0, 3.0, -7.0]);
        assert_pooled(without("weightedmean"), 1, &[15.5 / 5.0, 25.0 / 5.0, 3.0, -7.0]);
        // Nothing but the prompt gives zeros.
        assert_pooled(without("mean"), 2, &[2.5, 3.0, 0.0, 0.0]);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (record, expected) in [
            (json!({ "pooling_mode": "median" }), "`pooling_mode` is \"median\", which is not supported"),
            (json!({ "pooling_mode": 3 }), "`pooling_mode` is 3, and a text"),
            (json!({ "pooling_mode_cls_token": "yes" }), "`pooling_mode_cls_token` is \"yes\", and true or false"),
            (json!({ "pooling_mode": "mean", "pooling_mode_cls_token": true }), "keep one of the two"),
            (json!({ "word_embedding_dimension": 3 }), "`word_embedding_dimension` is 3, which is not supported"),
            (json!({ "pooling_mode_attention": true }), "`pooling_mode_attention` is true, and a pooling module"),
        ] {
            let message = read(record).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert_eq!(read(json!({})).unwrap(), Pooling::mean());
    }
}
