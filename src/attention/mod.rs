//! The three attention modules.

mod bloom;
mod diffusers;
mod self_attention;

pub use bloom::BloomSelfAttention;
pub use diffusers::{ContextKeys, DeepSpeedDiffusersAttention};
pub use self_attention::{AttentionOutput, DeepSpeedSelfAttention, Outputs};

use std::num::NonZeroUsize;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use crate::config::{DataType, DeepSpeedInferenceConfig, is_cubecl};
use crate::error::{AttentionError, ConfigError};
use crate::ops::{InferenceBackend, Operations, Plan};
use crate::parallel::{Communicator, Settings};
use crate::spec::AttentionSpec;
use crate::weight::{Int8Blocks, Orientation, QkvWeight, SeparateQkv, Weight};

/// What a module is built with, once the configuration was checked against the backend.
struct Build<'a, B: Backend> {
    config: &'a DeepSpeedInferenceConfig,
    spec: AttentionSpec,
    dtype: DType,
    orientation: Orientation,
    device: &'a B::Device,
}

impl<'a, B: Backend> Build<'a, B> {
    fn new(config: &'a DeepSpeedInferenceConfig, layer_id: usize, device: &'a B::Device) -> Result<Self, ConfigError> {
        let mut spec = config.resolve(layer_id)?;
        let dtype = spec.dtype.of_backend::<B>(device)?;
        if config.enable_qkv_quantization {
            DataType::require_int8::<B>(device)?;
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

    /// The blocks of an int8 matrix with so many outputs.
    fn blocks(&self, outputs: usize) -> Result<Int8Blocks, ConfigError> {
        let Some(groups) = self.config.quantize_groups else { return Ok(Int8Blocks::PerOutput) };
        let rows = NonZeroUsize::new(outputs / groups).filter(|_| outputs.is_multiple_of(groups));
        rows.map(Int8Blocks::Outputs).ok_or(ConfigError::GroupsDoNotDivide { groups, outputs })
    }

    fn qkv_weight(&self, input: usize, output: usize) -> Result<Weight<B>, ConfigError> {
        let int8 = self.config.dtype == DataType::Int8 || self.config.enable_qkv_quantization;
        self.weight(input, output, self.config.qkv_bias, int8)
    }

    fn fused(&self) -> Result<QkvWeight<B>, ConfigError> {
        Ok(QkvWeight::Fused(self.qkv_weight(self.spec.hidden_size, self.spec.qkv_width())?))
    }

    /// Projections of their own; keys and values read an input of `context` features.
    fn separate(&self, context: usize) -> Result<QkvWeight<B>, ConfigError> {
        Ok(QkvWeight::Separate(SeparateQkv {
            query: self.qkv_weight(self.spec.hidden_size, self.spec.query_width())?,
            key: self.qkv_weight(context, self.spec.kv_width())?,
            value: self.qkv_weight(context, self.spec.kv_width())?,
        }))
    }

    fn output(&self) -> Result<Weight<B>, ConfigError> {
        let int8 = self.config.dtype == DataType::Int8;
        self.weight(self.spec.query_width(), self.spec.hidden_size, self.config.output_bias, int8)
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

/// An error if the plan is the reference and that is forbidden.
fn check_plan(spec: &AttentionSpec, operation: &'static str, plan: Plan) -> Result<(), AttentionError> {
    match plan {
        Plan::Reference(reason) if spec.require_fast => Err(AttentionError::NoFastPath { operation, reason }),
        _ => Ok(()),
    }
}

/// One layer's end of a communicator.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    communicator: Arc<dyn Communicator>,
    settings: Settings,
}

impl Link {
    fn new(spec: &AttentionSpec, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        let (own, actual, size) = (spec.ranks, communicator.rank(), communicator.size());
        match (own.rank(), own.ranks()) == (actual, size) {
            true => Ok(Self { communicator, settings: spec.settings() }),
            false => Err(ConfigError::OtherRank { rank: own.rank(), ranks: own.ranks(), actual, size }),
        }
    }
}

/// The output projection of `context`, its sum over all ranks, and the bias behind it, once: in one operation where there is
/// one rank.
fn project_and_sum<B: InferenceBackend>(
    spec: &AttentionSpec,
    link: Option<&Link>,
    context: Tensor<B, 3>,
    output: &Weight<B>,
    defer_bias: bool,
) -> Result<Tensor<B, 3>, AttentionError> {
    let (rank, ranks) = (spec.ranks.rank(), spec.ranks.ranks());
    if ranks == 1 && !defer_bias {
        return Ok(B::Ops::linear(context, output));
    }
    let sum = match link {
        _ if ranks == 1 => B::Ops::vector_matmul(context, output),
        Some(Link { communicator, settings }) => {
            B::Ops::all_reduce(B::Ops::vector_matmul(context, output), &**communicator, settings)?
        }
        None => return Err(AttentionError::NoCommunicator { rank, ranks }),
    };
    Ok(match output.bias().filter(|_| !defer_bias) {
        Some(bias) => sum + bias.unsqueeze(),
        None => sum,
    })
}

/// Switches the gradients of every parameter.
fn set_require_grad<B: Backend, M: Module<B>>(module: M, require_grad: bool) -> M {
    struct Switch(bool);
    impl<B: Backend> ModuleMapper<B> for Switch {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.set_require_grad(self.0)
        }
    }
    module.map(&mut Switch(require_grad))
}
