//! Writes the parameters of the attention modules.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed_core::block::BlockRows;
use burn_deepspeed_core::checkpoint::{
    AttentionNames, BlockedInt8, CheckpointWriter, HeadWeightNames, NormNames, QkvNames, ScaleNames, WeightNames,
};
use burn_deepspeed_core::layout::Orientation;

use super::tensors::{WriteTensors, picked};
use crate::error::{WeightError, check_shape};
use crate::spec::{AttentionSpec, KvSource, QkNormWeights};
use crate::weight::{BlockMatrix, FusedNorm, Int8Matrix, QkvWeight, SeparateQkv, Weight};

/// Writes a norm. One without weights in the checkpoint must have weights of 1.
pub(super) fn write_norm<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &NormNames,
    norm: &FusedNorm<B>,
) -> Result<(), WeightError> {
    let gamma = if names.plus_one { norm.gamma().sub_scalar(1.0) } else { norm.gamma() };
    if !names.unweighted {
        writer.tensor(&names.gamma, gamma)?;
    } else if norm.gamma().into_data().iter::<f32>().any(|factor| factor != 1.0) {
        return Err(WeightError::WeightedNorm(names.gamma.clone()));
    }
    norm.beta().map_or(Ok(()), |beta| writer.tensor(&names.beta, beta))
}

/// Writes the weights of a norm of heads, `[1 or heads, H]`: one tensor in the shape of its kind, or one for each head.
pub(super) fn write_head_weights<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &HeadWeightNames,
    weights: Tensor<B, 2>,
    spec: &AttentionSpec,
) -> Result<(), WeightError> {
    let ([rows, features], shared) =
        (weights.dims(), spec.qk_norm.map(|norm| norm.weights) == Some(QkNormWeights::Shared));
    match names {
        HeadWeightNames::One(name) if shared || spec.norm_of_all_heads().is_some() => {
            writer.tensor(name, weights.reshape([rows * features]))
        }
        HeadWeightNames::One(name) => writer.tensor(name, weights),
        HeadWeightNames::Each { .. } if shared => Err(WeightError::SharedHeadWeights(names.of_head(0))),
        HeadWeightNames::Each { .. } => (0..rows).try_for_each(|row| {
            writer.tensor(&names.of_head(row), weights.clone().narrow(0, row, 1).reshape([features]))
        }),
    }
}

/// Writes the projections of a layer.
pub(super) fn write_projections<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &AttentionNames,
    spec: &AttentionSpec,
    (qkv, gate, output): (&QkvWeight<B>, Option<&Weight<B>>, &Weight<B>),
) -> Result<(), WeightError> {
    write_qkv(writer, names, (qkv, gate), spec)?;
    write_output(writer, names, output)
}

/// Writes the projections of a layer that may have no output projection.
pub(super) fn write_qkv_and_output<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &AttentionNames,
    spec: &AttentionSpec,
    (qkv, output): (&QkvWeight<B>, Option<&Weight<B>>),
) -> Result<(), WeightError> {
    write_qkv(writer, names, (qkv, None), spec)?;
    output.map_or(Ok(()), |output| write_output(writer, names, output))
}

fn write_output<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &AttentionNames,
    output: &Weight<B>,
) -> Result<(), WeightError> {
    write_weight(writer, &names.output, names.orientation, (&[output], &in_order(&[output])))
}

fn write_qkv<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &AttentionNames,
    (qkv, gate): (&QkvWeight<B>, Option<&Weight<B>>),
    spec: &AttentionSpec,
) -> Result<(), WeightError> {
    let orientation = names.orientation;
    let width = spec.query_width();
    match (&names.qkv, gate) {
        (QkvNames::SeparateWithGate { query, .. }, None) => {
            return Err(WeightError::UnexpectedGate(query.matrix.clone()));
        }
        (QkvNames::SeparateWithGate { .. }, Some(_)) | (_, None) => {}
        (_, Some(_)) => return Err(WeightError::NoGateNames),
    }
    match &names.qkv {
        QkvNames::Separate { query, key, .. } if spec.kv_source != KvSource::Own => {
            let (fused, keys) = (qkv.first(), spec.qkv_width() - width);
            let queries = fused.outputs(0, width);
            write_weight(writer, query, orientation, (&[&queries], &in_order(&[&queries])))?;
            if keys > 0 {
                let keys = fused.outputs(width, keys);
                write_weight(writer, key, orientation, (&[&keys], &in_order(&[&keys])))?;
            }
            Ok(())
        }
        _ if spec.kv_source != KvSource::Own => Err(WeightError::NotSeparateNames),
        QkvNames::SeparateWithGate { query, key, value } => {
            let own = qkv.separate(width);
            let with_gate: Vec<&Weight<B>> = [&own.query].into_iter().chain(gate).collect();
            // Of each head its query, and then its gate.
            let features = |head: usize| head * spec.head_dim..(head + 1) * spec.head_dim;
            let order = (0..spec.heads()).flat_map(|head| features(head).chain(features(spec.heads() + head)));
            write_weight(writer, query, orientation, (&with_gate, &order.collect::<Vec<_>>()))?;
            for (names, weight) in [(key, &own.key), (value, &own.value)] {
                write_weight(writer, names, orientation, (&[weight], &in_order(&[weight])))?;
            }
            Ok(())
        }
        QkvNames::Fused { names, layout } => {
            let ranks = if spec.ranks.ranks() == 1 { spec.training_ranks } else { 1 };
            let order = layout.concatenated(ranks).order(&spec.shard, spec.head_dim)?;
            match qkv {
                QkvWeight::Fused(fused) => write_weight(writer, names, orientation, (&[fused], &order)),
                QkvWeight::Separate(SeparateQkv { query, key, value }) => {
                    write_weight(writer, names, orientation, (&[query, key, value], &order))
                }
            }
        }
        QkvNames::Separate { query, key, value } => {
            let own = qkv.separate(width);
            for (names, weight) in [(query, &own.query), (value, &own.value)] {
                write_weight(writer, names, orientation, (&[weight], &in_order(&[weight])))?;
            }
            let (keys, outputs) = (&[&own.key][..], in_order(&[&own.key]));
            match spec.key_bias {
                true => write_weight(writer, key, orientation, (keys, &outputs)),
                // In a fused projection these elements of the bias are 0.
                false => write_matrix(writer, &key.matrix, &key.scales, orientation, (keys, &outputs)),
            }
        }
        QkvNames::SeparateWithFusedBias { query, key, value, bias } => {
            let own = qkv.separate(width);
            for (name, weight) in [(query, &own.query), (key, &own.key), (value, &own.value)] {
                let outputs = in_order(&[weight]);
                write_matrix(writer, name, &ScaleNames::of(name), orientation, (&[weight], &outputs))?;
            }
            let weights = [&own.query, &own.key, &own.value];
            write_bias(writer, bias, &weights, &in_order(&weights))
        }
    }
}

/// Writes projections as one, their outputs in this order.
pub(super) fn write_weight<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &WeightNames,
    orientation: Orientation,
    (weights, order): (&[&Weight<B>], &[usize]),
) -> Result<(), WeightError> {
    write_bias(writer, &names.bias, weights, order)?;
    write_matrix(writer, &names.matrix, &names.scales, orientation, (weights, order))
}

fn write_bias<B: Backend>(
    writer: &mut CheckpointWriter,
    name: &str,
    weights: &[&Weight<B>],
    order: &[usize],
) -> Result<(), WeightError> {
    let biases: Option<Vec<_>> = weights.iter().map(|weight| weight.bias()).collect();
    biases.map_or(Ok(()), |biases| writer.tensor(name, picked(joined(biases), 0, order)))
}

/// Writes matrices as one, their outputs in this order; in int8 or in blocks if all of them are.
fn write_matrix<B: Backend>(
    writer: &mut CheckpointWriter,
    name: &str,
    scales: &ScaleNames,
    orientation: Orientation,
    (weights, order): (&[&Weight<B>], &[usize]),
) -> Result<(), WeightError> {
    let inputs = weights[0].input_size();
    for weight in weights {
        let outputs = weight.output_size();
        check_shape("CheckpointWriter", name, &[outputs, inputs], &[outputs, weight.input_size()]);
    }
    let int8: Option<Vec<BlockedInt8>> = weights.iter().map(|weight| weight.int8().map(blocked)).collect();
    if let Some(matrices) = int8 {
        return writer.int8(name, scales, orientation, (&matrices, order));
    }
    let blocks: Option<Vec<&BlockMatrix<B>>> = weights.iter().map(|weight| weight.blocks()).collect();
    if let Some(matrices) = blocks {
        let rows: Vec<BlockRows> = matrices.into_iter().map(BlockMatrix::to_rows).collect();
        return writer.blocks(name, orientation, (&rows, order));
    }
    let dense = weights.iter().map(|weight| weight.input_output().transpose()).collect();
    let matrix = picked(joined(dense), 0, order);
    writer.tensor(
        name,
        match orientation {
            Orientation::OutputInput => matrix,
            Orientation::InputOutput => matrix.transpose(),
        },
    )
}

/// The elements and scales of an int8 matrix, on the host.
fn blocked<B: Backend>(matrix: &Int8Matrix<B>) -> BlockedInt8 {
    BlockedInt8 {
        elements: matrix.elements().into_data().iter().collect(),
        scales: matrix.scales().into_data().iter().collect(),
        shape: matrix.shape(),
        blocks: matrix.blocks(),
    }
}

/// The outputs of these projections, in order.
pub(super) fn in_order<B: Backend>(weights: &[&Weight<B>]) -> Vec<usize> {
    (0..weights.iter().map(|weight| weight.output_size()).sum()).collect()
}

/// Concatenated along the first axis.
fn joined<B: Backend, const D: usize>(mut tensors: Vec<Tensor<B, D>>) -> Tensor<B, D> {
    match tensors.len() {
        1 => tensors.remove(0),
        _ => Tensor::cat(tensors, 0),
    }
}
