//! What is written into a checkpoint is read back bit for bit.

use std::num::NonZeroUsize;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkvLayout, QkvNames, WeightNames, WriteTensors,
};
use burn_deepspeed::weight::{Int8Blocks, Orientation, QkvWeight, Weight};
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, InferenceBackend,
};

use crate::attention::{llama, randomised};
use crate::common::{AnyBackend, assert_near, on_each_cpu_backend, seeded, values};

on_each_cpu_backend!(what_is_written_is_read_back_bit_for_bit, diffusion_and_bloom_are_written_too);

fn blocks() -> [Option<Int8Blocks>; 6] {
    let some = |size| NonZeroUsize::new(size).unwrap();
    [
        None,
        Some(Int8Blocks::PerOutput),
        Some(Int8Blocks::Outputs(some(8))),
        Some(Int8Blocks::Outputs(some(7))),
        Some(Int8Blocks::Inputs(some(16))),
        Some(Int8Blocks::Inputs(some(20))),
    ]
}

fn what_is_written_is_read_back_bit_for_bit<B: InferenceBackend>() {
    let (device, folder) = (Default::default(), tempfile::tempdir().unwrap());
    let path = folder.path().join("layer.safetensors");
    let fused = |layout| QkvNames::fused("qkv", layout);
    let by_name = |bias: &str| QkvNames::SeparateWithFusedBias {
        query: "q".into(),
        key: "k".into(),
        value: "v".into(),
        bias: bias.into(),
    };
    for (qkv, kv_heads) in [
        (fused(QkvLayout::Concat), 2),
        (fused(QkvLayout::PerGroup), 2),
        (fused(QkvLayout::PerRank(2)), 2),
        (fused(QkvLayout::PerHead), 6),
        (QkvNames::separate("attn", ["q", "k", "v"]), 2),
        (by_name("bias"), 2),
    ] {
        for (blocks, separate) in blocks().into_iter().flat_map(|blocks| [(blocks, false), (blocks, true)]) {
            for (merge_count, orientation) in
                [(0, Orientation::OutputInput), (0, Orientation::InputOutput), (2, Orientation::InputOutput)]
            {
                let names = AttentionNames::new(qkv.clone(), WeightNames::of("out"), orientation)
                    .with_norm(NormNames::of("norm"));
                let names = names.with_merge_count(merge_count);
                let config = llama().with_num_kv(Some(kv_heads)).with_set_empty_params(separate);
                let fresh = || config.init_self_attention::<B>(0, &device).unwrap();
                let quantized = |module: DeepSpeedSelfAttention<B>| match blocks {
                    Some(blocks) => module.quantize(blocks).unwrap(),
                    None => module,
                };
                let module = quantized(randomised(fresh()));
                let mut writer = CheckpointWriter::default();
                module.write(&mut writer, &names).unwrap();
                writer.save(&path).unwrap();
                let checkpoint = Checkpoint::open(&path).unwrap();
                let read = quantized(fresh()).load(&checkpoint, &names).unwrap();
                checkpoint.finish().unwrap();
                assert_same(read.output(), module.output());
                match (read.qkv(), module.qkv()) {
                    (QkvWeight::Fused(read), QkvWeight::Fused(written)) => assert_same(read, written),
                    (QkvWeight::Separate(read), QkvWeight::Separate(written)) => {
                        assert_same(&read.query, &written.query);
                        assert_same(&read.key, &written.key);
                        assert_same(&read.value, &written.value);
                    }
                    _ => panic!(),
                }
                let input = seeded::<B, 3>([2, 3, 48], 1);
                let run = |module: &DeepSpeedSelfAttention<B>| {
                    module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap()
                };
                assert_near(run(&read), run(&module), 1e-5);
            }
        }
    }
}

/// The same elements, weights and biases.
#[track_caller]
pub fn assert_same<B: Backend>(read: &Weight<B>, written: &Weight<B>) {
    assert_eq!(values(read.matrix()), values(written.matrix()));
    assert_eq!(read.bias().map(values), written.bias().map(values));
    let elements = |weight: &Weight<B>| weight.int8().map(|matrix| matrix.elements().into_data());
    assert_eq!(elements(read), elements(written));
}

fn diffusion_and_bloom_are_written_too<B: InferenceBackend>() {
    let (device, folder) = (Default::default(), tempfile::tempdir().unwrap());
    let path = folder.path().join("layer.safetensors");
    let reopened = |writer: CheckpointWriter| {
        writer.save(&path).unwrap();
        Checkpoint::open(&path).unwrap()
    };
    let config = DeepSpeedInferenceConfig::new(48, 6).with_dtype(DataType::Int8);
    let names = AttentionNames::diffusers("attn");
    let fresh = || config.init_diffusers_cross::<B>(20, 0, &device).unwrap();
    let (module, mut writer) = (randomised(fresh()), CheckpointWriter::default());
    module.write(&mut writer, &names).unwrap();
    let read = fresh().load(&reopened(writer), &names).unwrap();
    assert_same(read.output(), module.output());
    assert_same(&read.qkv().separate(48).value, &module.qkv().separate(48).value);

    let config = config.clone().with_bigscience_bloom(true);
    let fresh = || config.init_bloom::<B>(0, &device).unwrap();
    let names = AttentionNames::new(
        QkvNames::fused("qkv", QkvLayout::PerHead),
        WeightNames::of("out"),
        Orientation::OutputInput,
    )
    .with_norm(NormNames::of("norm"));
    let (module, mut writer) = (randomised(fresh()), CheckpointWriter::default());
    module.write(&mut writer, &names).unwrap();
    let read = fresh().load(&reopened(writer), &names).unwrap();
    assert_same(read.output(), module.output());
    assert_same(&read.qkv().separate(48).key, &module.qkv().separate(48).key);
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let mut writer = CheckpointWriter::default();
    writer.tensor("x", Tensor::<AnyBackend, 1>::zeros([3], (&Default::default(), DType::F32))).unwrap();
    let message = writer.save("no/such/folder/x.safetensors").unwrap_err().to_string();
    assert!(message.contains("cannot write no/such/folder/x.safetensors"), "{message}");
}
