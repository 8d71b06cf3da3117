//! The output projection and its sum over the ranks of a group.

use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, backend::Backend};

use crate::error::{AttentionError, ConfigError};
use crate::ops::{InferenceBackend, Operations, Plan};
use crate::parallel::{Communicator, Settings};
use crate::spec::AttentionSpec;
use crate::weight::Weight;

/// One layer's end of a communicator.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    communicator: Arc<dyn Communicator>,
    settings: Settings,
}

impl Link {
    pub(super) fn new(spec: &AttentionSpec, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        let (own, actual, size) = (spec.ranks, communicator.rank(), communicator.size());
        match (own.rank(), own.ranks()) == (actual, size) {
            true => Ok(Self { communicator, settings: spec.settings() }),
            false => Err(ConfigError::OtherRank { rank: own.rank(), ranks: own.ranks(), actual, size }),
        }
    }
}

/// The output projection of `context`, its sum over all ranks, and the bias behind it, once: in one operation where there is
/// one rank.
pub(super) fn project_and_sum<B: InferenceBackend>(
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

/// An error if the plan is the reference and that is forbidden.
pub(super) fn check_plan(spec: &AttentionSpec, operation: &'static str, plan: Plan) -> Result<(), AttentionError> {
    match plan {
        Plan::Reference(reason) if spec.require_fast => Err(AttentionError::NoFastPath { operation, reason }),
        _ => Ok(()),
    }
}

/// Switches the gradients of every parameter.
pub(super) fn set_require_grad<B: Backend, M: Module<B>>(module: M, require_grad: bool) -> M {
    struct Switch(bool);
    impl<B: Backend> ModuleMapper<B> for Switch {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.set_require_grad(self.0)
        }
    }
    module.map(&mut Switch(require_grad))
}
