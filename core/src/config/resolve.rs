//! From settings to the checked sizes of one layer on one rank.

use super::settings::DeepSpeedInferenceConfig;
use super::values::{NormType, WindowKind};
use crate::data_type::{ActivationRounding, DataType, MatrixFormat};
use crate::error::{ConfigError, Origin};
use crate::kv_source::KvSource;
use crate::layout::RotaryLayout;
use crate::parallel::{Communicator, RankGroup, TpPlan};
use crate::position::rotary::{RopeScaling, Rotary};
use crate::position::{PositionEncoding, SectionOrder};
use crate::spec::{AttentionSpec, NormSpec, QkNorm, QkNormKind, QkNormWeights};
use crate::visibility::Window;

impl DeepSpeedInferenceConfig {
    /// The tensor-parallel group that this process belongs to.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] if there are several ranks and `local_rank` is not given.
    pub fn rank_group(&self) -> Result<RankGroup, ConfigError> {
        match (self.mp_size, self.local_rank) {
            // A launcher numbers the processes of a machine even if they do not share a model.
            (0 | 1, _) => RankGroup::new(0, self.mp_size),
            (_, None) => Err(ConfigError::Missing { key: "local_rank", origin: Origin::Program }),
            (ranks, Some(rank)) => RankGroup::new(rank, ranks),
        }
    }

    /// The same settings for the rank of this communicator: sets `mp_size` and `local_rank`.
    pub fn for_rank_of(self, communicator: &dyn Communicator) -> Self {
        self.with_mp_size(communicator.size()).with_local_rank(Some(communicator.rank()))
    }

    /// How the heads are split over `mp_size` ranks.
    ///
    /// # Errors
    /// Those of [`TpPlan::new`], or of [`TpPlan::uneven`] under `uneven_heads`.
    pub fn tp_plan(&self) -> Result<TpPlan, ConfigError> {
        let plan = if self.uneven_heads { TpPlan::uneven } else { TpPlan::new };
        plan(self.heads, self.num_kv.unwrap_or(self.heads), self.mp_size)
    }

    /// An error if matrices should be int8 and in another format as well.
    fn check_matrix_format(&self) -> Result<(), ConfigError> {
        let int8 = match (self.dtype == Some(DataType::Int8), self.enable_qkv_quantization) {
            (true, _) => "`dtype` is a float",
            (_, true) => "`enable_qkv_quantization` is false",
            _ => return Ok(()),
        };
        match self.matrix_format {
            MatrixFormat::OfDtype => Ok(()),
            format => Err(ConfigError::Unsupported {
                key: "matrix_format".into(),
                value: format!("\"{format}\""),
                supported: format!("\"dtype\", unless {int8}"),
            }),
        }
    }

    /// An error if inputs should be rounded to bf16 and matrices are integers.
    fn check_rounding(&self) -> Result<(), ConfigError> {
        if self.round_activations != ActivationRounding::Bf16 {
            return Ok(());
        }
        let unless = if self.dtype == Some(DataType::Int8) {
            "`dtype` is \"bf16\" or \"fp16\""
        } else if self.enable_qkv_quantization {
            "`enable_qkv_quantization` is false"
        } else if self.matrix_format.wanted().is_some_and(|format| format.elements() > 1) {
            "`matrix_format` is \"bf16\" or \"f16\""
        } else {
            return Ok(());
        };
        Err(ConfigError::Unsupported {
            key: "round_activations".into(),
            value: "\"bf16\"".into(),
            supported: format!("false, 14 and 8, unless {unless}"),
        })
    }

    /// Checks every setting and derives the sizes of layer `layer_id` on this rank.
    ///
    /// # Errors
    /// A [`ConfigError`] with the fact, the limit and the remedy.
    pub fn resolve(&self, layer_id: usize) -> Result<AttentionSpec, ConfigError> {
        for (key, value) in [
            ("hidden_size", self.hidden_size),
            ("heads", self.heads),
            ("num_kv", self.num_kv.unwrap_or(1)),
            ("head_dim", self.head_dim.unwrap_or(1)),
            ("mp_size", self.mp_size),
            ("training_mp_size", self.training_mp_size),
            ("window_size", self.window_size),
            ("max_out_tokens", self.max_out_tokens),
            ("quantize_groups", self.quantize_groups.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(ConfigError::OutOfRange { key, value: "0".into(), limit: "at least 1" });
            }
        }
        let out_of_range = |key, value: f64, limit| ConfigError::OutOfRange { key, value: value.to_string(), limit };
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0) {
            return Err(out_of_range("layer_norm_eps", self.layer_norm_eps, "a number of at least 0"));
        }
        if let Some(cap) = self.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return Err(out_of_range("softcap", cap, "a number above 0"));
        }
        if let Some(clip) = self.qkv_clip.filter(|clip| !(clip.is_finite() && *clip > 0.0)) {
            return Err(out_of_range("qkv_clip", clip, "a number above 0"));
        }
        if !(self.alibi_factor.is_finite() && self.alibi_factor > 0.0) {
            return Err(out_of_range("alibi_factor", self.alibi_factor, "a number above 0"));
        }
        self.check_matrix_format()?;
        self.check_rounding()?;
        self.check_queries_and_keys()?;
        self.check_kv_source(layer_id)?;
        if self.min_out_tokens > self.max_out_tokens {
            let limit = "at most `max_out_tokens`; raise `max_out_tokens`";
            return Err(out_of_range("min_out_tokens", self.min_out_tokens as f64, limit));
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(self.heads) {
            return Err(ConfigError::HeadsDoNotDivide { hidden_size: self.hidden_size, heads: self.heads });
        }
        if self.pre_layer_norm && self.norm_type == NormType::GroupNorm {
            return Err(ConfigError::GroupNorm);
        }
        let head_dim = self.head_size();
        let ranks = self.rank_group()?;
        Ok(AttentionSpec {
            layer_id,
            hidden_size: self.hidden_size,
            shard: self.tp_plan()?.shard(ranks.rank()),
            ranks,
            training_ranks: self.training_mp_size,
            head_dim,
            latent: None,
            scale: self.scale(layer_id, head_dim)?,
            softcap: self.softcap,
            causal: self.triangular_masking,
            window: self.window()?,
            position: self.position(head_dim)?,
            norm: self
                .pre_layer_norm
                .then_some(NormSpec { rms: self.norm_type == NormType::RMSNorm, epsilon: self.layer_norm_eps }),
            qk_norm: self.qk_norm,
            query_factor: self.query_factor,
            qkv_clip: self.qkv_clip,
            sinks: self.sinks,
            context_gate: self.context_gate,
            key_bias: self.key_bias,
            kv_source: self.kv_source,
            dtype: self.dtype,
            kv_cache_dtype: self.kv_cache_dtype,
            max_out_tokens: self.max_out_tokens,
            require_fast: self.require_fast,
        })
    }

    /// Checks the norm of queries and keys, and the factor of queries by their position.
    fn check_queries_and_keys(&self) -> Result<(), ConfigError> {
        let at_least_zero = |key, value: f64| match value.is_finite() && value >= 0.0 {
            true => Ok(()),
            false => Err(ConfigError::OutOfRange { key, value: value.to_string(), limit: "a number of at least 0" }),
        };
        if let Some(norm) = self.qk_norm {
            at_least_zero("qk_norm.epsilon", norm.epsilon)?;
            if norm.plus_one && norm.weights == QkNormWeights::None {
                return Err(ConfigError::Contradiction {
                    key: "qk_norm.plus_one",
                    other: "`qk_norm.weights` none",
                    remedy: "1 is added to weights; set `plus_one` to false, or `weights` to shared or per_head",
                });
            }
        }
        if let Some(QkNorm { kind: QkNormKind::LayerNorm | QkNormKind::RmsOfAllHeads, values: true, .. }) = self.qk_norm
        {
            return Err(ConfigError::Contradiction {
                key: "qk_norm.values",
                other: "a `qk_norm.kind` other than rms",
                remedy: "values are normalised by the root mean square of each head; set `kind` to rms, or `values` to false",
            });
        }
        if let Some(QkNorm { kind: QkNormKind::RmsOfAllHeads, after_rotation: true, .. }) = self.qk_norm {
            return Err(ConfigError::Contradiction {
                key: "qk_norm.after_rotation",
                other: "`qk_norm.kind` rms_of_all_heads",
                remedy: "a norm of all heads comes before the rotation; set `after_rotation` to false",
            });
        }
        if let Some(factor) = self.query_factor {
            at_least_zero("query_factor.weight", factor.weight)?;
            if factor.interval == 0 {
                let (key, limit) = ("query_factor.interval", "at least 1");
                return Err(ConfigError::OutOfRange { key, value: "0".into(), limit });
            }
        }
        Ok(())
    }

    fn check_kv_source(&self, layer_id: usize) -> Result<(), ConfigError> {
        match self.kv_source {
            KvSource::Layer(layer) if layer >= layer_id => Err(ConfigError::OutOfRange {
                key: "kv_source.layer",
                value: layer.to_string(),
                limit: "a layer before the one that reads its keys",
            }),
            KvSource::KeysAreValues | KvSource::Layer(_) if !self.key_bias => Err(ConfigError::Contradiction {
                key: "kv_source",
                other: "`key_bias` false",
                remedy: "`key_bias` is for keys and values with projections of their own; leave one of the two at its default",
            }),
            _ => Ok(()),
        }
    }

    /// DeepSpeed multiplies queries and keys by the root of this factor each.
    pub(super) fn scale(&self, layer_id: usize, head_dim: usize) -> Result<f64, ConfigError> {
        if let Some(factor) = self.score_factor {
            if !(factor.is_finite() && factor > 0.0) {
                let (key, value) = ("score_factor", factor.to_string());
                return Err(ConfigError::OutOfRange { key, value, limit: "a number above 0" });
            }
            let others = [
                (!self.scale_attention, "`scale_attention` false"),
                (self.use_mup, "`use_mup` true"),
                (self.scale_attn_by_inverse_layer_idx, "`scale_attn_by_inverse_layer_idx` true"),
            ];
            let remedy = "it is the whole factor of the scores; leave one of the two at its default";
            return match others.into_iter().find(|(set, _)| *set) {
                Some((_, other)) => Err(ConfigError::Contradiction { key: "score_factor", other, remedy }),
                None => Ok(factor),
            };
        }
        let divisor = match (self.scale_attention, self.use_mup) {
            (false, _) => 1.0,
            (true, false) => (head_dim as f64).sqrt(),
            (true, true) => head_dim as f64,
        };
        let layers = if self.scale_attn_by_inverse_layer_idx { (layer_id + 1) as f64 } else { 1.0 };
        Ok(1.0 / (divisor * layers))
    }

    fn position(&self, head_dim: usize) -> Result<PositionEncoding, ConfigError> {
        let layout = match (self.rotate_half, self.rotate_every_two) {
            (true, true) => return Err(ConfigError::BothRotaryLayouts),
            (true, false) => Some(RotaryLayout::Half),
            (false, true) => Some(RotaryLayout::Interleaved),
            (false, false) => None,
        };
        let Some(dim) = self.rotary_dim.filter(|&dim| dim > 0) else {
            return Ok(match self.bigscience_bloom {
                true => PositionEncoding::Alibi { factor: self.alibi_factor },
                false => PositionEncoding::None,
            });
        };
        if self.bigscience_bloom {
            return Err(ConfigError::AlibiAndRotary(dim));
        }
        if !dim.is_multiple_of(2) {
            return Err(ConfigError::RotaryDimOdd(dim));
        }
        if dim > head_dim {
            return Err(ConfigError::RotaryDimTooLong { rotary_dim: dim, head_dim });
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            let value = self.rope_theta.to_string();
            return Err(ConfigError::OutOfRange { key: "rope_theta", value, limit: "a number above 0" });
        }
        let layout = layout.ok_or(ConfigError::NoRotaryLayout(dim))?;
        self.check_pairs(dim / 2)?;
        let (theta, scaling, sections) = (self.rope_theta, self.rope_scaling.clone(), self.rope_sections);
        Ok(PositionEncoding::Rotary(Rotary { dim, layout, theta, scaling, sections }))
    }

    /// Checks what has an entry for each pair that rotates.
    fn check_pairs(&self, pairs: usize) -> Result<(), ConfigError> {
        let mut counts = Vec::new();
        if let RopeScaling::LongRope { short_factor, long_factor, .. } = &self.rope_scaling {
            counts.push(("rope_scaling.short_factor", "factors", short_factor.len()));
            counts.push(("rope_scaling.long_factor", "factors", long_factor.len()));
        }
        counts.extend(self.rope_sections.map(|sections| ("rope_sections", "pairs", sections.total())));
        let separate = self.rope_sections.is_some_and(|sections| sections.order == SectionOrder::Separate);
        if separate && self.rope_scaling != RopeScaling::Default {
            return Err(ConfigError::Contradiction {
                key: "rope_sections.order",
                other: "`rope_scaling`",
                remedy: "separate sections are not scaled; set `rope_scaling` to default, or `order` to that of the model",
            });
        }
        match counts.into_iter().find(|(.., given)| *given != pairs) {
            Some((key, what, given)) => Err(ConfigError::RotaryPairs { key, what, given, pairs }),
            None => Ok(()),
        }
    }

    /// The window of a layer. The kind is checked for layers without one too, since the layers of a model share it.
    fn window(&self) -> Result<Option<Window>, ConfigError> {
        let (size, causal) = (self.window_size, self.triangular_masking);
        let contradiction = |other, remedy| Err(ConfigError::Contradiction { key: "window_kind", other, remedy });
        let window = match self.window_kind {
            WindowKind::Backward => Window::Back(size),
            WindowKind::Symmetric if causal => {
                let remedy = "a symmetric window shows later tokens; set `triangular_masking` to false";
                return contradiction("`triangular_masking` true", remedy);
            }
            WindowKind::Symmetric => Window::Around(size / 2),
            WindowKind::Chunked if !causal => {
                let remedy = "chunks are causal; set `triangular_masking` to true";
                return contradiction("`triangular_masking` false", remedy);
            }
            WindowKind::Chunked => Window::Chunk(size),
        };
        Ok(self.local_attention.then_some(window))
    }
}
