//! Reads a checkpoint into the modules.

use std::slice;

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::int8::Blocks;
use super::layout::{Head, Part, segments, shards};
use super::matrix::{BiasPiece, Piece, bias, dense};
use super::read::{Kind, Run, Segment};
use super::{AttentionNames, Checkpoint, QkvNames, ScaleNames, SplitCheckpoint};
use crate::attention::{DeepSpeedDiffusersAttention, DeepSpeedSelfAttention, Projections};
use crate::element::OfBackend;
use crate::error::WeightError;
use crate::parallel::HeadShard;
use crate::spec::AttentionSpec;
use crate::weight::{FusedNorm, QkvWeight, SeparateQkv, Weight};

impl<B: Backend> DeepSpeedSelfAttention<B> {
    /// The module with the weights of a checkpoint: converted to its element type, in its layout, cut to the heads of its
    /// rank. Parameters do not require gradients; [`with_training`](Self::with_training) lifts that.
    ///
    /// Where the module is int8 it stays so: int8 matrices of the checkpoint keep their bytes and [scales](super::ScaleNames),
    /// in blocks of their own, and dense ones are rounded in the blocks of the module. Where it is dense, int8 matrices are
    /// made dense.
    ///
    /// Of each matrix only what the rank has is read. Under a `training_mp_size` of several ranks a QKV in the layout
    /// [`Concat`](super::QkvLayout::Concat) is what `torch.cat` makes of their files:
    /// [`PerRank`](super::QkvLayout::PerRank).
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let ranks = self.spec().training_ranks;
        self.read((slice::from_ref(checkpoint), ranks), names)
    }

    /// [`load`](Self::load), from the files of the ranks that wrote the checkpoint: as many or as few as they are, this rank
    /// takes what it has of each, and every element is the one that it was. Names, layout and orientation are those of a file.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor and the file; [`WeightError::FileCount`] if there are other than
    /// `training_mp_size` files and that is above 1; [`ConfigError::Ranks`](crate::ConfigError::Ranks) if so many ranks cannot
    /// have written these heads.
    pub fn load_split(self, split: &SplitCheckpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let files = split.files_of(self.spec().training_ranks)?;
        self.read((files, 1), names)
    }

    fn read(self, files: (&[Checkpoint], usize), names: &AttentionNames) -> Result<Self, WeightError> {
        let reader = Reader::new(files, names, self.spec(), self.output())?;
        let norm = reader.norm(&self.norm)?;
        let (qkv, output) = reader.projections(&self.projections)?;
        Ok(Self { norm, projections: self.projections.with_weights(qkv, output) }.no_grad())
    }
}

impl<B: Backend> DeepSpeedDiffusersAttention<B> {
    /// See [`DeepSpeedSelfAttention::load`].
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let ranks = self.spec().training_ranks;
        self.read((slice::from_ref(checkpoint), ranks), names)
    }

    /// See [`DeepSpeedSelfAttention::load_split`].
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::load_split`].
    pub fn load_split(self, split: &SplitCheckpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let files = split.files_of(self.spec().training_ranks)?;
        self.read((files, 1), names)
    }

    fn read(self, files: (&[Checkpoint], usize), names: &AttentionNames) -> Result<Self, WeightError> {
        let reader = Reader::new(files, names, self.spec(), self.output())?;
        let (qkv, output) = reader.projections(&self.projections)?;
        Ok(Self { projections: self.projections.with_weights(qkv, output) }.no_grad())
    }
}

/// A projection in a file: its names, and the heads that its outputs are.
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    matrix: &'a str,
    scales: ScaleNames,
    heads: Vec<Head>,
}

/// A bias in a file, and the heads that its elements are.
struct BiasSource<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    heads: Vec<Head>,
}

/// Where queries, keys and values are, whoever wrote them.
#[derive(Default)]
struct QkvSources<'a> {
    matrices: Vec<Source<'a>>,
    biases: Vec<BiasSource<'a>>,
}

/// Reads what the files of all ranks that wrote a checkpoint have of a module. One file of all heads is the case of one rank.
struct Reader<'a, B: Backend> {
    files: &'a [Checkpoint],
    /// The heads of each file.
    shards: Vec<HeadShard>,
    names: &'a AttentionNames,
    /// Ranks whose parts `torch.cat` put together in each file.
    concatenated: usize,
    spec: &'a AttentionSpec,
    dtype: DType,
    device: B::Device,
}

impl<'a, B: Backend> Reader<'a, B> {
    fn new(
        (files, concatenated): (&'a [Checkpoint], usize),
        names: &'a AttentionNames,
        spec: &'a AttentionSpec,
        output: &Weight<B>,
    ) -> Result<Self, WeightError> {
        let device = output.device();
        let dtype = spec.dtype.of_backend::<B>(&device)?;
        let shards = shards(spec.shard.total, spec.shard.kv_total, files.len())?;
        Ok(Self { files, shards, names, concatenated, spec, dtype, device })
    }

    /// A vector that every rank has: it is read from the first file, and the others must have the same.
    fn vector(&self, name: &str, size: usize) -> Result<Tensor<B, 1>, WeightError> {
        let (first, others) = self.files.split_first().expect("a checkpoint has a file");
        let values = |file: &Checkpoint| {
            let mut values = vec![0.0f64; size];
            file.elements(Kind::Floats, (name, &[size]), ([Run { start: 0, len: size, to: 0 }], 1), &mut values)?;
            file.log_loaded(name);
            Ok::<_, WeightError>(values.into_iter().map(f64::to_bits).collect::<Vec<_>>())
        };
        let vector = first.tensor(name, [size], self.dtype, &self.device)?;
        if !others.is_empty() {
            let expected = values(first)?;
            for other in others {
                if values(other)? != expected {
                    let (name, files) = (name.into(), [first, other].map(|file| file.path().to_path_buf()));
                    return Err(WeightError::Replicas { name, files });
                }
            }
        }
        Ok(vector)
    }

    /// A bias that the module has no place for is not dropped.
    fn refuse(&self, name: &str, remedy: &str) -> Result<(), WeightError> {
        match self.files.iter().find(|file| file.contains(name)) {
            Some(file) => Err(file.in_this(WeightError::Unexpected { name: name.into(), remedy: remedy.into() })),
            None => Ok(()),
        }
    }

    /// A bias that every rank has is read if the module has a place for it, and refused if it has none.
    fn bias(&self, name: &str, size: usize, wanted: bool, remedy: &str) -> Result<Option<Tensor<B, 1>>, WeightError> {
        match wanted {
            true => self.vector(name, size).map(Some),
            false => self.refuse(name, remedy).map(|()| None),
        }
    }

    fn norm(&self, module: &Option<FusedNorm<B>>) -> Result<Option<FusedNorm<B>>, WeightError> {
        let Some(norm) = module else { return Ok(None) };
        let Some(names) = &self.names.norm else { return Err(WeightError::NoNormNames) };
        let gamma = self.vector(&names.gamma, norm.size())?;
        let remedy = match norm.spec().rms {
            true => "an RMSNorm has none; set `norm_type` to LayerNorm",
            false => "set `norm_bias` to true",
        };
        let beta = self.bias(&names.beta, norm.size(), norm.has_beta(), remedy)?;
        Ok(Some(FusedNorm::new(gamma, beta, norm.spec())))
    }

    fn projections(&self, modules: &Projections<B>) -> Result<(QkvWeight<B>, Weight<B>), WeightError> {
        Ok((self.qkv(&modules.qkv)?, self.output(&modules.output)?))
    }

    fn output(&self, module: &Weight<B>) -> Result<Weight<B>, WeightError> {
        let (hidden, head_dim, names) = (self.spec.hidden_size, self.spec.head_dim, &self.names.output);
        let heads: Vec<_> = self.shards.iter().map(|shard| Part::Query.heads(shard)).collect();
        let sources: Vec<&[Head]> = heads.iter().map(Vec::as_slice).collect();
        let cuts = segments(&Part::Query.heads(&self.spec.shard), &sources, head_dim);
        let pieces = self.files.iter().zip(&heads).zip(cuts).filter(|(_, inputs)| !inputs.is_empty());
        let pieces = pieces.map(|((checkpoint, heads), inputs)| Piece {
            checkpoint,
            matrix: &names.matrix,
            scales: names.scales.clone(),
            orientation: self.names.orientation,
            shape: [hidden, heads.len() * head_dim],
            outputs: vec![Segment { from: 0, len: hidden, to: 0 }],
            inputs,
        });
        let bias = || self.bias(&names.bias, hidden, module.has_bias(), "set `output_bias` to true");
        self.finished(&pieces.collect::<Vec<_>>(), module, bias)
    }

    fn qkv(&self, module: &QkvWeight<B>) -> Result<QkvWeight<B>, WeightError> {
        let (sources, shard) = (self.sources()?, &self.spec.shard);
        let part = |part: Part, module| self.projection(&part.heads(shard), &sources, module);
        Ok(match module {
            QkvWeight::Fused(module) => QkvWeight::Fused(self.projection(&Part::all(shard), &sources, module)?),
            QkvWeight::Separate(SeparateQkv { query, key, value }) => QkvWeight::Separate(SeparateQkv {
                query: part(Part::Query, query)?,
                key: part(Part::Key, key)?,
                value: part(Part::Value, value)?,
            }),
        })
    }

    /// Every file's queries, keys and values.
    fn sources(&self) -> Result<QkvSources<'a>, WeightError> {
        let mut sources = QkvSources::default();
        for (checkpoint, shard) in self.files.iter().zip(&self.shards) {
            let mut matrix = |matrix: &'a str, scales: &ScaleNames, heads: Vec<Head>| {
                sources.matrices.push(Source { checkpoint, matrix, scales: scales.clone(), heads })
            };
            let mut bias = |name: &'a str, heads| sources.biases.push(BiasSource { checkpoint, name, heads });
            match &self.names.qkv {
                QkvNames::Fused { names, layout } => {
                    let heads = layout.concatenated(self.concatenated).heads(shard)?;
                    matrix(&names.matrix, &names.scales, heads.clone());
                    bias(&names.bias, heads);
                }
                QkvNames::Separate { query, key, value } => {
                    for (part, names) in Part::ALL.into_iter().zip([query, key, value]) {
                        matrix(&names.matrix, &names.scales, part.heads(shard));
                        bias(&names.bias, part.heads(shard));
                    }
                }
                QkvNames::SeparateWithFusedBias { query, key, value, bias: name } => {
                    for (part, name) in Part::ALL.into_iter().zip([query, key, value]) {
                        matrix(name, &ScaleNames::of(name), part.heads(shard));
                    }
                    bias(name, Part::all(shard));
                }
            }
        }
        Ok(sources)
    }

    /// The projection to these heads, the way the module stores it.
    fn projection(
        &self,
        wanted: &[Head],
        sources: &QkvSources<'a>,
        module: &Weight<B>,
    ) -> Result<Weight<B>, WeightError> {
        let (head_dim, input) = (self.spec.head_dim, module.input_size());
        let heads: Vec<&[Head]> = sources.matrices.iter().map(|source| source.heads.as_slice()).collect();
        let cuts = sources.matrices.iter().zip(segments(wanted, &heads, head_dim));
        let pieces = cuts.filter(|(_, outputs)| !outputs.is_empty()).map(|(source, outputs)| Piece {
            checkpoint: source.checkpoint,
            matrix: source.matrix,
            scales: source.scales.clone(),
            orientation: self.names.orientation,
            shape: [source.heads.len() * head_dim, input],
            outputs,
            inputs: vec![Segment { from: 0, len: input, to: 0 }],
        });
        let bias = || self.qkv_bias(wanted, &sources.biases, module.has_bias());
        self.finished(&pieces.collect::<Vec<_>>(), module, bias)
    }

    fn qkv_bias(
        &self,
        heads: &[Head],
        sources: &[BiasSource<'a>],
        wanted: bool,
    ) -> Result<Option<Tensor<B, 1>>, WeightError> {
        let head_dim = self.spec.head_dim;
        let of_sources: Vec<&[Head]> = sources.iter().map(|source| source.heads.as_slice()).collect();
        let cuts = sources.iter().zip(segments(heads, &of_sources, head_dim));
        let mut cuts = cuts.filter(|(_, segments)| !segments.is_empty());
        if !wanted {
            return cuts.try_for_each(|(source, _)| self.refuse(source.name, "set `qkv_bias` to true")).map(|()| None);
        }
        let pieces = cuts.map(|(source, segments)| BiasPiece {
            checkpoint: source.checkpoint,
            name: source.name,
            size: source.heads.len() * head_dim,
            segments,
        });
        let data = bias(&pieces.collect::<Vec<_>>(), heads.len() * head_dim, self.dtype)?;
        Ok(Some(Tensor::from_data(data, (&self.device, self.dtype))))
    }

    /// The way the module stores it. A matrix of int8 stays one where the module is int8 and all pieces are; everything else is
    /// dense first. The bias is read behind the matrix.
    fn finished(
        &self,
        pieces: &[Piece<'_>],
        module: &Weight<B>,
        bias: impl FnOnce() -> Result<Option<Tensor<B, 1>>, WeightError>,
    ) -> Result<Weight<B>, WeightError> {
        let shape = [module.output_size(), module.input_size()];
        let rounds = module.rounds_input();
        if module.int8().is_some() && pieces.iter().all(Piece::is_int8) {
            let matrix = Blocks::read(pieces, shape)?.int8(self.dtype, &self.device)?;
            return Ok(Weight::of_int8(matrix, bias()?).with_rounded_input(rounds));
        }
        let data = dense(pieces, shape, module.orientation(), self.dtype)?;
        let matrix = Tensor::from_data(data, (&self.device, self.dtype));
        let weight = Weight::new(matrix, bias()?, module.orientation()).with_rounded_input(rounds);
        match module.int8() {
            Some(int8) => weight.quantize_in(int8.blocks()),
            None => Ok(weight),
        }
    }
}

/// One behind the other along the first axis.
pub(super) fn joined<B: Backend, const D: usize>(mut tensors: Vec<Tensor<B, D>>) -> Tensor<B, D> {
    match tensors.len() {
        1 => tensors.remove(0),
        _ => Tensor::cat(tensors, 0),
    }
}
