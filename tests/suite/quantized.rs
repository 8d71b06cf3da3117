//! int8 matrices: the error of rounding, the place of scales, and what is kept.

use std::num::NonZeroUsize;

use burn::module::Module;
use burn::record::{
    BinFileRecorder, DoublePrecisionSettings, FileRecorder, FullPrecisionSettings, HalfPrecisionSettings,
    JsonGzFileRecorder, NamedMpkFileRecorder,
};
use burn::tensor::{DType, Tensor};
use burn_deepspeed::load::{Checkpoint, HuggingFaceConfig};
use burn_deepspeed::spec::NormSpec;
use burn_deepspeed::weight::{FusedNorm, Int8Blocks, Int8Matrix, Orientation, QkvWeight, SeparateQkv, Weight};
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, InferenceBackend,
    InputBits, OfBackend, Operations, WeightError,
};

use crate::attention::{llama, randomised};
use crate::common::{assert_near, exact_product, on_each_backend, rounds_to_tf32, seeded, values};

fn blocks() -> [Int8Blocks; 4] {
    let some = |size| NonZeroUsize::new(size).unwrap();
    [Int8Blocks::PerOutput, Int8Blocks::Outputs(some(5)), Int8Blocks::Inputs(some(16)), Int8Blocks::Inputs(some(999))]
}

/// The scale of each weight, `[out, in]`.
fn scales<B: InferenceBackend>(matrix: &Int8Matrix<B>) -> Vec<f64> {
    let ([outputs, inputs], [tall, wide]) = (matrix.shape(), matrix.blocks());
    let (scales, across) = (values(matrix.scales()), inputs.div_ceil(wide));
    (0..outputs * inputs).map(|at| scales[at / inputs / tall * across + at % inputs / wide]).collect()
}

fn no_weight_is_off_by_more_than_half_a_scale<B: InferenceBackend>() {
    for blocks in blocks() {
        for [outputs, inputs] in [[1, 1], [13, 37], [48, 64]] {
            let dense = seeded::<B, 2>([outputs, inputs], 1);
            let int8 = Int8Matrix::quantize(dense.clone(), blocks).unwrap();
            assert_eq!(int8.elements().dtype(), DType::I8);
            assert_eq!(int8.bytes(), outputs * inputs + 4 * int8.scales().dims().iter().product::<usize>());
            let weights = values(int8.dense()).into_iter().zip(values(dense)).zip(scales(&int8));
            for (at, ((found, wanted), scale)) in weights.enumerate() {
                assert!((found - wanted).abs() <= 0.5001 * scale, "{blocks:?}, {at}: {found} for {wanted}");
            }
        }
    }
}

fn a_projection_is_off_by_no_more_than_its_scales_allow<B: InferenceBackend>() {
    for orientation in [Orientation::InputOutput, Orientation::OutputInput] {
        for blocks in blocks() {
            let [inputs, outputs] = [45, 29];
            let shape = orientation.shape(inputs, outputs);
            let dense = Weight::new(seeded::<B, 2>(shape, 1), Some(seeded([outputs], 2)), orientation);
            let int8 = dense.clone().quantize(blocks).unwrap();
            assert_eq!((int8.input_size(), int8.output_size(), int8.has_bias()), (inputs, outputs, true));
            let scales = scales(int8.int8().unwrap());
            for tokens in [1, 2, 7, 12, 40] {
                let input = seeded::<B, 3>([2, tokens, inputs], 3);
                let linear = |weight| values(B::Ops::linear(input.clone(), weight));
                let (found, wanted, rows) = (linear(&int8), linear(&dense), values(input.clone()));
                for (at, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                    let row = &rows[at / outputs * inputs..][..inputs];
                    let own = &scales[at % outputs * inputs..][..inputs];
                    let bound: f64 = row.iter().zip(own).map(|(x, scale)| 0.5 * scale * x.abs()).sum();
                    assert!(
                        (found - wanted).abs() <= bound + 1e-5,
                        "{blocks:?}, {at}: {found} for {wanted}, bound {bound}"
                    );
                }
            }
        }
    }
}

fn a_part_of_the_outputs_keeps_its_scales<B: InferenceBackend>() {
    for blocks in blocks() {
        let whole = Weight::new(seeded::<B, 2>([24, 33], 1), Some(seeded([24], 2)), Orientation::OutputInput);
        let whole = QkvWeight::Fused(whole).quantize(blocks).unwrap();
        let QkvWeight::Fused(fused) = &whole else { unreachable!() };
        let SeparateQkv { query, key, value } = whole.separate(12).into_owned();
        let parts = [query, key, value].map(|part| part.matrix());
        assert_near(Tensor::cat(parts.to_vec(), 0), fused.matrix(), 0.0);
    }
}

fn an_int8_module_is_near_the_dense_one<B: InferenceBackend>() {
    for separate in [false, true] {
        let config = llama().with_set_empty_params(separate);
        let dense: DeepSpeedSelfAttention<B> = randomised(config.init_self_attention(0, &Default::default()).unwrap());
        let int8 = dense.clone().quantize(Int8Blocks::PerOutput).unwrap();
        assert!(int8.output().int8().is_some());
        for tokens in [1, 4, 20] {
            let run = |module: &DeepSpeedSelfAttention<B>| {
                module.forward_uncached(seeded([2, tokens, 48], 1), AttentionMask::none(), None).unwrap()
            };
            let (found, wanted) = (values(run(&int8)), values(run(&dense)));
            let error: f64 = found.iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum();
            let size: f64 = wanted.iter().map(|x| x * x).sum();
            assert!((error / size).sqrt() < 0.02, "{}", (error / size).sqrt());
        }
    }
}

/// A matrix that was f32 multiplies inputs of every float type of the backend, with few rows and many.
fn int8_multiplies_floats_of_every_type<B: InferenceBackend>() {
    let device = Default::default();
    let weight = |seed| Weight::new(seeded([37, 48], seed), Some(seeded([37], 2)), Orientation::OutputInput);
    let separate = SeparateQkv { query: weight(1), key: weight(3), value: weight(4) };
    let spec = NormSpec { rms: false, epsilon: 1e-5 };
    let norm = FusedNorm::new(seeded::<B, 1>([48], 5), Some(seeded([48], 6)), spec);
    let finer = Int8Blocks::Inputs(NonZeroUsize::new(16).unwrap());
    let qkv = QkvWeight::Separate(separate).quantize(Int8Blocks::PerOutput).unwrap();
    let linear = weight(7).quantize(finer).unwrap();
    for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F16, 2e-2), (DType::BF16, 1.5e-1)] {
        if !B::supports_dtype(&device, dtype) {
            continue;
        }
        for tokens in [1, 20] {
            let input = seeded::<B, 3>([2, tokens, 48], 8).cast(dtype);
            let run = |input: Tensor<B, 3>| {
                [B::Ops::qkv_gemm(input.clone(), Some(&norm), &qkv, false).qkv, B::Ops::linear(input, &linear)]
            };
            for (found, wanted) in run(input.clone()).into_iter().zip(run(input.cast(DType::F32))) {
                assert_eq!(found.dtype(), dtype);
                assert_near(found.cast(DType::F32), wanted, tolerance);
            }
        }
    }
}

/// More of them than are dense at a time.
fn many_outputs_are_those_of_the_dense_matrix<B: InferenceBackend>() {
    for blocks in blocks() {
        let weight = Weight::new(seeded::<B, 2>([2100, 20], 1), None, Orientation::OutputInput);
        let int8 = weight.quantize(blocks).unwrap();
        let input = seeded::<B, 2>([12, 20], 2);
        let expected = exact_product(input.clone().unsqueeze(), int8.matrix().transpose());
        assert_near(B::Ops::vector_matmul(input.clone().unsqueeze(), &int8), expected.clone(), 1e-4);
        let reference = burn_deepspeed::ops::vector_matmul::reference(input.unsqueeze(), &int8);
        assert_near(reference, expected, if rounds_to_tf32::<B>() { 1e-2 } else { 1e-4 });
    }
}

fn a_weight_that_is_not_finite_is_named<B: InferenceBackend>() {
    let mut numbers = vec![1.0f32; 12];
    numbers[7] = f32::NAN;
    let matrix = Tensor::<B, 1>::from_floats(numbers.as_slice(), &Default::default()).reshape([3, 4]);
    let error = Weight::new(matrix, None, Orientation::OutputInput).quantize(Int8Blocks::PerOutput).unwrap_err();
    assert!(matches!(error, WeightError::NotFinite { output: 1, input: 3 }), "{error}");
}

on_each_backend!(
    no_weight_is_off_by_more_than_half_a_scale,
    a_projection_is_off_by_no_more_than_its_scales_allow,
    a_part_of_the_outputs_keeps_its_scales,
    an_int8_module_is_near_the_dense_one,
    int8_multiplies_floats_of_every_type,
    many_outputs_are_those_of_the_dense_matrix,
    a_weight_that_is_not_finite_is_named,
    dtype_int8_builds_int8_matrices_and_keeps_the_rest_in_floats,
    the_qkv_projection_alone_may_be_int8,
    fresh_matrices_of_int8_are_distributed_like_dense_ones,
);

fn dtype_int8_builds_int8_matrices_and_keeps_the_rest_in_floats<B: InferenceBackend>() {
    let device = Default::default();
    for (separate, groups) in [(false, None), (true, None), (false, Some(4)), (true, Some(8))] {
        let config = llama().with_dtype(DataType::Int8).with_set_empty_params(separate).with_quantize_groups(groups);
        let attention = config.init_self_attention::<B>(0, &device).unwrap();
        let float = DataType::Int8.of_backend::<B>(&device).unwrap();
        let own = attention.qkv().separate(48);
        for weight in [&own.query, &own.key, &own.value, attention.output()] {
            assert!(weight.int8().is_some());
            assert_eq!((weight.dtype(), weight.bias().unwrap().dtype()), (float, float));
        }
        let tall = groups.map_or(1, |groups| 48 / groups);
        assert_eq!(attention.output().int8().unwrap().blocks(), [tall, 48]);
        assert_eq!(attention.norm().unwrap().gamma().dtype(), float);

        let dense = Weight::new(attention.output().matrix(), attention.output().bias(), Orientation::OutputInput);
        let mut cache = config.init_cache::<B>(2, &device).unwrap();
        for tokens in [5, 1] {
            let input = seeded::<B, 3>([2, tokens, 48], 1).cast(float);
            let linear = |weight| B::Ops::linear(input.clone(), weight);
            assert_near(linear(attention.output()), linear(&dense), if float == DType::F32 { 1e-5 } else { 2e-2 });
            let mut step = cache.step(tokens).unwrap();
            let output = attention.forward(input, AttentionMask::none(), step.layer(0)).unwrap();
            assert!(values(output).iter().all(|value| value.is_finite()));
            step.commit();
        }
    }
    let config = DeepSpeedInferenceConfig::new(48, 6).with_dtype(DataType::Int8);
    let diffusers = config.init_diffusers_cross::<B>(20, 0, &device).unwrap();
    assert_eq!(diffusers.qkv().separate(48).key.int8().unwrap().shape(), [48, 20]);
    let bloom = config.with_bigscience_bloom(true).init_bloom::<B>(0, &device).unwrap();
    assert!(matches!(bloom.qkv(), QkvWeight::Fused(weight) if weight.int8().is_some()));
}

fn the_qkv_projection_alone_may_be_int8<B: InferenceBackend>() {
    let device = Default::default();
    for separate in [false, true] {
        let config = llama().with_set_empty_params(separate).with_enable_qkv_quantization(true);
        let attention = config.init_self_attention::<B>(0, &device).unwrap();
        assert!(attention.qkv().separate(48).value.int8().is_some());
        assert!(attention.output().int8().is_none());
        attention.forward_uncached(seeded([2, 3, 48], 1), AttentionMask::none(), None).unwrap();
    }
}

fn fresh_matrices_of_int8_are_distributed_like_dense_ones<B: InferenceBackend>() {
    let config = DeepSpeedInferenceConfig::new(256, 4).with_dtype(DataType::Int8);
    let attention = config.init_self_attention::<B>(0, &Default::default()).unwrap();
    let weights = values(attention.output().matrix());
    let deviation = (weights.iter().map(|weight| weight * weight).sum::<f64>() / weights.len() as f64).sqrt();
    assert!((deviation - 0.02).abs() < 1e-3, "{deviation}");
    assert_eq!(values(attention.output().matrix()), weights);
}

/// Half a step for each input: the largest magnitude of a token over 8191, or over 127.
fn a_rounded_input_costs_no_more_than_half_a_step<B: InferenceBackend>() {
    for (blocks, bits) in
        blocks().into_iter().flat_map(|blocks| [InputBits::Fourteen, InputBits::Eight].map(|bits| (blocks, bits)))
    {
        let [inputs, outputs] = [97, 131];
        let weight =
            Weight::new(seeded::<B, 2>([outputs, inputs], 1), Some(seeded([outputs], 2)), Orientation::OutputInput);
        let exact = weight.quantize(blocks).unwrap();
        let rounded = exact.clone().with_rounded_input(bits);
        assert_eq!(rounded.outputs(1, 2).input_rounding().bits(), Some(bits));
        let weights = values(exact.matrix());
        for tokens in [1, 2, 9, 40] {
            let input = seeded::<B, 3>([2, tokens, inputs], 3);
            let linear = |weight| values(B::Ops::linear(input.clone(), weight));
            let (found, wanted, rows) = (linear(&rounded), linear(&exact), values(input.clone()));
            for (at, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                let row = &rows[at / outputs * inputs..][..inputs];
                let step = row.iter().fold(0.0f64, |largest, x| largest.max(x.abs())) / f64::from(bits.largest());
                let own = weights[at % outputs * inputs..][..inputs].iter().map(|weight| weight.abs()).sum::<f64>();
                assert!((found - wanted).abs() <= 0.5 * step * own + 1e-4, "{found} for {wanted}");
            }
        }
    }
}

fn rounding_is_kept_where_weights_are_loaded<B: InferenceBackend>() {
    let device = Default::default();
    let folder = crate::common::golden("models/llama");
    let config = HuggingFaceConfig::from_json_file(folder.join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let names = config.attention_names(&checkpoint, 0);
    let config = config.attention_config(0).with_dtype(DataType::Int8).with_round_activations(true.into());
    let module = config.init_self_attention::<B>(0, &device).unwrap().load(&checkpoint, &names).unwrap();
    assert!(module.output().input_rounding().bits().is_some());
    assert!(matches!(module.qkv(), QkvWeight::Fused(weight) if weight.input_rounding().bits().is_some()));
    let exact = module.clone().with_rounded_activations(false);
    let input = || seeded::<B, 3>([2, 7, config.hidden_size], 1);
    let run =
        |module: &DeepSpeedSelfAttention<B>| module.forward_uncached(input(), AttentionMask::none(), None).unwrap();
    assert_near(run(&module), run(&exact), 1e-2);
}

/// A recorder of Burn 0.21 would widen the elements eightfold.
fn records_keep_every_byte<B: InferenceBackend>() {
    fn survives<B: InferenceBackend, R: FileRecorder<B>>(recorder: R, most: Option<u64>) {
        let device = Default::default();
        let folder = tempfile::tempdir().unwrap();
        let fresh = || llama().with_dtype(DataType::Int8).init_self_attention::<B>(0, &device).unwrap();
        let dense: DeepSpeedSelfAttention<B> = randomised(llama().init_self_attention(0, &device).unwrap());
        let path = folder.path().join("attention");
        for blocks in blocks() {
            let int8 = dense.clone().quantize(blocks).unwrap();
            int8.clone().save_file(&path, &recorder).unwrap();
            let loaded = fresh().load_file(&path, &recorder, &device).unwrap();
            let matrix = |module: &DeepSpeedSelfAttention<B>| module.output().int8().unwrap().clone();
            assert_eq!(matrix(&loaded).elements().dtype(), DType::I8);
            assert_eq!(matrix(&loaded).elements().into_data(), matrix(&int8).elements().into_data());
            assert_eq!(matrix(&loaded).scales().dims(), matrix(&int8).scales().dims());
            assert_eq!(matrix(&loaded).blocks(), matrix(&int8).blocks());
        }
        dense.quantize(Int8Blocks::PerOutput).unwrap().save_file(&path, &recorder).unwrap();
        let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
        assert!(most.is_none_or(|most| file.metadata().unwrap().len() < most));
    }
    // 48 · (144 + 48) elements of one byte, 192 scales of four, a norm, and names.
    let most = Some(48 * 192 + 4 * 192 + 4 * 48 + 1500);
    survives::<B, _>(BinFileRecorder::<FullPrecisionSettings>::new(), most);
    survives::<B, _>(NamedMpkFileRecorder::<FullPrecisionSettings>::new(), most);
    survives::<B, _>(NamedMpkFileRecorder::<HalfPrecisionSettings>::new(), most);
    survives::<B, _>(NamedMpkFileRecorder::<DoublePrecisionSettings>::new(), None);
    survives::<B, _>(JsonGzFileRecorder::<FullPrecisionSettings>::new(), None);
}

/// Fast paths agree with the reference.
fn products_of_int8_are_those_of_the_dense_matrix<B: InferenceBackend>() {
    for blocks in blocks() {
        for (inputs, outputs) in [(1, 1), (97, 131), (256, 40)] {
            let weight = Weight::new(seeded::<B, 2>([outputs, inputs], 1), None, Orientation::OutputInput);
            let int8 = weight.quantize(blocks).unwrap();
            for tokens in [1, 3, 8, 9, 33] {
                let input = seeded::<B, 3>([2, tokens, inputs], 2);
                let expected = burn_deepspeed::ops::vector_matmul::reference(input.clone(), &int8);
                assert_near(B::Ops::vector_matmul(input, &int8), expected, 1e-4);
            }
        }
    }
}

/// Loading a checkpoint into an int8 module gives the same as quantising after loading.
fn a_checkpoint_is_read_into_int8<B: InferenceBackend>() {
    let device = Default::default();
    for case in ["llama", "gpt2", "gpt_neox"] {
        let folder = crate::common::golden("models").join(case);
        let config = HuggingFaceConfig::from_json_file(folder.join("config.json")).unwrap();
        let config = config.with_attention(|attention| attention.with_dtype(DataType::Fp32));
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let names = config.attention_names(&checkpoint, 0);
        let fresh = || config.attention_config(0).init_self_attention::<B>(0, &device).unwrap();
        for blocks in blocks() {
            let before = fresh().quantize(blocks).unwrap().load(&checkpoint, &names).unwrap();
            let after = fresh().load(&checkpoint, &names).unwrap().quantize(blocks).unwrap();
            let [before, after] = [before, after].map(|module| module.output().int8().unwrap().clone());
            assert_eq!(before.elements().into_data(), after.elements().into_data());
            assert_eq!(before.scales().into_data(), after.scales().into_data());
        }
    }
}

mod on_the_cpu {
    use super::{
        a_checkpoint_is_read_into_int8, a_rounded_input_costs_no_more_than_half_a_step,
        products_of_int8_are_those_of_the_dense_matrix, records_keep_every_byte,
        rounding_is_kept_where_weights_are_loaded,
    };
    crate::common::on_each_cpu_backend!(
        a_checkpoint_is_read_into_int8,
        a_rounded_input_costs_no_more_than_half_a_step,
        rounding_is_kept_where_weights_are_loaded,
        products_of_int8_are_those_of_the_dense_matrix,
        records_keep_every_byte
    );
}

#[test]
#[cfg(feature = "ndarray")]
fn a_layer_of_int8_is_a_quarter_of_f32() {
    type B = burn_ndarray::NdArray;
    let config = DeepSpeedInferenceConfig::new(4096, 32).with_dtype(DataType::Int8);
    let attention = config.init_self_attention::<B>(0, &Default::default()).unwrap();
    let QkvWeight::Fused(qkv) = attention.qkv() else { panic!() };
    let bytes = qkv.int8().unwrap().bytes() + attention.output().int8().unwrap().bytes();
    let dense = 4 * 4096 * (3 * 4096 + 4096);
    assert_eq!(bytes, dense / 4 + 4 * (3 * 4096 + 4096));
    assert!(bytes as f64 <= 0.2503 * dense as f64);
}
