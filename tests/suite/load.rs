//! Weights: every element type, every layout, every recorder, and each error once.

use std::path::Path;

use burn::module::Module;
use burn::record::{
    BinFileRecorder, BinGzFileRecorder, DoublePrecisionSettings, FileRecorder, FullPrecisionSettings,
    JsonGzFileRecorder, NamedMpkFileRecorder, NamedMpkGzFileRecorder, PrettyJsonFileRecorder,
};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, NormNames, PackQkv, QkvLayout, QkvNames, ReadTensors, WeightNames,
};
use burn_deepspeed::weight::Orientation;
use burn_deepspeed::{AttentionInit, AttentionMask, DeepSpeedSelfAttention, InferenceBackend, TpPlan, WeightError};
use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};

use crate::attention::{llama, randomised};
use crate::common::{assert_near, golden, on_each_cpu_backend, seeded, values};

pub type Entry = (String, Dtype, Vec<usize>, Vec<u8>);

pub fn save(path: &Path, entries: &[Entry]) {
    let views = entries
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn entry(name: &str, dtype: Dtype, shape: &[usize], values: &[f64]) -> Entry {
    let bytes = values.iter().flat_map(|&value| match dtype {
        Dtype::F64 => value.to_le_bytes().to_vec(),
        Dtype::F32 => (value as f32).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::I64 => (value as i64).to_le_bytes().to_vec(),
        other => panic!("{other:?}"),
    });
    (name.into(), dtype, shape.to_vec(), bytes.collect())
}

fn every_float_type_is_converted<B: Backend>() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let values_in = [0.5, -2.25, 1024.0, -0.0078125, 3.0, -1.5]; // exact in each of the types
    let types = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];
    let entries: Vec<Entry> =
        types.iter().map(|dtype| entry(&format!("{dtype:?}"), *dtype, &[2, 3], &values_in)).collect();
    save(&path, &entries);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for dtype in types {
        let tensor: Tensor<B, 2> =
            checkpoint.tensor(&format!("{dtype:?}"), [2, 3], DType::F32, &Default::default()).unwrap();
        assert_eq!(values(tensor), values_in);
    }
    let report = checkpoint.finish().unwrap();
    assert_eq!((report.loaded.len(), report.converted.len()), (4, 3));
    assert_eq!(report.to_string(), "4 loaded, 0 missing, 0 unexpected, 3 converted");
}

on_each_cpu_backend!(every_float_type_is_converted, every_layout_loads_the_same_module);

/// One model, written in every layout: labelled rows, since no shape tells the layouts apart.
fn every_layout_loads_the_same_module<B: InferenceBackend>() {
    let device = Default::default();
    let config = llama().with_qkv_bias(true);
    let spec = config.resolve(0).unwrap();
    let parts = [(1, 48), (2, 16), (3, 16)].map(|(seed, width)| seeded::<B, 3>([1, width, 48], seed));
    let biases = [(4, 48), (5, 16), (6, 16)].map(|(seed, width)| seeded::<B, 3>([1, width, 1], seed));
    let input = seeded::<B, 3>([1, 4, 48], 7);
    let run = |layout: QkvLayout| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.safetensors");
        let write = |name: &str, shape: &[usize], tensor: Vec<f64>| entry(name, Dtype::F32, shape, &tensor);
        let fused = layout.merge(parts.clone(), 8);
        let bias = layout.merge(biases.clone(), 8);
        save(
            &path,
            &[
                write("qkv.weight", &[80, 48], values(fused)),
                write("qkv.bias", &[80], values(bias)),
                write("out.weight", &[48, 48], values(seeded::<B, 2>([48, 48], 8))),
                write("out.bias", &[48], values(seeded::<B, 1>([48], 9))),
                write("norm.weight", &[48], values(seeded::<B, 1>([48], 10))),
            ],
        );
        let names =
            AttentionNames::new(QkvNames::fused("qkv", layout), WeightNames::of("out"), Orientation::OutputInput)
                .with_norm(NormNames::of("norm"));
        let checkpoint = Checkpoint::open(&path).unwrap();
        let attention = config.init_self_attention::<B>(0, &device).unwrap().load(&checkpoint, &names).unwrap();
        checkpoint.finish().unwrap();
        attention.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap()
    };
    let expected = run(QkvLayout::Concat);
    for layout in [QkvLayout::PerGroup, QkvLayout::PerRank(2)] {
        assert_near(run(layout), expected.clone(), 1e-6);
        // and the way back: what was merged is split into the same parts, for one rank of two as well
        let fused = layout.merge(parts.clone(), 8);
        let split = layout.split(fused.clone(), &spec.shard, 8);
        for (part, expected) in split.into_iter().zip(parts.clone()) {
            assert_near(part, expected, 0.0);
        }
        let shard = TpPlan::new(6, 2, 2).unwrap().shard(1);
        let [query, key, _] = layout.split(fused, &shard, 8);
        assert_near(query, parts[0].clone().narrow(1, 24, 24), 0.0);
        assert_near(key, parts[1].clone().narrow(1, 8, 8), 0.0);
    }
}

#[test]
fn per_head_layout_is_blooms() {
    type B = crate::common::AnyBackend;
    let label = |part: f32| {
        let rows: Vec<f32> = (0..4).map(|row| part * 10.0 + row as f32).collect();
        Tensor::<B, 1>::from_floats(rows.as_slice(), &Default::default()).reshape([1, 4, 1])
    };
    // two heads of two features: q0 k0 v0 q1 k1 v1
    let fused = QkvLayout::PerHead.merge([label(1.0), label(2.0), label(3.0)], 2);
    assert_eq!(values(fused), [10.0, 11.0, 20.0, 21.0, 30.0, 31.0, 12.0, 13.0, 22.0, 23.0, 32.0, 33.0]);
}

mod errors {
    use super::*;
    type B = crate::common::AnyBackend;

    fn case() -> (Checkpoint, AttentionNames) {
        let checkpoint = Checkpoint::open(golden("cases/gpt2/tensors.safetensors")).unwrap();
        let names = AttentionNames::deepspeed(&checkpoint, "weights.", QkvLayout::Concat, Orientation::InputOutput);
        (checkpoint, names)
    }

    fn config() -> burn_deepspeed::DeepSpeedInferenceConfig {
        burn_deepspeed::DeepSpeedInferenceConfig::new(64, 4).with_dtype(burn_deepspeed::DataType::Fp32)
    }

    fn error(
        config: burn_deepspeed::DeepSpeedInferenceConfig,
        names: &AttentionNames,
        checkpoint: &Checkpoint,
    ) -> String {
        let attention = config.init_self_attention::<B>(0, &Default::default()).unwrap();
        attention.load(checkpoint, names).unwrap_err().to_string()
    }

    #[test]
    fn a_missing_tensor_comes_with_the_nearest_name() {
        let (checkpoint, mut names) = case();
        names.output.matrix = "weights.attn_0w".into();
        let message = error(config(), &names, &checkpoint);
        assert_eq!(message, "the checkpoint has no tensor `weights.attn_0w` (nearest: `weights.attn_ow`)");
        assert_eq!(checkpoint.report().missing, ["weights.attn_0w"]);
    }

    #[test]
    fn a_wrong_shape_names_tensor_and_shapes() {
        let (checkpoint, names) = case();
        let message = error(config().with_num_kv(Some(2)), &names, &checkpoint);
        assert!(message.contains("`weights.attn_qkvw` is [64, 192] and the module expects [64, 128]"), "{message}");
    }

    #[test]
    fn heads_that_the_file_does_not_have_allocate_nothing() {
        let (checkpoint, names) = case();
        let mut config = config();
        (config.heads, config.head_dim) = (1_000_000_000_000, Some(16));
        let message = error(config, &names, &checkpoint);
        assert!(message.contains("`weights.attn_qkvw` is [64, 192] and the module expects"), "{message}");
    }

    #[test]
    fn a_bias_without_a_place_is_not_dropped() {
        let (checkpoint, names) = case();
        for (config, name) in [
            (config().with_qkv_bias(false), "`weights.attn_qkvb`, and the module was built without it; set `qkv_bias`"),
            (
                config().with_output_bias(false),
                "`weights.attn_ob`, and the module was built without it; set `output_bias`",
            ),
            (config().with_norm_bias(false), "`weights.norm_b`, and the module was built without it; set `norm_bias`"),
        ] {
            let message = error(config, &names, &checkpoint);
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn a_norm_is_never_left_at_ones() {
        let (checkpoint, mut names) = case();
        names.norm = None;
        let message = error(config(), &names, &checkpoint);
        assert!(message.contains("`AttentionNames::norm` is None"), "{message}");
    }

    #[test]
    fn deepspeeds_norm_is_found_in_the_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block.safetensors");
        let one = |name: &str| entry(name, Dtype::F32, &[1], &[1.0]);
        save(&path, &[one("h.0.norm_w"), one("h.0.attention.attn_qkvw"), one("h.0.attention.attn_qw")]);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let names =
            AttentionNames::deepspeed(&checkpoint, "h.0.attention.", QkvLayout::Concat, Orientation::OutputInput);
        assert_eq!(names.norm.unwrap().gamma, "h.0.norm_w");
        // self-attention of the diffusers module carries both, and fills only the fused one
        assert!(matches!(names.qkv, QkvNames::Fused { .. }));
    }

    #[test]
    fn integers_are_no_weights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.safetensors");
        save(&path, &[entry("ids", Dtype::I64, &[2], &[1.0, 2.0])]);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let error = checkpoint.tensor::<B, 1>("ids", [2], DType::F32, &Default::default()).unwrap_err();
        assert!(error.to_string().contains("elements of type I64; weights are read from F64, F32, F16 or BF16"));
        assert!(matches!(checkpoint.finish(), Err(WeightError::Unused(names)) if names == ["ids"]));
        checkpoint.ignore(|name| name == "ids");
        assert!(checkpoint.finish().is_ok());
    }

    #[test]
    fn files_that_are_not_there_or_not_safetensors_are_named() {
        let message = Checkpoint::open("no/such/file").unwrap_err().to_string();
        assert!(message.contains("no/such/file"), "{message}");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.safetensors"), "not a checkpoint").unwrap();
        let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("model.safetensors"), "{message}");
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let folder = tempfile::tempdir().unwrap();
        save(&folder.path().join("a.safetensors"), &[entry("x", Dtype::F32, &[2], &[1.0, 2.0])]);
        save(&folder.path().join("b.safetensors"), &[entry("y", Dtype::F32, &[1], &[3.0])]);
        let index = r#"{ "weight_map": { "x": "a.safetensors", "y": "b.safetensors" } }"#;
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let read = |name: &str, size| {
            values(checkpoint.tensor::<B, 1>(name, [size], DType::F32, &Default::default()).unwrap())
        };
        assert_eq!((read("x", 2), read("y", 1)), (vec![1.0, 2.0], vec![3.0]));
    }

    #[test]
    #[cfg(feature = "autodiff")]
    fn loaded_modules_do_not_train_unless_asked() {
        type A = burn_autodiff::Autodiff<B>;
        let (checkpoint, names) = case();
        let fresh = config().init_self_attention::<A>(0, &Default::default()).unwrap();
        assert!(fresh.output_bias().unwrap().is_require_grad());
        let loaded = fresh.load(&checkpoint, &names).unwrap();
        assert!(!loaded.output_bias().unwrap().is_require_grad());
        assert!(loaded.with_training(true).output_bias().unwrap().is_require_grad());
    }

    fn survives<R: FileRecorder<B>>(recorder: R, separate: bool) {
        let device = Default::default();
        let folder = tempfile::tempdir().unwrap();
        let config = llama().with_set_empty_params(separate);
        let attention: DeepSpeedSelfAttention<B> = randomised(config.init_self_attention(0, &device).unwrap());
        let path = folder.path().join("attention");
        attention.clone().save_file(&path, &recorder).unwrap();
        let fresh = config.init_self_attention::<B>(0, &device).unwrap();
        let loaded = fresh.load_file(&path, &recorder, &device).unwrap();
        let input = seeded::<B, 3>([1, 4, 48], 1);
        let run = |module: &DeepSpeedSelfAttention<B>| {
            module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap()
        };
        assert_near(run(&loaded), run(&attention), 0.0);
    }

    #[test]
    fn every_recorder_keeps_every_bit() {
        for separate in [false, true] {
            survives(NamedMpkFileRecorder::<FullPrecisionSettings>::new(), separate);
            survives(NamedMpkGzFileRecorder::<FullPrecisionSettings>::new(), separate);
            survives(NamedMpkFileRecorder::<DoublePrecisionSettings>::new(), separate);
            survives(BinFileRecorder::<FullPrecisionSettings>::new(), separate);
            survives(BinGzFileRecorder::<FullPrecisionSettings>::new(), separate);
            survives(JsonGzFileRecorder::<FullPrecisionSettings>::new(), separate);
            survives(PrettyJsonFileRecorder::<FullPrecisionSettings>::new(), separate);
        }
    }

    #[test]
    fn records_in_memory_and_in_half_precision_are_read() {
        use burn::record::{BinBytesRecorder, HalfPrecisionSettings, NamedMpkBytesRecorder, Recorder};
        let device = Default::default();
        let attention: DeepSpeedSelfAttention<B> = randomised(llama().init_self_attention(0, &device).unwrap());
        let input = seeded::<B, 3>([1, 4, 48], 1);
        let run = |module: &DeepSpeedSelfAttention<B>| {
            module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap()
        };
        let fresh = || llama().init_self_attention::<B>(0, &device).unwrap();
        let bin = BinBytesRecorder::<FullPrecisionSettings>::default();
        let bytes = bin.record(attention.clone().into_record(), ()).unwrap();
        assert_near(run(&fresh().load_record(bin.load(bytes, &device).unwrap())), run(&attention), 0.0);
        let named = NamedMpkBytesRecorder::<HalfPrecisionSettings>::default();
        let bytes = named.record(attention.clone().into_record(), ()).unwrap();
        assert_near(run(&fresh().load_record(named.load(bytes, &device).unwrap())), run(&attention), 1e-2);
    }

    /// The output matrix is square here, so its shape does not say how it is stored.
    fn loads_into_either_orientation<R: FileRecorder<B>>(recorder: R) {
        let device = Default::default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attention");
        let of = |transposed| llama().with_transposed_mode(transposed).init_self_attention::<B>(0, &device).unwrap();
        for from in [false, true] {
            let attention: DeepSpeedSelfAttention<B> = randomised(of(from));
            attention.clone().save_file(&path, &recorder).unwrap();
            for to in [false, true] {
                let (fresh, orientation) = (of(to), of(to).output().orientation());
                let loaded = fresh.load_file(&path, &recorder, &device).unwrap();
                assert_eq!(loaded.output().orientation(), orientation);
                assert_near(loaded.output().input_output(), attention.output().input_output(), 0.0);
                let input = seeded::<B, 3>([1, 4, 48], 1);
                let run = |module: &DeepSpeedSelfAttention<B>| {
                    module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap()
                };
                assert_near(run(&loaded), run(&attention), 1e-6);
            }
        }
    }

    #[test]
    fn records_load_into_either_orientation() {
        loads_into_either_orientation(NamedMpkFileRecorder::<FullPrecisionSettings>::new());
        loads_into_either_orientation(BinFileRecorder::<FullPrecisionSettings>::new());
    }

    #[test]
    #[cfg(feature = "autodiff")]
    fn trained_modules_write_their_orientation() {
        use burn::module::AutodiffModule;
        type A = burn_autodiff::Autodiff<B>;
        let device = Default::default();
        let of = |transposed| llama().with_transposed_mode(transposed).init_self_attention::<A>(0, &device).unwrap();
        let trained: DeepSpeedSelfAttention<A> = randomised(of(true));
        let expected = trained.valid().output().input_output();
        let loaded = of(false).valid().load_record(trained.valid().into_record());
        assert_near(loaded.output().input_output(), expected.clone(), 0.0);
        let loaded = of(false).load_record(DeepSpeedSelfAttention::<A>::from_inner(trained.valid()).into_record());
        assert_near(loaded.valid().output().input_output(), expected, 0.0);
    }

    #[test]
    #[cfg(feature = "flex")]
    fn a_record_keeps_the_element_type_of_the_module() {
        use burn::record::{NamedMpkBytesRecorder, Recorder};
        use burn_deepspeed::DataType;
        type F = burn_flex::Flex;
        let device = Default::default();
        let config = llama().with_dtype(DataType::Bf16);
        let attention: DeepSpeedSelfAttention<F> = randomised(config.init_self_attention(0, &device).unwrap());
        let recorder = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
        let bytes = recorder.record(attention.clone().into_record(), ()).unwrap();
        let fresh = config.init_self_attention::<F>(0, &device).unwrap();
        let loaded = fresh.load_record(recorder.load(bytes, &device).unwrap());
        assert_eq!(loaded.output().matrix().dtype(), DType::BF16);
        let input = seeded::<F, 3>([1, 4, 48], 1).cast(DType::BF16);
        let run = |module: &DeepSpeedSelfAttention<F>| {
            module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap()
        };
        assert_near(run(&loaded), run(&attention), 0.0);
    }

    #[test]
    #[should_panic(expected = "`matrix of the record, as [in, out]` has shape [48, 80], expected [48, 144]")]
    fn a_record_of_another_shape_is_refused() {
        let device = Default::default();
        let grouped = llama().init_self_attention::<B>(0, &device).unwrap();
        let plain = llama().with_num_kv(None).init_self_attention::<B>(0, &device).unwrap();
        plain
            .load_record(grouped.into_record())
            .forward_uncached(seeded([1, 2, 48], 1), AttentionMask::none(), None)
            .unwrap();
    }
}
