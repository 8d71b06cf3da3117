//! What the attention modules share: the projections around attention, and the sum over the ranks of a group.

use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::connection::{Connection, require};
use crate::config::{ActivationRounding, KvCacheType};
use crate::element::element_type;
use crate::error::{AttentionError, ConfigError, WeightError};
use crate::ops::{ContextProblem, InferenceBackend, Operations, Plan};
use crate::parallel::Communicator;
use crate::spec::AttentionSpec;
use crate::weight::{BlockFormat, Int8Blocks, QkvWeight, Weight};
use crate::zeros::zeros;

/// The projections of an attention module, the sizes of its layer, and its connection to the other ranks.
#[derive(Module, Debug)]
pub struct Projections<B: Backend> {
    pub(crate) qkv: QkvWeight<B>,
    pub(crate) output: Weight<B>,
    #[module(skip)]
    pub(crate) spec: AttentionSpec,
    #[module(skip)]
    defer_output_bias: bool,
    #[module(skip)]
    connection: Connection,
}

impl<B: Backend> Projections<B> {
    pub(super) fn new(qkv: QkvWeight<B>, output: Weight<B>, spec: AttentionSpec, defer_output_bias: bool) -> Self {
        Self { qkv, output, spec, defer_output_bias, connection: Connection::default() }
    }

    /// The same layer with other weights.
    pub(crate) fn with_weights(self, qkv: QkvWeight<B>, output: Weight<B>) -> Self {
        Self { qkv, output, ..self }
    }

    pub(super) fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self { qkv: self.qkv.quantize(blocks)?, output: self.output.quantize(blocks)?, ..self })
    }

    pub(super) fn quantize_blocks(self, format: BlockFormat) -> Result<Self, WeightError> {
        let (qkv, output) = (self.qkv.quantize_blocks(format)?, self.output.quantize_blocks(format)?);
        Ok(Self { qkv, output, ..self })
    }

    pub(super) fn with_rounded_input(self, rounding: ActivationRounding) -> Self {
        Self { qkv: self.qkv.with_rounded_input(rounding), output: self.output.with_rounded_input(rounding), ..self }
    }

    pub(super) fn with_kv_cache_dtype(self, kv_cache_dtype: KvCacheType) -> Self {
        let mut spec = self.spec;
        spec.kv_cache_dtype = kv_cache_dtype;
        let connection = self.connection.with_settings(&spec);
        Self { spec, connection, ..self }
    }

    pub(super) fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        Ok(Self { connection: Connection::new(communicator, &self.spec)?, ..self })
    }

    /// An error unless the sums over the ranks that attention itself needs can be computed.
    pub(super) fn check_link(&self) -> Result<(), AttentionError> {
        match self.spec.norm_of_all_heads() {
            Some(_) => self.connection.check(&self.spec),
            None => Ok(()),
        }
    }

    /// An error unless the sum over the ranks can be computed.
    pub(super) fn check_sum(&self) -> Result<(), AttentionError> {
        self.connection.check(&self.spec)
    }

    /// `[B, T, N·H]` of zeros: the context of queries that see no keys.
    pub(super) fn no_context(&self, input: &Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, tokens, _] = input.dims();
        zeros([batch, tokens, self.spec.query_width()], (&input.device(), input.dtype()))
    }

    /// An error if the plan is the reference and the layer requires a kernel.
    pub(super) fn require(&self, operation: &'static str, plan: impl FnOnce() -> Plan) -> Result<(), AttentionError> {
        require(operation, &self.spec, plan)
    }
}

impl<B: InferenceBackend> Projections<B> {
    /// The path that attention without a cache takes from `tokens` queries, and the reason if it is the reference.
    pub(super) fn explain(&self, tokens: usize) -> Plan {
        let problem = ContextProblem::new(element_type(self.output.dtype()), tokens, self.spec.head_dim, None);
        B::Ops::plan_masked_attention(&problem, &self.output.device())
    }

    /// The output projection of `context` on this rank, without the bias.
    pub(super) fn partial(&self, context: Tensor<B, 3>) -> Tensor<B, 3> {
        B::Ops::vector_matmul(context, &self.output)
    }

    /// The output projection of `context`, summed over all ranks, with the bias added once. On one rank that is a single
    /// operation.
    pub(super) fn finish(&self, context: Tensor<B, 3>) -> Result<Tensor<B, 3>, AttentionError> {
        self.connection.project(context, &self.output, &self.spec, !self.defer_output_bias)
    }

    /// The sum of `partial` over all ranks.
    pub(super) fn over_ranks<const D: usize>(&self, partial: Tensor<B, D>) -> Result<Tensor<B, D>, AttentionError> {
        self.connection.over_ranks(partial, &self.spec)
    }
}

/// Sets whether every parameter of a module requires gradients.
pub(super) fn set_require_grad<B: Backend, M: Module<B>>(module: M, require_grad: bool) -> M {
    struct Switch(bool);
    impl<B: Backend> ModuleMapper<B> for Switch {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.set_require_grad(self.0)
        }
    }
    module.map(&mut Switch(require_grad))
}
