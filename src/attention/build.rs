//! What every module is built from: the configuration, checked against a backend.

use std::num::NonZeroUsize;

use burn::tensor::{DType, backend::Backend};

use super::projections::Projections;
use crate::config::{DataType, DeepSpeedInferenceConfig};
use crate::element::{OfBackend, is_cubecl, require_int8};
use crate::error::ConfigError;
use crate::spec::AttentionSpec;
use crate::weight::{FusedNorm, Int8Blocks, Orientation, QkvWeight, SeparateQkv, Weight};

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
        let mut spec = config.resolve(layer_id)?;
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
        let weight = match int8 {
            true => Weight::init_int8(input, output, bias, self.blocks(output)?, self.dtype, self.device)?,
            false => Weight::init(input, output, bias, self.orientation, self.dtype, self.device),
        };
        Ok(weight.with_rounded_input(self.config.round_activations))
    }

    /// The blocks of an int8 matrix with `outputs` outputs.
    fn blocks(&self, outputs: usize) -> Result<Int8Blocks, ConfigError> {
        let Some(groups) = self.config.quantize_groups else { return Ok(Int8Blocks::PerOutput) };
        let rows = NonZeroUsize::new(outputs / groups).filter(|_| outputs.is_multiple_of(groups));
        rows.map(Int8Blocks::Outputs).ok_or(ConfigError::GroupsDoNotDivide { groups, outputs })
    }

    fn qkv_weight(&self, input: usize, output: usize) -> Result<Weight<B>, ConfigError> {
        self.part(input, output, self.config.qkv_bias)
    }

    /// A projection of the kind of QKV, with a bias or without.
    fn part(&self, input: usize, output: usize, bias: bool) -> Result<Weight<B>, ConfigError> {
        let int8 = self.config.dtype == Some(DataType::Int8) || self.config.enable_qkv_quantization;
        self.weight(input, output, bias, int8)
    }

    /// The projection of queries alone.
    pub(super) fn query(&self) -> Result<Weight<B>, ConfigError> {
        self.qkv_weight(self.spec.hidden_size, self.spec.query_width())
    }

    /// The projection of keys from `context` features.
    pub(super) fn key(&self, context: usize) -> Result<Weight<B>, ConfigError> {
        self.part(context, self.spec.kv_width(), self.config.qkv_bias && self.config.key_bias)
    }

    /// The projection of values from `context` features.
    pub(super) fn value(&self, context: usize) -> Result<Weight<B>, ConfigError> {
        self.qkv_weight(context, self.spec.kv_width())
    }

    /// The norm before the projections.
    pub(super) fn norm(&self) -> Option<FusedNorm<B>> {
        let norm =
            |spec| FusedNorm::init(self.config.hidden_size, self.config.norm_bias, spec, self.dtype, self.device);
        self.spec.norm.map(norm)
    }

    pub(super) fn fused(&self) -> Result<QkvWeight<B>, ConfigError> {
        Ok(QkvWeight::Fused(self.qkv_weight(self.spec.hidden_size, self.spec.qkv_width())?))
    }

    /// The projection of the gate on the context, if the layer has one: of the type of the QKV projection, and with a bias if that has
    /// one.
    pub(super) fn gate(&self) -> Result<Option<Weight<B>>, ConfigError> {
        let gate = || self.qkv_weight(self.spec.hidden_size, self.spec.query_width());
        self.spec.context_gate.then(gate).transpose()
    }

    /// Separate projections; the input of keys and values has `context` features.
    pub(super) fn separate(&self, context: usize) -> Result<QkvWeight<B>, ConfigError> {
        Ok(QkvWeight::Separate(SeparateQkv {
            query: self.query()?,
            key: self.key(context)?,
            value: self.value(context)?,
        }))
    }

    /// The projections of a module with this QKV projection.
    pub(super) fn projections(self, qkv: QkvWeight<B>) -> Result<Projections<B>, ConfigError> {
        let (width, hidden) = (self.spec.query_width(), self.spec.hidden_size);
        let int8 = self.config.dtype == Some(DataType::Int8);
        let output = self.weight(width, hidden, self.config.output_bias, int8)?;
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
