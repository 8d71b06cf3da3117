//! Reads the parameters of one attention layer.

use std::slice;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_deepspeed_core::checkpoint::{
    AttentionFiles, AttentionNames, Checkpoint, Part, ProjectionParts, SplitCheckpoint, replicated,
};

use super::parameters::{assembled, norm};
use super::tensors::of_floats;
use crate::element::{OfBackend, element_type};
use crate::error::WeightError;
use crate::spec::AttentionSpec;
use crate::weight::{FusedNorm, GroupNorm, QkvWeight, QueryKeyNorm, SeparateQkv, Sinks, Weight};

/// The files of a layer.
#[derive(Clone, Copy)]
pub(super) struct LayerFiles<'a> {
    files: &'a [Checkpoint],
    /// Ranks whose parts each file holds, one after the other.
    concatenated: usize,
}

impl<'a> LayerFiles<'a> {
    /// One file with all heads.
    pub fn whole(checkpoint: &'a Checkpoint, spec: &AttentionSpec) -> Self {
        Self { files: slice::from_ref(checkpoint), concatenated: spec.training_ranks }
    }

    /// A file for each rank of training.
    pub fn split(split: &'a SplitCheckpoint, spec: &AttentionSpec) -> Result<Self, WeightError> {
        Ok(Self { files: split.files_of(spec.training_ranks)?, concatenated: 1 })
    }
}

/// What is read for a layer: where from, and into which form.
pub(super) struct LayerReader<'a, B: Backend> {
    files: LayerFiles<'a>,
    names: &'a AttentionNames,
    spec: &'a AttentionSpec,
    dtype: DType,
    device: B::Device,
}

impl<'a, B: Backend> LayerReader<'a, B> {
    /// Reads the layer onto this device.
    pub fn new(
        files: LayerFiles<'a>,
        names: &'a AttentionNames,
        spec: &'a AttentionSpec,
        device: &B::Device,
    ) -> Result<Self, WeightError> {
        Ok(Self { files, names, spec, dtype: spec.dtype.of_backend::<B>(device)?, device: device.clone() })
    }

    fn files(&self) -> Result<AttentionFiles<'a>, WeightError> {
        AttentionFiles::new(self.files.files, self.files.concatenated, self.names, self.spec)
    }

    pub fn norm(&self, module: &FusedNorm<B>) -> Result<FusedNorm<B>, WeightError> {
        let names = self.names.norm.as_ref().ok_or(WeightError::NoNormNames)?;
        norm(module, self.files.files, names, self.dtype, &self.device)
    }

    /// The weights of the norm of queries and keys, cut to the heads of the rank.
    pub fn query_key_norm(&self, module: Option<&QueryKeyNorm<B>>) -> Result<Option<QueryKeyNorm<B>>, WeightError> {
        let files = self.files()?;
        let Some(module) = module else { return files.refuse_norm_weights().map(|()| None) };
        let weights = |part, shape: [usize; 2]| {
            let data = TensorData::new(files.norm_weights(part)?, shape);
            Ok::<_, WeightError>(Tensor::from_data(data, (&self.device, DType::F32)))
        };
        let (query, key) = module.shapes();
        let query = weights(Part::Query, query)?;
        Ok(Some(QueryKeyNorm::new(query, key.map(|shape| weights(Part::Key, shape)).transpose()?)))
    }

    /// The sinks of the heads of the rank, if the layer has some.
    pub fn sinks(&self) -> Result<Option<Sinks<B>>, WeightError> {
        let sinks = self.files()?.sinks()?;
        let heads = sinks.len();
        let tensor = || Tensor::from_data(TensorData::new(sinks, [heads]), (&self.device, DType::F32));
        Ok(self.spec.sinks.then(|| Sinks::new(tensor())))
    }

    /// A part of the QKV projection, or that of the gate.
    pub fn part(&self, part: Part, module: &Weight<B>) -> Result<Weight<B>, WeightError> {
        let sources = self.files()?.qkv()?;
        self.assembled(module, &sources.projection(&[part], &self.spec.shard, module.input_size()))
    }

    /// The output projection.
    pub fn output(&self, module: &Weight<B>) -> Result<Weight<B>, WeightError> {
        self.assembled(module, &self.files()?.output()?)
    }

    /// The QKV projection and the output projection.
    pub fn projections(
        &self,
        qkv: &QkvWeight<B>,
        output: &Weight<B>,
    ) -> Result<(QkvWeight<B>, Weight<B>), WeightError> {
        Ok((self.qkv(qkv)?, self.output(output)?))
    }

    /// The QKV projection, and the output projection if there is one.
    pub fn qkv_and_output(
        &self,
        qkv: &QkvWeight<B>,
        output: Option<&Weight<B>>,
    ) -> Result<(QkvWeight<B>, Option<Weight<B>>), WeightError> {
        Ok((self.qkv(qkv)?, output.map(|output| self.output(output)).transpose()?))
    }

    /// The norm of groups of channels.
    pub fn group_norm(&self, module: &GroupNorm<B>) -> Result<GroupNorm<B>, WeightError> {
        let names = self.names.norm.as_ref().ok_or(WeightError::NoNormNames)?;
        let channels = module.channels();
        let vector = |name: &str| {
            let values = replicated::vector(self.files.files, name, channels, element_type(self.dtype))?;
            Ok::<_, WeightError>(of_floats(values, [channels], self.dtype, &self.device))
        };
        Ok(GroupNorm::new(vector(&names.gamma)?, vector(&names.beta)?, module.groups(), module.epsilon()))
    }

    fn qkv(&self, module: &QkvWeight<B>) -> Result<QkvWeight<B>, WeightError> {
        let sources = self.files()?.qkv()?;
        let read = |parts: &[Part], module: &Weight<B>| {
            self.assembled(module, &sources.projection(parts, &self.spec.shard, module.input_size()))
        };
        Ok(match module {
            QkvWeight::Fused(module) => QkvWeight::Fused(read(Part::projected(self.spec.kv_source), module)?),
            QkvWeight::Separate(SeparateQkv { query, key, value }) => QkvWeight::Separate(SeparateQkv {
                query: read(&[Part::Query], query)?,
                key: read(&[Part::Key], key)?,
                value: read(&[Part::Value], value)?,
            }),
        })
    }

    fn assembled(&self, module: &Weight<B>, parts: &ProjectionParts<'_>) -> Result<Weight<B>, WeightError> {
        assembled(module, parts, self.dtype, &self.device)
    }
}
