//! Matrices of blocks that modules write: a GGUF file has their bytes, and a module that reads it has their formats.

use std::path::Path;

use burn::tensor::DType;
use burn_deepspeed::config::MatrixFormat;
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, CheckpointWriter, JointNames, LatentNames, NormNames, ParameterReader, QkvLayout,
    QkvNames, SplitCheckpoint, WeightNames, WeightPart, WriteProjections,
};
use burn_deepspeed::weight::{BlockFormat, Int8Blocks, Orientation, QkvWeight, SeparateQkv, Weight};
use burn_deepspeed::{
    AttentionInit, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, InferenceBackend, JointStreams,
    LatentSizes, NormType, RotaryLayout, VaeBlock, WeightError,
};
use burn_deepspeed_core::block::{BlockRows, RowFormats};

use crate::attention::randomised;
use crate::checkpoint_writer::assert_same;
use crate::common::{AnyBackend, on_each_cpu_backend, values};
use crate::resharding::on_rank;

on_each_cpu_backend!(
    every_layout_is_read_back_byte_for_byte,
    every_format_of_a_file_is_written_as_it_was_read,
    rows_of_several_formats_need_names_of_their_own,
    rows_of_several_floats_become_f32,
    blocks_are_not_transposed_and_floats_are,
    blocks_do_not_fit_safetensors,
    int8_and_blocks_share_a_file,
    ranks_write_their_parts,
    every_module_is_written,
    a_projection_is_written_alone,
);

/// Four heads of 128 features, which share two keys: rows of 512 elements are two blocks of 256, and those of half of the heads one.
fn config() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(512, 4).with_dtype(DataType::Fp32).with_num_kv(Some(2))
}

/// The same in small: two heads of 32 features and a key for each.
fn small() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(64, 2).with_dtype(DataType::Fp32).with_num_kv(Some(2))
}

fn stored(config: &DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig {
    config.clone().with_matrix_format(MatrixFormat::Stored)
}

fn fresh<B: InferenceBackend>(config: &DeepSpeedInferenceConfig) -> DeepSpeedSelfAttention<B> {
    config.init_self_attention(0, &Default::default()).unwrap()
}

fn names(qkv: QkvNames) -> AttentionNames {
    AttentionNames::new(qkv, WeightNames::of("out"), Orientation::OutputInput).with_norm(NormNames::of("norm"))
}

fn separate() -> AttentionNames {
    names(QkvNames::separate("attn", ["q", "k", "v"]))
}

fn save<B: InferenceBackend>(module: &DeepSpeedSelfAttention<B>, path: &Path, names: &AttentionNames) {
    let mut writer = CheckpointWriter::default();
    module.write(&mut writer, names).unwrap();
    writer.save(path).unwrap();
}

fn load<B: InferenceBackend>(
    config: &DeepSpeedInferenceConfig,
    path: &Path,
    names: &AttentionNames,
) -> DeepSpeedSelfAttention<B> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let read = fresh::<B>(&stored(config)).load(&checkpoint, names).unwrap();
    checkpoint.finish().unwrap();
    read
}

/// The same bytes and formats, and the same biases and norm.
#[track_caller]
fn assert_same_blocks<B: InferenceBackend>(read: &DeepSpeedSelfAttention<B>, written: &DeepSpeedSelfAttention<B>) {
    let [read_weights, written_weights] = [read, written].map(|module| match module.qkv() {
        QkvWeight::Fused(fused) => vec![fused, module.output()],
        QkvWeight::Separate(SeparateQkv { query, key, value }) => vec![query, key, value, module.output()],
    });
    assert_eq!(read_weights.len(), written_weights.len());
    for (read, written) in read_weights.into_iter().zip(written_weights) {
        let [own, other] = [read, written].map(|weight| weight.blocks().unwrap());
        assert_eq!(own.formats(), other.formats());
        assert_eq!(own.bytes().into_data(), other.bytes().into_data());
        assert_eq!(read.bias().map(values), written.bias().map(values));
    }
    let norm = |module: &DeepSpeedSelfAttention<B>| module.norm().map(|norm| values(norm.gamma()));
    assert_eq!(norm(read), norm(written));
}

fn every_layout_is_read_back_byte_for_byte<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.gguf");
    let fused = |layout| QkvNames::fused("qkv", layout);
    let one_bias =
        QkvNames::SeparateWithFusedBias { query: "q".into(), key: "k".into(), value: "v".into(), bias: "bias".into() };
    let small = DeepSpeedInferenceConfig::new(96, 6).with_dtype(DataType::Fp32);
    for (qkv, kv_heads) in [
        (fused(QkvLayout::Concat), 2),
        (fused(QkvLayout::PerGroup), 2),
        (fused(QkvLayout::PerRank(2)), 2),
        (fused(QkvLayout::PerHead), 6),
        (QkvNames::separate("attn", ["q", "k", "v"]), 2),
        (one_bias, 2),
    ] {
        let names = names(qkv);
        for (format, parts) in BlockFormat::writable().flat_map(|format| [(format, false), (format, true)]) {
            let config = small.clone().with_num_kv(Some(kv_heads)).with_set_empty_params(parts);
            let module = randomised(fresh::<B>(&config)).quantize_blocks(format).unwrap();
            save(&module, &path, &names);
            assert_same_blocks(&load(&config, &path, &names), &module);
        }
    }
}

/// A file of these tensors: blocks of bytes that differ, which need not be numbers.
fn file(path: &Path, config: &DeepSpeedInferenceConfig, names: &AttentionNames, formats: [BlockFormat; 4]) {
    let mut writer = CheckpointWriter::default();
    // Norm and biases.
    randomised(fresh::<AnyBackend>(config)).write(&mut writer, names).unwrap();
    let QkvNames::Separate { query, key, value } = &names.qkv else { panic!("separate names") };
    let (all, keys) = (config.hidden_size, config.hidden_size / config.heads * config.num_kv.unwrap());
    for ((names, outputs), format) in
        [(query, all), (key, keys), (value, keys), (&names.output, all)].into_iter().zip(formats)
    {
        let formats = RowFormats::uniform(format, [outputs, all]).unwrap();
        let bytes = (0..formats.bytes()).map(|at| (at * 31 + at / 251) as u8).collect();
        let order: Vec<usize> = (0..outputs).collect();
        let rows = BlockRows { formats, bytes };
        writer.blocks(&names.matrix, Orientation::OutputInput, (&[rows], &order)).unwrap();
    }
    writer.save(path).unwrap();
}

/// The formats that floats cannot be rounded to, as well, and other ones for queries, keys and values.
fn every_format_of_a_file_is_written_as_it_was_read<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["first.gguf", "second.gguf"].map(|name| folder.path().join(name));
    let config = DeepSpeedInferenceConfig::new(256, 2).with_dtype(DataType::Fp32).with_num_kv(Some(1));
    let mixed = [BlockFormat::Q4_K, BlockFormat::Q4_0, BlockFormat::Q6_K, BlockFormat::MXFP4];
    let uniform = BlockFormat::ALL.map(|format| ([format; 4], false));
    for (formats, parts) in uniform.into_iter().chain([(mixed, false), (mixed, true)]) {
        let config = config.clone().with_set_empty_params(parts);
        file(&paths[0], &config, &separate(), formats);
        save(&load::<B>(&config, &paths[0], &separate()), &paths[1], &separate());
        let [first, second] = [0, 1].map(|file| std::fs::read(&paths[file]).unwrap());
        assert!(first == second, "{formats:?}");
    }
}

fn rows_of_several_formats_need_names_of_their_own<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.gguf");
    file(&path, &config(), &separate(), [BlockFormat::Q4_K, BlockFormat::Q4_K, BlockFormat::Q6_K, BlockFormat::Q8_0]);
    let module = load::<B>(&config(), &path, &separate());
    assert_eq!(module.qkv().first().blocks().unwrap().formats().parts().count(), 2);
    let write = |module: &DeepSpeedSelfAttention<B>| {
        let fused = names(QkvNames::fused("qkv", QkvLayout::PerGroup));
        module.write(&mut CheckpointWriter::default(), &fused)
    };
    let error = write(&module).unwrap_err();
    assert!(matches!(&error, WeightError::SeveralFormats { name, .. } if name == "qkv.weight"), "{error}");
    assert!(error.to_string().contains("Q4_K, Q6_K"), "{error}");
}

/// A file of two types of floats.
fn rows_of_several_floats_become_f32<B: InferenceBackend>() {
    use BlockFormat::{BF16, F16, F32};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.gguf");
    file(&path, &small(), &separate(), [BF16, BF16, F16, F16]);
    let module = load::<B>(&small(), &path, &separate());
    let fused = names(QkvNames::fused("qkv", QkvLayout::Concat));
    for name in ["layer.gguf", "layer.safetensors"] {
        let path = folder.path().join(name);
        save(&module, &path, &fused);
        let read = load::<B>(&small(), &path, &fused);
        let formats = |module: &DeepSpeedSelfAttention<B>| -> Vec<BlockFormat> {
            module.qkv().first().blocks().unwrap().formats().parts().map(|part| part.format).collect()
        };
        assert_eq!((formats(&module), formats(&read)), (vec![BF16, F16], vec![F32]));
        // The bits, since some are those of NaN.
        let bits = |module: &DeepSpeedSelfAttention<B>| -> Vec<u32> {
            let values = module.qkv().first().matrix().into_data();
            values.iter::<f32>().map(f32::to_bits).collect()
        };
        assert_eq!(bits(&read), bits(&module));
        assert_eq!(
            read.output().blocks().unwrap().bytes().into_data(),
            module.output().blocks().unwrap().bytes().into_data()
        );
    }
}

fn blocks_are_not_transposed_and_floats_are<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let module = |format| randomised(fresh::<B>(&small())).quantize_blocks(format).unwrap();
    let mut names = names(QkvNames::fused("qkv", QkvLayout::PerHead));
    names.orientation = Orientation::InputOutput;
    let error = module(BlockFormat::Q8_0).write(&mut CheckpointWriter::default(), &names).unwrap_err();
    assert!(matches!(&error, WeightError::TransposedBlocks { format: BlockFormat::Q8_0, .. }), "{error}");
    for format in [BlockFormat::F32, BlockFormat::F16, BlockFormat::BF16] {
        for name in ["layer.gguf", "layer.safetensors"] {
            let (module, path) = (module(format), folder.path().join(name));
            save(&module, &path, &names);
            assert_same_blocks(&load(&small(), &path, &names), &module);
        }
    }
}

/// The error says how to get floats.
fn blocks_do_not_fit_safetensors<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.safetensors");
    let module = randomised(fresh::<B>(&small())).quantize_blocks(BlockFormat::Q5_0).unwrap();
    let mut writer = CheckpointWriter::default();
    module.write(&mut writer, &separate()).unwrap();
    let error = writer.save(&path).unwrap_err();
    assert!(matches!(&error, WeightError::BlocksInSafetensors { format: BlockFormat::Q5_0, .. }), "{error}");
    assert!(error.to_string().contains("quantize_blocks(BlockFormat::F32)"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let dense = module.clone().quantize_blocks(BlockFormat::F32).unwrap();
    save(&dense, &path, &separate());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let read = fresh::<B>(&small()).load(&checkpoint, &separate()).unwrap();
    for (read, written) in [(read.output(), module.output()), (read.qkv().first(), module.qkv().first())] {
        assert!(values(read.input_output()) == values(written.input_output()));
    }
}

fn int8_and_blocks_share_a_file<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layers.gguf");
    let blocks = randomised(fresh::<B>(&small())).quantize_blocks(BlockFormat::Q4_1).unwrap();
    let quantized = |module: DeepSpeedSelfAttention<B>| module.quantize(Int8Blocks::PerOutput).unwrap();
    let int8 = quantized(randomised(fresh::<B>(&small())));
    let own = AttentionNames::new(
        QkvNames::fused("int8.qkv", QkvLayout::PerHead),
        WeightNames::of("int8.out"),
        Orientation::InputOutput,
    )
    .with_norm(NormNames::of("int8.norm"));
    let mut writer = CheckpointWriter::default();
    blocks.write(&mut writer, &separate()).unwrap();
    int8.write(&mut writer, &own).unwrap();
    writer.save(&path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let read = fresh::<B>(&stored(&small())).load(&checkpoint, &separate()).unwrap();
    assert_same_blocks(&read, &blocks);
    let read = quantized(fresh::<B>(&small())).load(&checkpoint, &own).unwrap();
    checkpoint.finish().unwrap();
    assert_same(read.qkv().first(), int8.qkv().first());
    assert_same(read.output(), int8.output());
}

/// The output projection is cut between blocks. Its parts, and those of the heads, make the whole again, or the part of another rank.
fn ranks_write_their_parts<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.gguf");
    let paths: Vec<_> = (0..2).map(|rank| folder.path().join(format!("{rank}.gguf"))).collect();
    for formats in
        [[BlockFormat::Q8_0; 4], [BlockFormat::Q4_0, BlockFormat::IQ4_NL, BlockFormat::Q6_K, BlockFormat::Q4_K]]
    {
        file(&whole, &config(), &separate(), formats);
        let of_whole = |rank, ranks| load::<B>(&on_rank(&config(), rank, ranks), &whole, &separate());
        for (rank, path) in paths.iter().enumerate() {
            save(&of_whole(rank, 2), path, &separate());
        }
        let split = SplitCheckpoint::open(&paths).unwrap();
        for (rank, ranks) in [(0, 1), (0, 2), (1, 2)] {
            let read = fresh::<B>(&stored(&on_rank(&config(), rank, ranks))).load_split(&split, &separate()).unwrap();
            assert_same_blocks(&read, &of_whole(rank, ranks));
        }
        let output = of_whole(1, 2);
        let found: Vec<_> = output.output().blocks().unwrap().formats().parts().map(|part| part.format).collect();
        assert_eq!(found, [formats[3]], "no block was cut");
        split.finish().unwrap();
    }
}

/// Reads what a module wrote, and writes it again: nothing was converted, and both files have the same bytes.
fn check<M>(
    module: &M,
    write: impl Fn(&M, &mut CheckpointWriter) -> Result<(), WeightError>,
    load: impl Fn(&Checkpoint) -> Result<M, WeightError>,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.gguf");
    let written = |module: &M| {
        let mut writer = CheckpointWriter::default();
        write(module, &mut writer).unwrap();
        let error = writer.save(folder.path().join("layer.safetensors")).unwrap_err();
        assert!(matches!(error, WeightError::BlocksInSafetensors { .. }), "{error}");
        writer.save(&path).unwrap();
        std::fs::read(&path).unwrap()
    };
    let first = written(module);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let read = load(&checkpoint).unwrap();
    assert_eq!(checkpoint.finish().unwrap().converted, []);
    assert!(written(&read) == first);
}

fn every_module_is_written<B: InferenceBackend>() {
    let (device, format) = (Default::default(), BlockFormat::Q5_1);

    let config = small().with_context_gate(true);
    let names = names(QkvNames::separate_with_gate("attn", ["q", "k", "v"]));
    let module = randomised(fresh::<B>(&config)).quantize_blocks(format).unwrap();
    check(
        &module,
        |module, writer| module.write(writer, &names),
        |file| fresh::<B>(&stored(&config)).load(file, &names),
    );

    let names = separate();
    let fresh = |config: DeepSpeedInferenceConfig| config.init_cross_attention::<B>(32, 0, &device).unwrap();
    let module = randomised(fresh(small())).quantize_blocks(format).unwrap();
    check(&module, |module, writer| module.write(writer, &names), |file| fresh(stored(&small())).load(file, &names));

    let names = AttentionNames::diffusers("attn");
    let fresh = |config: DeepSpeedInferenceConfig| config.init_diffusers_cross::<B>(32, 0, &device).unwrap();
    let module = randomised(fresh(small())).quantize_blocks(format).unwrap();
    check(&module, |module, writer| module.write(writer, &names), |file| fresh(stored(&small())).load(file, &names));

    let names = JointNames::diffusers("attn");
    let streams = JointStreams::image_first(32);
    let fresh = |config: DeepSpeedInferenceConfig| config.init_joint::<B>(streams, 0, &device).unwrap();
    let module = randomised(fresh(small())).quantize_blocks(format).unwrap();
    check(&module, |module, writer| module.write(writer, &names), |file| fresh(stored(&small())).load(file, &names));

    let names = AttentionNames::diffusers("attn").with_norm(NormNames::of("attn.group_norm"));
    let config = DeepSpeedInferenceConfig::new(64, 1).with_dtype(DataType::Fp32);
    let block = VaeBlock::default().with_groups(4);
    let fresh = |config: DeepSpeedInferenceConfig| config.init_vae::<B>(block, 0, &device).unwrap();
    let module = randomised(fresh(config.clone())).quantize_blocks(format).unwrap();
    check(&module, |module, writer| module.write(writer, &names), |file| fresh(stored(&config)).load(file, &names));

    let sizes = LatentSizes::new(56, [16, 8], 16).with_q_lora_rank(Some(32));
    let names = LatentNames::deepseek("attn", true).with_norm("norm");
    let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32).with_norm_type(NormType::RMSNorm);
    let config = config.with_rotary(RotaryLayout::Interleaved, 8);
    let fresh = |config: DeepSpeedInferenceConfig| config.init_latent_attention::<B>(&sizes, 0, &device).unwrap();
    let module = randomised(fresh(config.clone())).quantize_blocks(format).unwrap();
    check(&module, |module, writer| module.write(writer, &names), |file| fresh(stored(&config)).load(file, &names));
}

/// Dense, in int8 and in blocks, with and without a bias.
fn a_projection_is_written_alone<B: InferenceBackend>() {
    let (device, names, folder) = (Default::default(), WeightNames::of("mlp.up"), tempfile::tempdir().unwrap());
    for bias in [true, false] {
        let dense = || randomised(Weight::<B>::init(64, 29, bias, Orientation::OutputInput, DType::F32, &device));
        let int8 = || dense().quantize(Int8Blocks::PerOutput).unwrap();
        let blocks = || dense().quantize_blocks(BlockFormat::IQ4_NL).unwrap();
        let fresh = Weight::<B>::init_blocks(64, 29, bias, None, DType::F32, &device).unwrap();
        for (weight, fresh, orientation, end) in [
            (dense(), dense(), Orientation::InputOutput, "safetensors"),
            (dense(), dense(), Orientation::InputOutput, "gguf"),
            (int8(), int8(), Orientation::InputOutput, "gguf"),
            (blocks(), fresh, Orientation::OutputInput, "gguf"),
        ] {
            let path = folder.path().join(format!("model.{end}"));
            let mut writer = CheckpointWriter::default();
            writer.projection(&names, orientation, &weight).unwrap();
            writer.save(&path).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert_eq!(checkpoint.contains("mlp.up.bias"), bias);
            let reader = ParameterReader::<B>::new(&checkpoint, DType::F32, &device);
            let read = reader.projection(&fresh, &names, orientation, &WeightPart::Whole).unwrap();
            checkpoint.finish().unwrap();
            assert_same(&read, &weight);
            let bytes = |weight: &Weight<B>| weight.blocks().map(|matrix| matrix.bytes().into_data());
            assert_eq!(bytes(&read), bytes(&weight));
        }
    }
}
