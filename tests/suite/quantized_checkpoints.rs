//! Checkpoints of int8: the scales are those of DeepSpeed's `dequantize.cu`, and no byte is rounded again.

use std::path::Path;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, NormNames, QkvLayout, QkvNames, ScaleFormat, ScaleNames, WeightNames,
};
use burn_deepspeed::weight::{Orientation, QkvWeight, SeparateQkv, Weight};
use burn_deepspeed::{AttentionInit, DataType, InferenceBackend, WeightError};
use safetensors::Dtype;

use crate::attention::llama;
use crate::common::{on_each_cpu_backend, values};
use crate::load::{Entry, save};

/// An int8 matrix in a file: `outputs × inputs` elements and a given number of scales.
pub struct Matrix {
    pub name: &'static str,
    pub outputs: usize,
    pub inputs: usize,
    pub groups: usize,
    pub merge_count: u32,
}

impl Matrix {
    pub fn element(&self, output: usize, input: usize) -> i8 {
        (output * 89 + input * 57 + self.name.len() * 31) as u8 as i8
    }

    /// Distinct, so that a mix-up shows.
    pub fn scale(index: usize) -> f32 {
        0.001 + index as f32 * 0.0001
    }

    /// The weight that DeepSpeed's kernel computes: a block of threads is an input, a thread an output.
    fn weight(&self, output: usize, input: usize) -> f64 {
        self.weight_of_parts(1 << self.merge_count, output, input)
    }

    /// The same for `parts` parts, which need not be a power of two.
    pub fn weight_of_parts(&self, parts: usize, output: usize, input: usize) -> f64 {
        let partition = self.inputs / parts;
        let stride = partition * self.outputs / self.groups;
        let part = input / partition;
        let within = (input - part * partition) + output * partition;
        let index = (within / stride) * parts + part;
        assert!(index < self.groups * parts);
        f64::from(Self::scale(index) * f32::from(self.element(output, input)))
    }

    pub fn entries(&self, orientation: Orientation) -> [Entry; 2] {
        let [rows, columns] = orientation.shape(self.inputs, self.outputs);
        let element = |row, column| match orientation {
            Orientation::OutputInput => self.element(row, column),
            Orientation::InputOutput => self.element(column, row),
        };
        let bytes = (0..rows * columns).map(|at| element(at / columns, at % columns) as u8).collect();
        let scales = self.groups << self.merge_count;
        let numbers = (0..scales).flat_map(|index| Self::scale(index).to_le_bytes()).collect();
        [
            (self.name.into(), Dtype::I8, vec![rows, columns], bytes),
            (format!("{}.scale", self.name), Dtype::F32, vec![scales], numbers),
        ]
    }

    pub fn names(&self) -> WeightNames {
        let scales = ScaleNames { merge_count: self.merge_count, ..ScaleNames::of(self.name) };
        WeightNames { scales, ..WeightNames::new(self.name.into(), format!("{}.bias", self.name)) }
    }
}

pub fn float(name: &str, size: usize) -> Entry {
    (name.into(), Dtype::F32, vec![size], (0..size).flat_map(|at| (at as f32 / 64.0).to_le_bytes()).collect())
}

/// The first fused output of head `head` of part `part` (query, key, value), head by head.
fn first_output(layout: QkvLayout, kv_heads: usize, part: usize, head: usize) -> usize {
    let mut order = Vec::new();
    let mut run = |part: usize, heads: std::ops::Range<usize>| order.extend(heads.map(|head| (part, head)));
    match layout {
        QkvLayout::Concat => [6, kv_heads, kv_heads].into_iter().enumerate().for_each(|(part, n)| run(part, 0..n)),
        QkvLayout::PerHead => (0..6).for_each(|head| (0..3).for_each(|part| run(part, head..head + 1))),
        QkvLayout::PerGroup | QkvLayout::PerRank(_) => {
            let blocks = if let QkvLayout::PerRank(ranks) = layout { ranks } else { kv_heads };
            for block in 0..blocks {
                for (part, heads) in [6 / blocks, kv_heads / blocks, kv_heads / blocks].into_iter().enumerate() {
                    run(part, block * heads..(block + 1) * heads);
                }
            }
        }
    }
    8 * order.iter().position(|place| *place == (part, head)).unwrap()
}

/// Compares a projection with the weights that it should have, exactly.
#[track_caller]
pub fn assert_weights<B: Backend>(weight: &Weight<B>, expected: impl Fn(usize, usize) -> f64) {
    let inputs = weight.input_size();
    for (at, found) in values(weight.input_output().transpose()).into_iter().enumerate() {
        assert_eq!(found, expected(at / inputs, at % inputs), "output {}, input {}", at / inputs, at % inputs);
    }
}

/// A layer of 6 heads of 8 features and 48 inputs in a file.
struct Layer {
    kv_heads: usize,
    orientation: Orientation,
    /// One fused matrix, or one each.
    qkv: Vec<Matrix>,
    layout: QkvLayout,
    fused_bias: bool,
    output: Matrix,
}

impl Layer {
    fn names(&self) -> AttentionNames {
        let qkv = match &self.qkv[..] {
            [fused] => QkvNames::Fused { names: fused.names(), layout: self.layout },
            [query, key, value] if self.fused_bias => QkvNames::SeparateWithFusedBias {
                query: query.name.into(),
                key: key.name.into(),
                value: value.name.into(),
                bias: "qkv.bias".into(),
            },
            [query, key, value] => QkvNames::Separate { query: query.names(), key: key.names(), value: value.names() },
            _ => unreachable!(),
        };
        AttentionNames::new(qkv, self.output.names(), self.orientation).with_norm(NormNames::of("norm"))
    }

    fn save(&self, path: &Path) {
        let matrices = self.qkv.iter().chain([&self.output]);
        let mut entries: Vec<Entry> = matrices.clone().flat_map(|matrix| matrix.entries(self.orientation)).collect();
        entries.extend(matrices.map(|matrix| float(&matrix.names().bias, matrix.outputs)));
        if self.fused_bias {
            entries.retain(|(name, ..)| !["q.bias", "k.bias", "v.bias"].contains(&name.as_str()));
            entries.push(float("qkv.bias", 48 + 16 * self.kv_heads));
        }
        entries.push(float("norm.weight", 48));
        save(path, &entries);
    }

    /// The weight to a feature of a head of query (0), key (1) or value (2).
    fn weight(&self, part: usize, head: usize, feature: usize, input: usize) -> f64 {
        match &self.qkv[..] {
            [fused] => fused.weight(first_output(self.layout, self.kv_heads, part, head) + feature, input),
            separate => separate[part].weight(8 * head + feature, input),
        }
    }

    /// Loads the layer on each of `ranks` ranks, into fused and separate, int8 and dense modules.
    fn check<B: InferenceBackend>(&self, ranks: usize) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer.safetensors");
        self.save(&path);
        for (rank, separate, dtype) in (0..ranks)
            .flat_map(|rank| [false, true].map(|separate| (rank, separate)))
            .flat_map(|(rank, separate)| [DataType::Int8, DataType::Fp32].map(|dtype| (rank, separate, dtype)))
        {
            let config = llama()
                .with_num_kv(Some(self.kv_heads))
                .with_mp_size(ranks)
                .with_local_rank(Some(rank))
                .with_set_empty_params(separate)
                .with_dtype(dtype);
            let checkpoint = Checkpoint::open(&path).unwrap();
            let module = config.init_self_attention::<B>(0, &Default::default()).unwrap();
            let module = module.load(&checkpoint, &self.names()).unwrap();
            let report = checkpoint.finish().unwrap();
            let int8 = dtype == DataType::Int8;
            assert_eq!(report.converted.len(), if int8 { 0 } else { self.qkv.len() + 1 });

            let shard = module.spec().shard;
            let starts = [shard.start, shard.kv_start, shard.kv_start];
            let parts = module.qkv().separate(8 * shard.len);
            let SeparateQkv { query, key, value } = parts.as_ref();
            for (part, weight) in [query, key, value].into_iter().enumerate() {
                assert_eq!(weight.int8().is_some(), int8);
                assert_weights(weight, |output, input| self.weight(part, starts[part] + output / 8, output % 8, input));
            }
            assert_eq!(module.output().int8().is_some(), int8);
            assert_weights(module.output(), |output, input| self.output.weight(output, 8 * shard.start + input));
            if let Some(matrix) = module.output().int8() {
                // The bytes, too: if they were rounded again, other pairs of element and scale could have the same product.
                let elements: Vec<i64> = matrix.elements().into_data().iter().collect();
                for (at, element) in elements.into_iter().enumerate() {
                    let [output, input] = [at / (8 * shard.len), at % (8 * shard.len)];
                    assert_eq!(element, i64::from(self.output.element(output, 8 * shard.start + input)));
                }
            }
        }
    }
}

/// Groups of several outputs, of one, of a part of one, and of lengths that no output begins or ends with.
const GROUPS: [[usize; 2]; 7] = [[1, 1], [3, 3], [6, 6], [80, 48], [96, 96], [40, 36], [64, 64]];

fn output(groups: usize, merge_count: u32) -> Matrix {
    Matrix { name: "out", outputs: 48, inputs: 48, groups, merge_count }
}

fn scales_are_those_of_the_kernel<B: InferenceBackend>() {
    for merge_count in [0, 1, 2] {
        for [groups, output_groups] in GROUPS {
            for orientation in [Orientation::InputOutput, Orientation::OutputInput] {
                let qkv = Matrix { name: "qkv", outputs: 80, inputs: 48, groups, merge_count };
                let output = output(output_groups, merge_count);
                let layout = QkvLayout::Concat;
                let layer = Layer { kv_heads: 2, orientation, qkv: vec![qkv], layout, fused_bias: false, output };
                for ranks in [1, 2] {
                    layer.check::<B>(ranks);
                }
            }
        }
    }
}

fn scales_move_with_their_outputs<B: InferenceBackend>() {
    for (layout, kv_heads) in
        [(QkvLayout::PerHead, 6), (QkvLayout::PerGroup, 2), (QkvLayout::PerRank(2), 2), (QkvLayout::PerRank(2), 6)]
    {
        let outputs = 48 + 16 * kv_heads;
        for (groups, merge_count) in [(1, 0), (outputs / 8, 0), (outputs, 1), (6, 0), (outputs * 3, 2)] {
            for orientation in [Orientation::InputOutput, Orientation::OutputInput] {
                let qkv = vec![Matrix { name: "qkv", outputs, inputs: 48, groups, merge_count }];
                let layer =
                    Layer { kv_heads, orientation, qkv, layout, fused_bias: false, output: output(48, merge_count) };
                for ranks in [1, 2, 3].into_iter().filter(|ranks| kv_heads % ranks == 0) {
                    layer.check::<B>(ranks);
                }
            }
        }
    }
}

fn separate_projections_may_differ_in_their_scales<B: InferenceBackend>() {
    for (fused_bias, merge_count) in [(false, 0), (true, 0), (false, 1), (false, 2)] {
        for groups in [[48, 16, 16], [2, 16, 1], [96, 3, 4], [1, 1, 1]] {
            let [query, key, value] = groups;
            let of = |name, outputs, groups| Matrix { name, outputs, inputs: 48, groups, merge_count };
            let layer = Layer {
                kv_heads: 2,
                orientation: Orientation::OutputInput,
                qkv: vec![of("q", 48, query), of("k", 16, key), of("v", 16, value)],
                layout: QkvLayout::Concat,
                fused_bias,
                output: output(48, merge_count),
            };
            for ranks in [1, 2] {
                layer.check::<B>(ranks);
            }
        }
    }
}

/// One matrix for query, key, value and output.
fn everywhere(names: WeightNames) -> AttentionNames {
    let [query, key, value] = [names.clone(), names.clone(), names.clone()];
    let qkv = QkvNames::Separate { query, key, value };
    AttentionNames::new(qkv, names, Orientation::OutputInput)
}

/// What `GroupQuantizer` writes: a scale for each output, and scales of the two halves of the matrix, which are not read.
fn the_halves_of_the_group_quantizer_are_not_read<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.safetensors");
    let matrix = output(48, 0);
    let [elements, (name, dtype, _, mut bytes)] = matrix.entries(Orientation::OutputInput);
    bytes.extend((0..96).flat_map(|_| 7.0f32.to_le_bytes()));
    let config = llama().with_set_empty_params(true).with_num_kv(None).with_pre_layer_norm(false);
    save(&path, &[elements, (name, dtype, vec![48, 3], bytes)]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let names = everywhere(matrix.names());
    let config = config.with_dtype(DataType::Int8).with_qkv_bias(false).with_output_bias(false);
    let fresh = || config.init_self_attention::<B>(0, &Default::default()).unwrap();
    // The 48 rows of three may also be three scales for each output.
    let error = fresh().load(&checkpoint, &names).unwrap_err();
    assert!(matches!(error, WeightError::AmbiguousScales(_)), "{error}");
    let module = fresh().load(&checkpoint.with_scale_format(ScaleFormat::GroupQuantizer), &names).unwrap();
    assert_weights(module.output(), |output, input| matrix.weight(output, input));

    // Fewer rows than outputs have one reading only.
    let matrix = output(12, 0);
    let [elements, (name, dtype, _, mut bytes)] = matrix.entries(Orientation::OutputInput);
    bytes.extend((0..24).flat_map(|_| 7.0f32.to_le_bytes()));
    save(&path, &[elements, (name, dtype, vec![12, 3], bytes)]);
    let module = fresh().load(&Checkpoint::open(&path).unwrap(), &names).unwrap();
    assert_weights(module.output(), |output, input| matrix.weight(output, input));
}

fn names_of_deepspeed_come_with_scales<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.safetensors");
    let qkv = Matrix { name: "h.0.attn_qkvw", outputs: 144, inputs: 48, groups: 12, merge_count: 0 };
    let out = Matrix { name: "h.0.attn_ow", ..output(6, 1) };
    let mut entries: Vec<Entry> = [&qkv, &out].iter().flat_map(|m| m.entries(Orientation::OutputInput)).collect();
    entries.extend([float("h.0.attn_qkvb", 144), float("h.0.attn_ob", 48), float("h.0.norm_w", 48)]);
    save(&path, &entries);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let names = AttentionNames::deepspeed(&checkpoint, "h.0.", QkvLayout::Concat, Orientation::OutputInput);
    let config = llama().with_num_kv(None).with_dtype(DataType::Int8);
    let fresh = || config.init_self_attention::<B>(0, &Default::default()).unwrap();
    let module = fresh().load(&checkpoint, &names.with_merge_count(1)).unwrap();
    checkpoint.finish().unwrap();
    assert_weights(module.output(), |output, input| out.weight(output, input));
    let QkvWeight::Fused(fused) = module.qkv() else { panic!() };
    assert_weights(fused, |output, input| qkv.weight(output, input));
    assert_eq!((fused.int8().unwrap().blocks(), module.output().int8().unwrap().blocks()), ([12, 48], [8, 24]));
    // blocks of both directions, which no `Int8Blocks` names, come with a record
    let read = fresh().load_record(module.clone().into_record());
    assert_weights(read.output(), |output, input| out.weight(output, input));
    assert_eq!(read.output().int8().unwrap().blocks(), [8, 24]);
}

fn matrices_of_both_kinds_make_one<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.safetensors");
    let of = |name, outputs| Matrix { name, outputs, inputs: 48, groups: outputs, merge_count: 0 };
    let matrices = [of("k", 16), of("v", 16), output(48, 0)];
    let mut entries: Vec<Entry> = matrices.iter().flat_map(|m| m.entries(Orientation::OutputInput)).collect();
    entries.push(("q".into(), Dtype::F32, vec![48, 48], float("q", 48 * 48).3));
    entries.push(float("norm.weight", 48));
    save(&path, &entries);
    let [key, value, out] = matrices.each_ref().map(Matrix::names);
    let names = AttentionNames::new(
        QkvNames::Separate { query: WeightNames::new("q".into(), "q.bias".into()), key, value },
        out,
        Orientation::OutputInput,
    )
    .with_norm(NormNames::of("norm"));
    let weight = |output: usize, input: usize| match output {
        0..48 => (output * 48 + input) as f64 / 64.0,
        48..64 => matrices[0].weight(output - 48, input),
        _ => matrices[1].weight(output - 64, input),
    };
    let loaded = |dtype| {
        let config = llama().with_dtype(dtype).with_qkv_bias(false).with_output_bias(false);
        let module = config.init_self_attention::<B>(0, &Default::default()).unwrap();
        let module = module.load(&Checkpoint::open(&path).unwrap(), &names).unwrap();
        let QkvWeight::Fused(fused) = module.qkv() else { panic!() };
        fused.clone()
    };
    assert_weights(&loaded(DataType::Fp32), weight);
    let int8 = loaded(DataType::Int8);
    let scales = values(int8.int8().unwrap().scales());
    for (at, found) in values(int8.matrix()).into_iter().enumerate() {
        let [output, input] = [at / 48, at % 48];
        assert!((found - weight(output, input)).abs() <= 0.5001 * scales[output], "output {output}, input {input}");
    }
}

on_each_cpu_backend!(
    scales_are_those_of_the_kernel,
    scales_move_with_their_outputs,
    separate_projections_may_differ_in_their_scales,
    the_halves_of_the_group_quantizer_are_not_read,
    names_of_deepspeed_come_with_scales,
    matrices_of_both_kinds_make_one,
);

mod errors {
    use super::*;
    type B = crate::common::AnyBackend;

    /// The error of reading an output projection of int8 that was saved with these scales.
    fn error(scales: &[usize], merge_count: u32, name: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer.safetensors");
        let matrix = output(48, 0);
        let [elements, _] = matrix.entries(Orientation::OutputInput);
        let numbers = (0..scales.iter().product::<usize>()).flat_map(|_| 1.0f32.to_le_bytes()).collect();
        save(&path, &[elements, (name.into(), Dtype::F32, scales.to_vec(), numbers)]);
        let names = everywhere(Matrix { merge_count, ..output(48, 0) }.names());
        let config = llama().with_num_kv(None).with_pre_layer_norm(false).with_set_empty_params(true);
        let config = config.with_dtype(DataType::Int8).with_qkv_bias(false).with_output_bias(false);
        let module = config.init_self_attention::<B>(0, &Default::default()).unwrap();
        module.load(&Checkpoint::open(&path).unwrap(), &names).unwrap_err().to_string()
    }

    #[test]
    fn scales_that_are_not_there_are_named() {
        let message = error(&[48], 0, "out.scales");
        assert!(message.contains("`out` in int8 and no scales `out.scale` (nearest: `out.scales`); save"), "{message}");
    }

    #[test]
    fn scales_that_do_not_divide_the_matrix_are_counted() {
        let message = error(&[5], 0, "out.scale");
        assert!(
            message.contains("`out.scale` has 5 scales for the 48 outputs and 48 inputs of `out` in 1"),
            "{message}"
        );
        let message = error(&[3], 1, "out.scale");
        assert!(message.contains("3 scales for the 48 outputs and 48 inputs of `out` in 2 parts"), "{message}");
        assert!(message.contains("a divisor of its 1152 elements: check `merge_count`"), "{message}");
        assert!(error(&[0], 0, "out.scale").contains("has 0 scales"));
    }

    #[test]
    fn parts_that_do_not_divide_the_inputs_have_a_limit() {
        let message = error(&[48], 5, "out.scale");
        assert!(message.contains("`out` has 48 inputs, which cannot come from 2^5 parts"), "{message}");
        assert!(message.contains("here at most 4"), "{message}");
        assert!(error(&[48], 99, "out.scale").contains("2^99"));
    }

    #[test]
    fn three_numbers_are_not_guessed_at() {
        let message = error(&[1, 3], 0, "out.scale");
        assert!(message.contains("`out.scale` has three columns, which is three scales for each row"), "{message}");
        assert!(message.contains("or save it in one dimension"), "{message}");
    }
}
