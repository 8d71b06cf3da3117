//! Any number of files loads into any number of ranks, bit for bit.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor};
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkvLayout, QkvNames, ReadTensors, SplitCheckpoint,
    WeightNames,
};
use burn_deepspeed::weight::{Int8Blocks, Orientation, QkvWeight};
use burn_deepspeed::{AttentionInit, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, InferenceBackend};
use half::bf16;
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};

use crate::attention::randomised;
use crate::checkpoint_writer::assert_same;
use crate::common::{AnyBackend, on_each_cpu_backend, values};
use crate::load::{Entry, save};

on_each_cpu_backend!(
    every_split_loads_into_every_split,
    what_torch_cat_makes_of_the_files_is_known_by_its_ranks,
    bloom_and_diffusion_are_split_too,
    a_block_of_a_tensor_is_that_of_the_whole,
);

/// Twelve heads of two features, which 1, 2, 3, 4, 6 and 12 ranks can share.
pub fn config(kv_heads: usize, dtype: DataType) -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(20, 12).with_head_dim(Some(2)).with_num_kv(Some(kv_heads)).with_dtype(dtype)
}

pub fn on_rank(config: &DeepSpeedInferenceConfig, rank: usize, ranks: usize) -> DeepSpeedInferenceConfig {
    config.clone().with_mp_size(ranks).with_local_rank(Some(rank)).with_uneven_heads(true)
}

pub fn names(qkv: QkvNames, orientation: Orientation) -> AttentionNames {
    AttentionNames::new(qkv, WeightNames::of("out"), orientation).with_norm(NormNames::of("norm"))
}

pub fn fresh<B: InferenceBackend>(config: &DeepSpeedInferenceConfig) -> DeepSpeedSelfAttention<B> {
    config.init_self_attention(0, &Default::default()).unwrap()
}

pub fn write<B: InferenceBackend>(module: &DeepSpeedSelfAttention<B>, path: &Path, names: &AttentionNames) {
    let mut writer = CheckpointWriter::default();
    module.write(&mut writer, names).unwrap();
    writer.save(path).unwrap();
}

/// The tensors of a file.
pub fn entries(path: &Path) -> Vec<Entry> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let entry = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        (name.to_string(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
    };
    file.iter().map(entry).collect()
}

/// The same file with floats of 16 bits.
fn halve(path: &Path) {
    let half = |(name, dtype, shape, bytes): Entry| {
        assert_eq!(dtype, Dtype::F32);
        let value = |raw: &[u8; 4]| bf16::from_f32(f32::from_le_bytes(*raw)).to_le_bytes();
        (name, Dtype::BF16, shape, bytes.as_chunks::<4>().0.iter().flat_map(value).collect())
    };
    save(path, &entries(path).into_iter().map(half).collect::<Vec<_>>());
}

/// What is in the files.
#[derive(Debug, Clone, Copy)]
enum Stored {
    F32,
    Bf16,
    Int8(Int8Blocks),
}

impl Stored {
    fn dtype(self) -> DataType {
        if let Self::Int8(_) = self { DataType::Int8 } else { DataType::Fp32 }
    }
}

#[track_caller]
fn assert_same_module<B: InferenceBackend>(read: &DeepSpeedSelfAttention<B>, expected: &DeepSpeedSelfAttention<B>) {
    let norm = |module: &DeepSpeedSelfAttention<B>| {
        let norm = module.norm().unwrap();
        (values(norm.gamma()), norm.beta().map(values))
    };
    assert_eq!(norm(read), norm(expected));
    assert_same(read.output(), expected.output());
    match (read.qkv(), expected.qkv()) {
        (QkvWeight::Fused(read), QkvWeight::Fused(expected)) => assert_same(read, expected),
        (QkvWeight::Separate(read), QkvWeight::Separate(expected)) => {
            assert_same(&read.query, &expected.query);
            assert_same(&read.key, &expected.key);
            assert_same(&read.value, &expected.value);
        }
        _ => panic!(),
    }
}

/// A layer in one file, and in the files of several numbers of ranks. Each is read on every number in `targets`.
struct Case<'a> {
    config: DeepSpeedInferenceConfig,
    names: AttentionNames,
    stored: Stored,
    sources: &'a [usize],
    targets: &'a [usize],
}

impl Case<'_> {
    fn check<B: InferenceBackend>(&self) {
        let Self { config, names, stored, .. } = self;
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole.safetensors");
        let dense: DeepSpeedSelfAttention<B> = randomised(fresh(&config.clone().with_dtype(DataType::Fp32)));
        match stored {
            Stored::Int8(blocks) => write(&dense.quantize(*blocks).unwrap(), &whole, names),
            _ => write(&dense, &whole, names),
        }
        if let Stored::Bf16 = stored {
            halve(&whole);
        }
        let of_whole = |rank, ranks| -> DeepSpeedSelfAttention<B> {
            fresh(&on_rank(config, rank, ranks)).load(&Checkpoint::open(&whole).unwrap(), names).unwrap()
        };
        let expected: Vec<Vec<_>> =
            self.targets.iter().map(|&ranks| (0..ranks).map(|rank| of_whole(rank, ranks)).collect()).collect();
        for &sources in self.sources {
            let path = |rank: usize| folder.path().join(format!("mp_rank_{rank:02}.safetensors"));
            let paths: Vec<PathBuf> = (0..sources).map(path).collect();
            for (rank, path) in paths.iter().enumerate() {
                write(&of_whole(rank, sources), path, names);
                if let Stored::Bf16 = stored {
                    halve(path);
                }
            }
            let config = config.clone().with_training_mp_size(sources);
            for (ranks, expected) in self.targets.iter().zip(&expected) {
                for (rank, expected) in expected.iter().enumerate() {
                    let split = SplitCheckpoint::open(&paths).unwrap();
                    let read = fresh::<B>(&on_rank(&config, rank, *ranks)).load_split(&split, names).unwrap();
                    assert_same_module(&read, expected);
                    let report = split.finish().unwrap();
                    assert_eq!((report.loaded.len(), report.missing.len()), (entries(&paths[0]).len(), 0));
                    let converted = if let Stored::Bf16 = stored { report.loaded.len() } else { 0 };
                    assert_eq!(report.converted.len(), converted);
                }
            }
        }
    }
}

/// Even splits of twelve heads, and one that is not.
const RANKS: [usize; 4] = [1, 2, 4, 5];

fn by_name() -> QkvNames {
    let [query, key, value, bias] = ["q", "k", "v", "bias"].map(String::from);
    QkvNames::SeparateWithFusedBias { query, key, value, bias }
}

fn every_split_loads_into_every_split<B: InferenceBackend>() {
    let fused = |layout| QkvNames::fused("qkv", layout);
    let some = |size| NonZeroUsize::new(size).unwrap();
    for (qkv, kv_heads) in [
        (fused(QkvLayout::Concat), 2),
        (fused(QkvLayout::Concat), 4),
        (fused(QkvLayout::PerHead), 12),
        (fused(QkvLayout::PerGroup), 2),
        (fused(QkvLayout::PerGroup), 6),
        (fused(QkvLayout::PerRank(2)), 1),
        (QkvNames::separate("attn", ["q", "k", "v"]), 2),
        (by_name(), 2),
    ] {
        for (stored, separate) in [
            (Stored::F32, false),
            (Stored::Bf16, true),
            (Stored::Int8(Int8Blocks::PerOutput), false),
            (Stored::Int8(Int8Blocks::Outputs(some(4))), true),
            (Stored::Int8(Int8Blocks::Inputs(some(4))), false),
        ] {
            for orientation in [Orientation::OutputInput, Orientation::InputOutput] {
                let config = config(kv_heads, stored.dtype()).with_set_empty_params(separate);
                let names = names(qkv.clone(), orientation);
                // a file in the layout of two ranks has the heads of two
                let two = matches!(qkv, QkvNames::Fused { layout: QkvLayout::PerRank(2), .. });
                let sources: Vec<usize> = RANKS.into_iter().filter(|ranks| !two || 12 % (2 * ranks) == 0).collect();
                Case { config, names, stored, sources: &sources, targets: &RANKS }.check::<B>();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn random_heads_survive_random_splits(
        kv_heads in 1usize..7, group in 1usize..5, head_dim in 1usize..4, hidden in 1usize..24,
        layout in prop::sample::select(vec![QkvLayout::Concat, QkvLayout::PerGroup]), fused: bool, stored in 0usize..3,
        from: prop::sample::Index, to: prop::sample::Index, transposed: bool,
    ) {
        let heads = kv_heads * group;
        let stored = [Stored::F32, Stored::Bf16, Stored::Int8(Int8Blocks::PerOutput)][stored];
        let config = DeepSpeedInferenceConfig::new(hidden, heads)
            .with_head_dim(Some(head_dim))
            .with_num_kv(Some(kv_heads))
            .with_transposed_mode(transposed)
            .with_dtype(stored.dtype());
        let qkv = if fused { QkvNames::fused("qkv", layout) } else { by_name() };
        let names = names(qkv, Orientation::InputOutput);
        let (sources, targets) = ([1 + from.index(heads)], [1 + to.index(heads)]);
        Case { config, names, stored, sources: &sources, targets: &targets }.check::<AnyBackend>();
    }
}

/// The files of `sources` ranks, `[out, in]`, put together along the outputs, and the output projection along its inputs.
fn concatenated(paths: &[PathBuf]) -> Vec<Entry> {
    let mut files: Vec<Vec<Entry>> = paths.iter().map(|path| entries(path)).collect();
    let first = files.remove(0);
    let others = |name: &str| files.iter().map(|file| file.iter().find(|entry| entry.0 == name).unwrap()).collect();
    let merge = |(name, dtype, mut shape, mut bytes): Entry| {
        let others: Vec<&Entry> = others(&name);
        if name == "out.weight" {
            let row = bytes.len() / shape[0];
            let rows = (0..shape[0]).map(|output| output * row..(output + 1) * row);
            bytes = rows
                .flat_map(|row| {
                    let parts = std::iter::once(&bytes).chain(others.iter().map(|other| &other.3));
                    parts.flat_map(move |part| part[row.clone()].to_vec()).collect::<Vec<_>>()
                })
                .collect();
            shape[1] *= paths.len();
        } else if name.starts_with("qkv") {
            bytes.extend(others.iter().flat_map(|other| other.3.clone()));
            shape[0] *= paths.len();
        }
        (name, dtype, shape, bytes)
    };
    first.into_iter().map(merge).collect()
}

fn what_torch_cat_makes_of_the_files_is_known_by_its_ranks<B: InferenceBackend>() {
    for (kv_heads, sources) in [(12, 3), (4, 2), (2, 6)] {
        let folder = tempfile::tempdir().unwrap();
        let config = config(kv_heads, DataType::Fp32);
        let names = names(QkvNames::fused("qkv", QkvLayout::Concat), Orientation::OutputInput);
        let whole = folder.path().join("whole.safetensors");
        write(&randomised(fresh::<B>(&config)), &whole, &names);
        let of_whole = |rank, ranks| -> DeepSpeedSelfAttention<B> {
            fresh(&on_rank(&config, rank, ranks)).load(&Checkpoint::open(&whole).unwrap(), &names).unwrap()
        };
        let paths: Vec<PathBuf> = (0..sources).map(|rank| folder.path().join(format!("{rank}.safetensors"))).collect();
        for (rank, path) in paths.iter().enumerate() {
            write(&of_whole(rank, sources), path, &names);
        }
        let merged = folder.path().join("merged.safetensors");
        save(&merged, &concatenated(&paths));
        let trained = config.clone().with_training_mp_size(sources);
        for ranks in RANKS {
            for rank in 0..ranks {
                let checkpoint = Checkpoint::open(&merged).unwrap();
                let read = fresh::<B>(&on_rank(&trained, rank, ranks)).load(&checkpoint, &names).unwrap();
                checkpoint.finish().unwrap();
                assert_same_module(&read, &of_whole(rank, ranks));
            }
        }
        // and the way back: such a module writes such a file
        let read = fresh::<B>(&trained).load(&Checkpoint::open(&merged).unwrap(), &names).unwrap();
        let again = folder.path().join("again.safetensors");
        write(&read, &again, &names);
        let sorted = |path: &Path| {
            let mut entries = entries(path);
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            entries
        };
        assert!(sorted(&again) == sorted(&merged));
    }
}

fn bloom_and_diffusion_are_split_too<B: InferenceBackend>() {
    let (device, folder) = (Default::default(), tempfile::tempdir().unwrap());
    let path = |rank: usize| folder.path().join(format!("{rank}.safetensors"));
    let paths = [path(0), path(1)];
    let whole = folder.path().join("whole.safetensors");
    let bloom_config = config(12, DataType::Fp32).with_bigscience_bloom(true);
    let names = names(QkvNames::fused("qkv", QkvLayout::PerHead), Orientation::InputOutput);
    let bloom = |rank, ranks| on_rank(&bloom_config, rank, ranks).init_bloom::<B>(0, &device).unwrap();
    let mut writer = CheckpointWriter::default();
    randomised(bloom(0, 1)).write(&mut writer, &names).unwrap();
    writer.save(&whole).unwrap();
    let of_whole = |rank, ranks| bloom(rank, ranks).load(&Checkpoint::open(&whole).unwrap(), &names).unwrap();
    for (rank, path) in paths.iter().enumerate() {
        let mut writer = CheckpointWriter::default();
        of_whole(rank, 2).write(&mut writer, &names).unwrap();
        writer.save(path).unwrap();
    }
    let split = SplitCheckpoint::open(&paths).unwrap();
    let read = bloom(1, 3).load_split(&split, &names).unwrap();
    assert_same(read.output(), of_whole(1, 3).output());
    assert_same(&read.qkv().separate(8).key, &of_whole(1, 3).qkv().separate(8).key);

    let names = AttentionNames::diffusers("attn");
    let config = config(12, DataType::Fp32);
    let cross = |rank, ranks| on_rank(&config, rank, ranks).init_diffusers_cross::<B>(7, 0, &device).unwrap();
    let mut writer = CheckpointWriter::default();
    randomised(cross(0, 1)).write(&mut writer, &names).unwrap();
    writer.save(&whole).unwrap();
    let of_whole = |rank, ranks| cross(rank, ranks).load(&Checkpoint::open(&whole).unwrap(), &names).unwrap();
    for (rank, path) in paths.iter().enumerate() {
        let mut writer = CheckpointWriter::default();
        of_whole(rank, 2).write(&mut writer, &names).unwrap();
        writer.save(path).unwrap();
    }
    let split = SplitCheckpoint::open(&paths).unwrap();
    let read = cross(1, 3).load_split(&split, &names).unwrap();
    split.finish().unwrap();
    assert_same(read.output(), of_whole(1, 3).output());
    assert_same(&read.qkv().separate(8).value, &of_whole(1, 3).qkv().separate(8).value);
}

fn a_block_of_a_tensor_is_that_of_the_whole<B: InferenceBackend>() {
    let (device, folder) = (Default::default(), tempfile::tempdir().unwrap());
    let path = folder.path().join("tensor.safetensors");
    let numbers = |len: usize| (0..len).flat_map(|at| (at as f32).to_le_bytes()).collect();
    save(&path, &[("x".into(), Dtype::F32, vec![3, 5, 700], numbers(3 * 5 * 700))]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let whole: Tensor<B, 3> = checkpoint.tensor("x", [3, 5, 700], DType::F32, &device).unwrap();
    for ranges in [
        [0..3, 0..5, 0..700],
        [1..2, 0..5, 0..700],
        [0..3, 2..4, 0..700],
        [1..3, 4..5, 699..700],
        [0..3, 0..5, 17..680],
        [2..3, 1..5, 3..5],
    ] {
        let block: Tensor<B, 3> = checkpoint.slice("x", [3, 5, 700], ranges.clone(), DType::F32, &device).unwrap();
        assert_eq!(values(block), values(whole.clone().slice(ranges)));
    }
}
