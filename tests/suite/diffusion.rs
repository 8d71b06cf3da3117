//! The joint attention of diffusion transformers, and the attention of VAEs.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::load::{AttentionNames, Checkpoint, CheckpointWriter, JointNames};
use burn_deepspeed::ops::{NormaliseAndRotate, normalise_and_rotate};
use burn_deepspeed::position::rotary::RotaryTable;
use burn_deepspeed::weight::{Int8Blocks, QueryKeyNorm};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, ConfigError, DataType, DeepSpeedInferenceConfig,
    DeepSpeedJointAttention, InferenceBackend, JointStreams, Operations, PositionEncoding, Positions, QkNorm,
    QkNormKind, QkNormWeights, RotaryLayout, RotarySections, SectionOrder, VaeBlock,
};

use crate::attention::randomised;
use crate::checkpoint_writer::assert_same;
use crate::common::{AnyBackend, assert_near, on_each_backend, seeded, values};
use crate::qk_norm::norms;

/// 4 heads of 12 features, of which 2, 4 and 6 rotate by the three positions of a token.
fn flux() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(48, 4)
        .with_dtype(DataType::Fp32)
        .with_qk_norm(Some(QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, 1e-6)))
        .with_rotary(RotaryLayout::Interleaved, 12)
        .with_rope_sections(Some(RotarySections { pairs: [1, 2, 3], order: SectionOrder::Separate }))
}

/// Three positions of each token, the same for every row.
fn positions(tokens: usize) -> Positions {
    let axis = |step: usize| (0..tokens).map(|token| (token * step % 7) as i64).collect();
    Positions::from_axes([1, 2, 3].map(axis), [1, tokens]).unwrap()
}

fn joint<B: Backend>(config: &DeepSpeedInferenceConfig, streams: JointStreams) -> DeepSpeedJointAttention<B> {
    randomised(config.init_joint(streams, 0, &Default::default()).unwrap())
}

fn reopened(writer: CheckpointWriter) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.safetensors");
    writer.save(&path).unwrap();
    Checkpoint::open(&path).unwrap()
}

/// With the same weights for both, two streams are one stream of all tokens, in either order.
fn two_streams_are_one_sequence<B: InferenceBackend>() {
    let one = joint::<B>(&flux(), JointStreams::single());
    let names = JointNames::diffusers("attn");
    let mut writer = CheckpointWriter::default();
    one.write(&mut writer, &names).unwrap();
    let checkpoint = reopened(writer);
    let shared = JointNames::new(names.image.clone(), names.image);
    let (image, text) = (seeded::<B, 3>([2, 9, 48], 1), seeded::<B, 3>([2, 4, 48], 2));
    for streams in [JointStreams::image_first(48), JointStreams::text_first(48)] {
        let two = flux().init_joint::<B>(streams, 0, &Default::default()).unwrap().load(&checkpoint, &shared).unwrap();
        let table = one.rotary_table(&positions(13));
        let parts =
            if streams.text_first { vec![text.clone(), image.clone()] } else { vec![image.clone(), text.clone()] };
        let expected = one.forward(Tensor::cat(parts, 1), None, table.as_ref(), AttentionMask::none()).unwrap().image;
        let output = two.forward(image.clone(), Some(text.clone()), table.as_ref(), AttentionMask::none()).unwrap();
        let [image_at, text_at] = if streams.text_first { [4, 0] } else { [0, 9] };
        assert_near(output.image, expected.clone().narrow(1, image_at, 9), 2e-5);
        assert_near(output.text.unwrap(), expected.narrow(1, text_at, 4), 2e-5);
    }
}

/// Kernels do what the reference does, with every norm, both layouts, and tables of one row and of several. A layout for each norm: each
/// pair is another kernel, which a device on the CPU takes seconds to compile.
fn heads_are_normalised_and_rotated_as_by_the_reference<B: InferenceBackend>() {
    let device = Default::default();
    let layouts = [Some(RotaryLayout::Half), Some(RotaryLayout::Interleaved), None];
    let pairs =
        norms().into_iter().filter(|norm| !norm.values).map(Some).chain([None, None]).zip(layouts.into_iter().cycle());
    for (norm, layout) in pairs {
        let config = flux().with_num_kv(Some(2)).with_qk_norm(norm).with_rope_sections(None);
        let config = match layout {
            Some(layout) => config.with_rotary(layout, 8),
            None => config.with_rotary_dim(None),
        };
        let spec = config.resolve(0).unwrap();
        let weights = QueryKeyNorm::<B>::init(&spec, &device).map(|norm| {
            let (query, key) = norm.shapes();
            QueryKeyNorm::new(seeded(query, 3), key.map(|key| seeded(key, 4)))
        });
        for starts in [vec![5], vec![5, 0, 2]] {
            let table = || match &spec.position {
                PositionEncoding::Rotary(rotary) => {
                    Some(RotaryTable::new(rotary, &Positions::sequential(&starts, 5), &device))
                }
                _ => None,
            };
            let qkv = seeded::<B, 3>([3, 5, 96], 5);
            let arguments =
                || NormaliseAndRotate { qkv: qkv.clone(), norm: weights.as_ref(), table: table(), spec: &spec };
            let actual = B::Ops::normalise_and_rotate(arguments());
            for (actual, expected) in actual.into_iter().zip(normalise_and_rotate::reference(arguments())) {
                assert_near(actual, expected, 2e-5);
            }
        }
    }
}

fn streams_without_tokens_change_nothing<B: InferenceBackend>() {
    let module = joint::<B>(&flux(), JointStreams::text_first(36));
    let run = |patches: usize, words: usize| {
        let table = module.rotary_table(&positions(patches + words));
        let (image, text) = (seeded([2, patches, 48], 1), seeded([2, words, 36], 2));
        let output = module.forward(image, Some(text), table.as_ref(), AttentionMask::none()).unwrap();
        let text = output.text.unwrap();
        assert_eq!((output.image.dims(), text.dims()), ([2, patches, 48], [2, words, 48]));
        values(output.image).into_iter().chain(values(text)).all(f64::is_finite)
    };
    assert!(run(6, 0) && run(0, 3) && run(6, 3));
    let vae = flux().with_qk_norm(None).with_rotary_dim(None).with_rope_sections(None);
    let vae = vae.init_vae::<B>(VaeBlock::default().with_groups(6), 0, &Default::default()).unwrap();
    assert_eq!(vae.forward(seeded([0, 48, 2, 3], 1)).unwrap().dims(), [0, 48, 2, 3]);
}

on_each_backend!(two_streams_are_one_sequence, heads_are_normalised_and_rotated_as_by_the_reference);

/// Matrices and norms come back, dense and in int8.
fn what_is_written_is_read<B: InferenceBackend>() {
    let (device, names) = (Default::default(), JointNames::diffusers("attn"));
    for dtype in [DataType::Fp32, DataType::Int8] {
        let config = flux().with_dtype(dtype);
        let streams = JointStreams::text_first(36).with_text_output(false);
        let module = joint::<B>(&config, streams);
        let mut writer = CheckpointWriter::default();
        module.write(&mut writer, &names).unwrap();
        let checkpoint = reopened(writer);
        let read = config.init_joint::<B>(streams, 0, &device).unwrap().load(&checkpoint, &names).unwrap();
        checkpoint.finish().unwrap();
        let (read_text, text) = (read.text().unwrap(), module.text().unwrap());
        assert_same(read.image().output().unwrap(), module.image().output().unwrap());
        assert_same(read_text.qkv().first(), text.qkv().first());
        let keys = |norm: Option<&QueryKeyNorm<B>>| values(norm.unwrap().key().unwrap());
        assert_eq!(keys(read_text.query_key_norm()), keys(text.query_key_norm()));
        assert!(text.output().is_none());

        let config = DeepSpeedInferenceConfig::new(48, 1).with_dtype(dtype);
        let fresh = || config.init_vae::<B>(VaeBlock::default().with_groups(6), 0, &device).unwrap();
        let (module, mut writer) = (randomised(fresh()), CheckpointWriter::default());
        module.write(&mut writer, &AttentionNames::diffusers("attn").with_norm(names_of_norm())).unwrap();
        let checkpoint = reopened(writer);
        let read = fresh().load(&checkpoint, &AttentionNames::vae(&checkpoint, "attn")).unwrap();
        checkpoint.finish().unwrap();
        assert_same(read.output(), module.output());
        assert_eq!(values(read.norm().gamma()), values(module.norm().gamma()));
    }
}

fn names_of_norm() -> burn_deepspeed::load::NormNames {
    burn_deepspeed::load::NormNames::of("attn.group_norm")
}

/// int8 weights are near the floats that they were.
fn int8_streams_are_near<B: InferenceBackend>() {
    let module = joint::<B>(&flux(), JointStreams::image_first(36));
    let table = module.rotary_table(&positions(13));
    let run = |module: &DeepSpeedJointAttention<B>| {
        let (image, text) = (seeded([1, 9, 48], 1), seeded([1, 4, 36], 2));
        module.forward(image, Some(text), table.as_ref(), AttentionMask::none()).unwrap()
    };
    let (dense, int8) = (run(&module), run(&module.clone().quantize(Int8Blocks::PerOutput).unwrap()));
    let largest = values(dense.image.clone()).into_iter().fold(0.0, |max: f64, value| max.max(value.abs()));
    assert_near(int8.image, dense.image, 0.1 * largest);
    assert_near(int8.text.unwrap(), dense.text.unwrap(), 0.1 * largest);
}

mod cpu {
    use super::{int8_streams_are_near, streams_without_tokens_change_nothing, what_is_written_is_read};
    use crate::common::on_each_cpu_backend;
    on_each_cpu_backend!(what_is_written_is_read, int8_streams_are_near, streams_without_tokens_change_nothing);
}

#[test]
fn settings_that_the_modules_lack_are_errors() {
    type B = AnyBackend;
    let device = Default::default();
    let of_joint = |config: DeepSpeedInferenceConfig, streams| {
        config.init_joint::<B>(streams, 0, &device).map(|_| ()).unwrap_err().to_string()
    };
    let single = JointStreams::single;
    let all = QkNorm::new(QkNormKind::RmsOfAllHeads, QkNormWeights::PerHead, 1e-6);
    assert!(of_joint(flux().with_qk_norm(Some(all)), single()).contains("it has no norm over all heads"));
    assert!(of_joint(flux().with_sinks(true), single()).contains("it has no sinks"));
    assert!(of_joint(flux().with_defer_output_bias(true), single()).contains("set `defer_output_bias` to false"));
    assert!(of_joint(flux(), JointStreams::image_first(0)).contains("`text` is 0"));
    let linear = burn_deepspeed::position::rotary::RopeScaling::Linear { factor: 2.0 };
    assert!(of_joint(flux().with_rope_scaling(linear), single()).contains("`rope_sections.order` contradicts"));

    let config = DeepSpeedInferenceConfig::new(48, 1).with_dtype(DataType::Fp32);
    let of_vae = |block: VaeBlock| config.init_vae::<B>(block, 0, &device).map(|_| ()).unwrap_err();
    assert_eq!(of_vae(VaeBlock::default()), ConfigError::ChannelGroups { groups: 32, channels: 48 });
    let block = VaeBlock::default().with_groups(6);
    assert!(matches!(of_vae(block.with_rescale_output_factor(0.0)), ConfigError::OutOfRange { .. }));
    assert!(matches!(of_vae(block.with_epsilon(-1.0)), ConfigError::OutOfRange { .. }));
    assert!(flux().init_vae::<B>(block, 0, &device).unwrap_err().to_string().contains("no position encoding"));
}

#[test]
fn one_of_several_ranks_needs_a_communicator() {
    let config = flux().with_mp_size(2).with_local_rank(Some(1));
    let module = joint::<AnyBackend>(&config, JointStreams::single());
    let table = module.rotary_table(&positions(3));
    let error = module.forward(seeded([1, 3, 48], 1), None, table.as_ref(), AttentionMask::none()).unwrap_err();
    assert_eq!(error, AttentionError::NoCommunicator { rank: 1, ranks: 2 });
}
