//! What every module is built from: the configuration, checked against a backend.

use std::num::NonZeroUsize;

use burn::tensor::{DType, backend::Backend};

use super::joint::JointStream;
use super::latent::{DeepSpeedLatentAttention, LatentQuery, QueryLatent};
use super::projections::Projections;
use crate::config::{DataType, DeepSpeedInferenceConfig, LatentSizes};
use crate::element::{OfBackend, is_cubecl, require_int8};
use crate::error::ConfigError;
use crate::spec::{AttentionSpec, NormSpec};
use crate::weight::{FusedNorm, Int8Blocks, Orientation, QkvWeight, QueryKeyNorm, SeparateQkv, Weight};

/// A configuration that was checked against a backend.
pub(super) struct Build<'a, B: Backend> {
    pub(super) config: &'a DeepSpeedInferenceConfig,
    pub(super) spec: AttentionSpec,
    pub(super) dtype: DType,
    pub(super) orientation: Orientation,
    pub(super) device: &'a B::Device,
}

impl<'a, B: Backend> Build<'a, B> {
    pub(super) fn new(
        config: &'a DeepSpeedInferenceConfig,
        layer_id: usize,
        device: &'a B::Device,
    ) -> Result<Self, ConfigError> {
        Self::of_spec(config, config.resolve(layer_id)?, device)
    }

    /// A configuration of which a layer was derived.
    pub(super) fn of_spec(
        config: &'a DeepSpeedInferenceConfig,
        mut spec: AttentionSpec,
        device: &'a B::Device,
    ) -> Result<Self, ConfigError> {
        let dtype = spec.dtype.of_backend::<B>(device)?;
        if config.enable_qkv_quantization {
            require_int8::<B>(device)?;
        }
        if config.use_triton && !has_gpu_kernels::<B>(device) {
            return Err(ConfigError::NoFusedKernels { backend: B::name(device) });
        }
        spec.require_fast |= config.use_triton || fallback_is_forbidden();
        let orientation = match config.transposed_mode {
            true => Orientation::OutputInput,
            false => Orientation::InputOutput,
        };
        Ok(Self { config, spec, dtype, orientation, device })
    }

    fn weight(&self, input: usize, output: usize, bias: bool, int8: bool) -> Result<Weight<B>, ConfigError> {
        let format = self.config.matrix_format;
        let weight = match int8 {
            true => Weight::init_int8(input, output, bias, self.blocks(output)?, self.dtype, self.device),
            false => Weight::init_with_format(input, output, bias, format, self.orientation, self.dtype, self.device),
        }?;
        Ok(weight.with_rounded_input(self.config.round_activations))
    }

    /// The blocks of an int8 matrix with `outputs` outputs.
    fn blocks(&self, outputs: usize) -> Result<Int8Blocks, ConfigError> {
        let Some(groups) = self.config.quantize_groups else { return Ok(Int8Blocks::PerOutput) };
        let rows = NonZeroUsize::new(outputs / groups).filter(|_| outputs.is_multiple_of(groups));
        rows.map(Int8Blocks::Outputs).ok_or(ConfigError::GroupsDoNotDivide { groups, outputs })
    }

    fn qkv_weight(&self, input: usize, output: usize) -> Result<Weight<B>, ConfigError> {
        self.input_weight(input, output, self.config.qkv_bias)
    }

    /// A projection before attention, with a bias or without.
    fn input_weight(&self, input: usize, output: usize, bias: bool) -> Result<Weight<B>, ConfigError> {
        let int8 = self.config.dtype == Some(DataType::Int8) || self.config.enable_qkv_quantization;
        self.weight(input, output, bias, int8)
    }

    /// The projection of queries alone, from `inputs` features.
    pub(super) fn query(&self, inputs: usize) -> Result<Weight<B>, ConfigError> {
        self.qkv_weight(inputs, self.spec.query_width())
    }

    /// The projection of keys from `context` features.
    pub(super) fn key(&self, context: usize) -> Result<Weight<B>, ConfigError> {
        self.input_weight(context, self.spec.kv_width(), self.config.qkv_bias && self.config.key_bias)
    }

    /// The projection of values from `context` features.
    pub(super) fn value(&self, context: usize) -> Result<Weight<B>, ConfigError> {
        self.qkv_weight(context, self.spec.kv_width())
    }

    /// The norm before the projections.
    pub(super) fn norm(&self) -> Option<FusedNorm<B>> {
        self.spec.norm.map(|spec| self.norm_of(self.spec.hidden_size, spec))
    }

    fn norm_of(&self, features: usize, spec: NormSpec) -> FusedNorm<B> {
        FusedNorm::init(features, self.config.norm_bias, spec, self.dtype, self.device)
    }

    pub(super) fn fused(&self) -> Result<QkvWeight<B>, ConfigError> {
        self.fused_from(self.spec.hidden_size)
    }

    fn fused_from(&self, inputs: usize) -> Result<QkvWeight<B>, ConfigError> {
        Ok(QkvWeight::Fused(self.qkv_weight(inputs, self.spec.qkv_width())?))
    }

    /// A stream of a joint attention: tokens of `inputs` features.
    pub(super) fn stream(&self, inputs: usize, has_output: bool) -> Result<JointStream<B>, ConfigError> {
        let qkv =
            if self.config.set_empty_params { self.separate_from(inputs, inputs)? } else { self.fused_from(inputs)? };
        let output = has_output.then(|| self.output(self.spec.query_width())).transpose()?;
        Ok(JointStream { qkv, query_key_norm: QueryKeyNorm::init(&self.spec, self.device), output })
    }

    /// The output projection of a context of `width` features.
    fn output(&self, width: usize) -> Result<Weight<B>, ConfigError> {
        let int8 = self.config.dtype == Some(DataType::Int8);
        self.weight(width, self.spec.hidden_size, self.config.output_bias, int8)
    }

    /// The projection of the gate on the context, if the layer has one: of the type of the QKV projection, and with a bias if that has
    /// one.
    pub(super) fn gate(&self) -> Result<Option<Weight<B>>, ConfigError> {
        let gate = || self.query(self.spec.hidden_size);
        self.spec.context_gate.then(gate).transpose()
    }

    /// Separate projections; the input of keys and values has `context` features.
    pub(super) fn separate(&self, context: usize) -> Result<QkvWeight<B>, ConfigError> {
        self.separate_from(self.spec.hidden_size, context)
    }

    fn separate_from(&self, inputs: usize, context: usize) -> Result<QkvWeight<B>, ConfigError> {
        let (query, key, value) = (self.query(inputs)?, self.key(context)?, self.value(context)?);
        Ok(QkvWeight::Separate(SeparateQkv { query, key, value }))
    }

    /// Latent attention of these sizes.
    pub(super) fn latent(self, sizes: &LatentSizes) -> Result<DeepSpeedLatentAttention<B>, ConfigError> {
        let (hidden, heads) = (self.spec.hidden_size, self.spec.heads());
        let latent_norm = |size| self.norm_of(size, NormSpec { rms: true, epsilon: sizes.norm_epsilon });
        let latent = sizes.q_lora_rank.map(|rank| {
            let down = QkvWeight::Fused(self.qkv_weight(hidden, rank)?);
            Ok::<_, ConfigError>(QueryLatent { down, norm: latent_norm(rank) })
        });
        let input = sizes.q_lora_rank.unwrap_or(hidden);
        let up = QkvWeight::Fused(self.input_weight(input, heads * sizes.key_dim(), false)?);
        let query = LatentQuery { latent: latent.transpose()?, up };
        let rows = QkvWeight::Fused(self.qkv_weight(hidden, sizes.row_dim())?);
        let width = heads * sizes.up_dim();
        let up = Weight::init(sizes.kv_lora_rank, width, false, self.orientation, self.dtype, self.device);
        let (norm, latent_norm) = (self.norm(), latent_norm(sizes.kv_lora_rank));
        let projections = self.projections_of(rows, heads * sizes.v_head_dim)?;
        Ok(DeepSpeedLatentAttention { norm, query, projections, latent_norm, up })
    }

    /// The projections of a module with this QKV projection.
    pub(super) fn projections(self, qkv: QkvWeight<B>) -> Result<Projections<B>, ConfigError> {
        let width = self.spec.query_width();
        self.projections_of(qkv, width)
    }

    /// The same, with a context of `width` features.
    fn projections_of(self, qkv: QkvWeight<B>, width: usize) -> Result<Projections<B>, ConfigError> {
        let output = self.output(width)?;
        Ok(Projections::new(qkv, output, self.spec, self.config.defer_output_bias))
    }
}

/// Whether the backend runs on our CubeCL kernels.
fn has_gpu_kernels<B: Backend>(device: &B::Device) -> bool {
    cfg!(feature = "cubecl") && is_cubecl::<B>(device) && !B::name(device).starts_with("autodiff")
}

/// DeepSpeed's switch: `DS_KI_FALLBACK=False` forbids the reference.
fn fallback_is_forbidden() -> bool {
    let value = std::env::var("DS_KI_FALLBACK").unwrap_or_default();
    value.eq_ignore_ascii_case("false") || value == "0"
}
