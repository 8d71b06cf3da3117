//! Matrices of int8: what rounding costs, where scales go, and what is kept.

use std::num::NonZeroUsize;

use burn::module::Module;
use burn::record::{
    BinFileRecorder, DoublePrecisionSettings, FileRecorder, FullPrecisionSettings, HalfPrecisionSettings,
    JsonGzFileRecorder, NamedMpkFileRecorder,
};
use burn::tensor::{DType, Tensor};
use burn_deepspeed::load::{Checkpoint, HuggingFaceConfig};
use burn_deepspeed::weight::{Int8Blocks, Int8Matrix, Orientation, QkvWeight, SeparateQkv, Weight};
use burn_deepspeed::{AttentionMask, DataType, DeepSpeedSelfAttention, InferenceBackend, WeightError};

use crate::attention::{llama, randomised};
use crate::common::{assert_near, on_each_backend, seeded, values};

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
                let linear = |weight| values(<B as InferenceBackend>::linear(input.clone(), weight));
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
    a_weight_that_is_not_finite_is_named,
);

/// A recorder of Burn 0.21 would widen the elements eightfold.
fn records_keep_every_byte<B: InferenceBackend>() {
    fn survives<B: InferenceBackend, R: FileRecorder<B>>(recorder: R, most: Option<u64>) {
        let device = Default::default();
        let folder = tempfile::tempdir().unwrap();
        let fresh = || llama().init_self_attention::<B>(0, &device).unwrap().quantize(Int8Blocks::PerOutput).unwrap();
        let dense: DeepSpeedSelfAttention<B> = randomised(llama().init_self_attention(0, &device).unwrap());
        let int8 = dense.quantize(Int8Blocks::PerOutput).unwrap();
        let path = folder.path().join("attention");
        int8.clone().save_file(&path, &recorder).unwrap();
        let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
        assert!(most.is_none_or(|most| file.metadata().unwrap().len() < most));

        let loaded = fresh().load_file(&path, &recorder, &device).unwrap();
        let elements = |module: &DeepSpeedSelfAttention<B>| module.output().int8().unwrap().elements();
        assert_eq!(elements(&loaded).dtype(), DType::I8);
        assert_eq!(elements(&loaded).into_data(), elements(&int8).into_data());
    }
    // 48 · (144 + 48) elements of one byte, 192 scales of four, a norm, and names.
    let most = Some(48 * 192 + 4 * 192 + 4 * 48 + 1500);
    survives::<B, _>(BinFileRecorder::<FullPrecisionSettings>::new(), most);
    survives::<B, _>(NamedMpkFileRecorder::<FullPrecisionSettings>::new(), most);
    survives::<B, _>(NamedMpkFileRecorder::<HalfPrecisionSettings>::new(), most);
    survives::<B, _>(NamedMpkFileRecorder::<DoublePrecisionSettings>::new(), None);
    survives::<B, _>(JsonGzFileRecorder::<FullPrecisionSettings>::new(), None);
}

/// What a fast path computes is what the reference does.
fn products_of_int8_are_those_of_the_dense_matrix<B: InferenceBackend>() {
    for blocks in blocks() {
        for (inputs, outputs) in [(1, 1), (97, 131), (256, 40)] {
            let weight = Weight::new(seeded::<B, 2>([outputs, inputs], 1), None, Orientation::OutputInput);
            let int8 = weight.quantize(blocks).unwrap();
            for tokens in [1, 3, 8, 9, 33] {
                let input = seeded::<B, 3>([2, tokens, inputs], 2);
                let expected = burn_deepspeed::ops::vector_matmul::reference(input.clone(), &int8);
                assert_near(B::vector_matmul(input, &int8), expected, 1e-4);
            }
        }
    }
}

/// A checkpoint is read into int8 where the module is int8 already, and that is what it becomes behind loading, too.
fn a_checkpoint_is_read_into_int8<B: InferenceBackend>() {
    let device = Default::default();
    for case in ["llama", "gpt2", "gpt_neox"] {
        let folder = crate::common::golden("models").join(case);
        let config = HuggingFaceConfig::from_json_file(folder.join("config.json")).unwrap().with_dtype(DataType::Fp32);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let names = config.attention_names(&checkpoint, 0);
        let fresh = || config.attention_config(0).init_self_attention::<B>(0, &device).unwrap();
        for blocks in blocks() {
            let before = fresh().quantize(blocks).unwrap().load(&checkpoint, &names).unwrap();
            let behind = fresh().load(&checkpoint, &names).unwrap().quantize(blocks).unwrap();
            let [before, behind] = [before, behind].map(|module| module.output().int8().unwrap().clone());
            assert_eq!(before.elements().into_data(), behind.elements().into_data());
            assert_eq!(before.scales().into_data(), behind.scales().into_data());
        }
    }
}

mod on_the_cpu {
    use super::{
        a_checkpoint_is_read_into_int8, products_of_int8_are_those_of_the_dense_matrix, records_keep_every_byte,
    };
    crate::common::on_each_cpu_backend!(
        a_checkpoint_is_read_into_int8,
        products_of_int8_are_those_of_the_dense_matrix,
        records_keep_every_byte
    );
}
