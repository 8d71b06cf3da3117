//! The projections of one attention layer on one rank, in the files of the ranks that wrote the checkpoint.

use std::collections::BTreeSet;
use std::ops::Range;
use std::slice;

use super::files::Checkpoint;
use super::float::Floats;
use super::layout::{Head, Part, segments, segments_of_bias, shards};
use super::names::{AttentionNames, HeadWeightNames, QkvNames, ScaleNames};
use super::parts::{BiasParts, ProjectionParts};
use super::piece::{BiasPiece, Piece};
use super::replicated;
use super::runs::{Run, Segment};
use crate::element::ElementType;
use crate::error::WeightError;
use crate::kv_source::KvSource;
use crate::parallel::HeadShard;
use crate::spec::{AttentionSpec, QkNormWeights};

/// What the files hold of one attention layer. A single file of all heads is treated as written by one rank.
#[derive(Debug)]
pub struct AttentionFiles<'a> {
    files: &'a [Checkpoint],
    /// The heads of each file.
    shards: Vec<HeadShard>,
    names: &'a AttentionNames,
    /// Ranks whose parts `torch.cat` concatenated in each file.
    concatenated: usize,
    spec: &'a AttentionSpec,
}

/// A projection in a file: its names, and the heads that its outputs are.
#[derive(Debug)]
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    matrix: &'a str,
    scales: ScaleNames,
    heads: Vec<Head>,
}

/// A bias in a file, and the heads that its elements are.
#[derive(Debug)]
struct BiasSource<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    heads: Vec<Head>,
}

/// Where queries, keys and values are, whoever wrote them.
#[derive(Debug)]
pub struct QkvSources<'a> {
    matrices: Vec<Source<'a>>,
    biases: Vec<BiasSource<'a>>,
    names: &'a AttentionNames,
    head_dim: usize,
}

impl<'a> AttentionFiles<'a> {
    /// The layer of `spec` in these files. `concatenated` is the number of ranks whose parts each file holds one after the other.
    ///
    /// # Errors
    /// [`ConfigError::Ranks`](crate::error::ConfigError::Ranks) if the heads do not split over the files.
    pub fn new(
        files: &'a [Checkpoint],
        concatenated: usize,
        names: &'a AttentionNames,
        spec: &'a AttentionSpec,
    ) -> Result<Self, WeightError> {
        let shards = shards(spec.shard.total, spec.shard.kv_total, files.len())?;
        Ok(Self { files, shards, names, concatenated, spec })
    }

    /// The output projection, `[E, N·H]`.
    ///
    /// # Errors
    /// A [`WeightError`] that names a matrix of another shape than the heads imply.
    pub fn output(&self) -> Result<ProjectionParts<'a>, WeightError> {
        let (hidden, head_dim, names) = (self.spec.hidden_size, self.spec.head_dim, &self.names.output);
        // Query heads are in one file each; a file that shares only key/value heads with this rank is not read.
        let queries = self.spec.shard.queries();
        let own: Vec<_> = self.own_files().filter(|(_, shard)| overlap(&shard.queries(), &queries)).collect();
        for (checkpoint, shard) in &own {
            let shape = self.names.orientation.shape(width(shard.len, head_dim), hidden);
            checkpoint.check_shape(&names.matrix, &shape)?;
        }
        let heads: Vec<_> = own.iter().map(|(_, shard)| Part::Query.heads(shard)).collect();
        let sources: Vec<&[Head]> = heads.iter().map(Vec::as_slice).collect();
        let cuts = segments(&Part::Query.heads(&self.spec.shard), &sources, head_dim);
        let pieces = own.iter().zip(&heads).zip(cuts).filter(|(_, inputs)| !inputs.is_empty());
        let pieces = pieces.map(|(((checkpoint, _), heads), inputs)| Piece {
            checkpoint,
            matrix: &names.matrix,
            scales: names.scales.clone(),
            orientation: self.names.orientation,
            shape: [hidden, heads.len() * head_dim],
            outputs: vec![Segment::whole(hidden)],
            inputs,
        });
        Ok(ProjectionParts {
            matrix: pieces.collect(),
            bias: BiasParts::Replicated(self.files, &names.bias),
            bias_remedy: "set `output_bias` to true",
        })
    }

    /// The queries, keys and values, and the gates if there are some, in every file that has some of this rank.
    ///
    /// # Errors
    /// [`WeightError::NoGateNames`], [`WeightError::UnexpectedGate`], [`WeightError::NotSeparateNames`];
    /// [`ConfigError::Ranks`](crate::error::ConfigError::Ranks) if the ranks of [`QkvLayout::PerRank`](super::layout::QkvLayout::PerRank) cannot have written them;
    /// a [`WeightError`] that names a matrix with fewer outputs than the heads need.
    pub fn qkv(&self) -> Result<QkvSources<'a>, WeightError> {
        match &self.names.qkv {
            QkvNames::SeparateWithGate { query, .. } if !self.spec.context_gate => {
                return Err(WeightError::UnexpectedGate(query.matrix.clone()));
            }
            QkvNames::SeparateWithGate { .. } => {}
            _ if self.spec.context_gate => return Err(WeightError::NoGateNames),
            _ => {}
        }
        if self.spec.kv_source != KvSource::Own && !matches!(self.names.qkv, QkvNames::Separate { .. }) {
            return Err(WeightError::NotSeparateNames);
        }
        let (mut matrices, mut biases) = (Vec::new(), Vec::new());
        for (checkpoint, shard) in self.own_files() {
            let mut matrix = |matrix: &'a str, scales: &ScaleNames, heads: Vec<Head>| {
                matrices.push(Source { checkpoint, matrix, scales: scales.clone(), heads });
            };
            let mut bias = |name: &'a str, heads| biases.push(BiasSource { checkpoint, name, heads });
            let of_part = |part| if part == Part::Query { shard.len } else { shard.kv_len };
            match &self.names.qkv {
                QkvNames::Fused { names, layout } => {
                    self.check_outputs(checkpoint, &names.matrix, shard.len + 2 * shard.kv_len)?;
                    let heads = layout.concatenated(self.concatenated).heads(&shard)?;
                    matrix(&names.matrix, &names.scales, heads.clone());
                    bias(&names.bias, heads);
                }
                QkvNames::Separate { query, key, value } => {
                    for (&part, names) in Part::projected(self.spec.kv_source).iter().zip([query, key, value]) {
                        self.check_outputs(checkpoint, &names.matrix, of_part(part))?;
                        matrix(&names.matrix, &names.scales, part.heads(&shard));
                        if part == Part::Key && !self.spec.key_bias {
                            // In a fused projection these elements of the bias stay 0.
                            replicated::refuse(slice::from_ref(checkpoint), &names.bias, "set `key_bias` to true")?;
                        } else {
                            bias(&names.bias, part.heads(&shard));
                        }
                    }
                }
                QkvNames::SeparateWithGate { query, key, value } => {
                    self.check_outputs(checkpoint, &query.matrix, shard.len.saturating_mul(2))?;
                    let heads = Part::queries_with_gates(&shard);
                    matrix(&query.matrix, &query.scales, heads.clone());
                    bias(&query.bias, heads);
                    for (part, names) in [(Part::Key, key), (Part::Value, value)] {
                        self.check_outputs(checkpoint, &names.matrix, of_part(part))?;
                        matrix(&names.matrix, &names.scales, part.heads(&shard));
                        bias(&names.bias, part.heads(&shard));
                    }
                }
                QkvNames::SeparateWithFusedBias { query, key, value, bias: name } => {
                    for (part, name) in Part::ALL.into_iter().zip([query, key, value]) {
                        self.check_outputs(checkpoint, name, of_part(part))?;
                        matrix(name, &ScaleNames::of(name), part.heads(&shard));
                    }
                    bias(name, Part::all(&shard));
                }
            }
        }
        Ok(QkvSources { matrices, biases, names: self.names, head_dim: self.spec.head_dim })
    }

    /// The weights of the norm of queries, or of keys, row by row in f32: `[1, H]` or a row for each head of this rank. Empty for a
    /// norm without weights.
    ///
    /// # Errors
    /// [`WeightError::NoQkNormNames`], [`WeightError::SharedHeadWeights`], or a [`WeightError`] that names the tensor.
    pub fn norm_weights(&self, part: Part) -> Result<Vec<f32>, WeightError> {
        let Some(weights) =
            self.spec.qk_norm.map(|norm| norm.weights).filter(|weights| *weights != QkNormWeights::None)
        else {
            return Ok(Vec::new());
        };
        let names = self.names.qk_norm.as_ref().ok_or(WeightError::NoQkNormNames)?;
        let names = if part == Part::Query { &names.query } else { &names.key };
        let head_dim = self.spec.head_dim;
        if weights == QkNormWeights::PerHead {
            return self.weights_of_heads(part, names, head_dim);
        }
        let HeadWeightNames::One(name) = names else { return Err(WeightError::SharedHeadWeights(names.of_head(0))) };
        match replicated::vector(self.files, name, head_dim, ElementType::F32)? {
            Floats::F32(weights) => Ok(weights),
            other => unreachable!("f32 was asked for, not {other:?}"),
        }
    }

    /// The sinks of the query heads of this rank, in f32. Empty for a layer without sinks.
    ///
    /// # Errors
    /// [`WeightError::NoSinkName`], or a [`WeightError`] that names the tensor: [`WeightError::Unexpected`] if a file has sinks and the
    /// layer has none.
    pub fn sinks(&self) -> Result<Vec<f32>, WeightError> {
        match (self.spec.sinks, &self.names.sinks) {
            (true, Some(name)) => self.weights_of_heads(Part::Query, &HeadWeightNames::One(name.clone()), 1),
            (true, None) => Err(WeightError::NoSinkName),
            (false, Some(name)) => replicated::refuse(self.files, name, "set `sinks` to true").map(|()| Vec::new()),
            (false, None) => Ok(Vec::new()),
        }
    }

    /// A row of weights for each head of this rank.
    fn weights_of_heads(&self, part: Part, names: &HeadWeightNames, head_dim: usize) -> Result<Vec<f32>, WeightError> {
        let own: Vec<_> = self.own_files().map(|(checkpoint, shard)| (checkpoint, part.heads(&shard))).collect();
        let sources: Vec<&[Head]> = own.iter().map(|(_, heads)| heads.as_slice()).collect();
        let wanted = part.heads(&self.spec.shard);
        let mut reads = Vec::new();
        for ((checkpoint, heads), segments) in own.iter().zip(segments(&wanted, &sources, head_dim)) {
            let runs = segments.iter().map(|segment| Run { start: segment.from, len: segment.len, to: segment.to });
            match names {
                _ if segments.is_empty() => {}
                HeadWeightNames::One(name) => {
                    let flat = vec![width(heads.len(), head_dim)];
                    let rows = vec![heads.len(), head_dim];
                    let shape = if checkpoint.shape(name) == Some(&flat) { flat } else { rows };
                    reads.push((*checkpoint, name.clone(), shape, runs.collect::<Vec<_>>()));
                }
                HeadWeightNames::Each { .. } => {
                    let rows = runs.flat_map(|run| (0..run.len / head_dim).map(move |row| (run, row)));
                    reads.extend(rows.map(|(run, row)| {
                        let name = names.of_head(run.start / head_dim + row);
                        let run = Run { start: 0, len: head_dim, to: run.to + row * head_dim };
                        (*checkpoint, name, vec![head_dim], vec![run])
                    }));
                }
            }
        }
        for (checkpoint, name, shape, _) in &reads {
            checkpoint.check_shape(name, shape)?;
        }
        if let HeadWeightNames::Each { .. } = names {
            // Tensors of other ranks are not unexpected.
            for (checkpoint, shard) in self.files.iter().zip(&self.shards) {
                let heads: BTreeSet<_> = (0..part.heads(shard).len()).map(|head| names.of_head(head)).collect();
                checkpoint.ignore(|name| heads.contains(name));
            }
        }
        let mut weights = vec![0.0f32; width(wanted.len(), head_dim)];
        for (checkpoint, name, shape, runs) in reads {
            checkpoint.read_floats((&name, &shape), (runs, 1), &mut weights)?;
            checkpoint.log_converted(&name, ElementType::F32);
        }
        Ok(weights)
    }

    /// An error if a file holds weights of a norm of queries or keys, and the layer has no such norm, or one without weights.
    ///
    /// # Errors
    /// [`WeightError::Unexpected`].
    pub fn refuse_norm_weights(&self) -> Result<(), WeightError> {
        let Some(names) = &self.names.qk_norm else { return Ok(()) };
        let remedy = "set `qk_norm` to the norm of the model, with its weights";
        [&names.query, &names.key]
            .into_iter()
            .try_for_each(|names| replicated::refuse(self.files, &names.of_head(0), remedy))
    }

    /// The files that have heads of this rank, and which heads they have.
    fn own_files(&self) -> impl Iterator<Item = (&'a Checkpoint, HeadShard)> {
        let own = self.spec.shard;
        let files = self.files.iter().zip(self.shards.iter().copied());
        files.filter(move |(_, shard)| {
            overlap(&shard.queries(), &own.queries()) || overlap(&shard.kv_heads(), &own.kv_heads())
        })
    }

    /// An error if a matrix is missing or has too few outputs for this number of heads. It comes before the lists of heads are
    /// built, since the number is only what a configuration states.
    fn check_outputs(&self, checkpoint: &Checkpoint, matrix: &str, heads: usize) -> Result<(), WeightError> {
        let outputs = width(heads, self.spec.head_dim);
        match checkpoint.shape(matrix) {
            // A bound is enough here. The exact shape is checked by each piece that is read.
            Some(shape) if shape.iter().fold(1usize, |elements, &size| elements.saturating_mul(size)) >= outputs => {
                Ok(())
            }
            _ => checkpoint.check_shape(matrix, &self.names.orientation.shape(self.spec.hidden_size, outputs)),
        }
    }
}

/// Features of this number of heads, or the largest number there is.
fn width(heads: usize, head_dim: usize) -> usize {
    heads.saturating_mul(head_dim)
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl<'a> QkvSources<'a> {
    /// The projection from `inputs` features to these parts of the heads of `shard`, in the order of `parts`.
    pub fn projection(&self, parts: &[Part], shard: &HeadShard, inputs: usize) -> ProjectionParts<'a> {
        let wanted: Vec<Head> = parts.iter().flat_map(|part| part.heads(shard)).collect();
        let head_dim = self.head_dim;
        let heads: Vec<&[Head]> = self.matrices.iter().map(|source| source.heads.as_slice()).collect();
        let cuts = self.matrices.iter().zip(segments(&wanted, &heads, head_dim));
        let matrix = cuts.filter(|(_, outputs)| !outputs.is_empty()).map(|(source, outputs)| Piece {
            checkpoint: source.checkpoint,
            matrix: source.matrix,
            scales: source.scales.clone(),
            orientation: self.names.orientation,
            shape: [source.heads.len() * head_dim, inputs],
            outputs,
            inputs: vec![Segment::whole(inputs)],
        });
        let heads: Vec<&[Head]> = self.biases.iter().map(|source| source.heads.as_slice()).collect();
        let cuts = self.biases.iter().zip(segments_of_bias(&wanted, &heads, head_dim));
        let bias = cuts.filter(|(_, segments)| !segments.is_empty()).map(|(source, segments)| BiasPiece {
            checkpoint: source.checkpoint,
            name: source.name,
            size: source.heads.len() * head_dim,
            segments,
        });
        ProjectionParts {
            matrix: matrix.collect(),
            bias: BiasParts::Cut(bias.collect()),
            bias_remedy: "set `qkv_bias` to true",
        }
    }
}
