//! Matrices of blocks: products, parts, records, and what is kept of a file.

use std::fs;

use burn::module::Module;
use burn::record::{BinFileRecorder, FileRecorder, FullPrecisionSettings, HalfPrecisionSettings, NamedMpkFileRecorder};
use burn::tensor::{DType, Tensor};
use burn_deepspeed::config::MatrixFormat;
use burn_deepspeed::load::{Checkpoint, ParameterReader, WeightNames, WeightPart};
use burn_deepspeed::ops::{BlockProblem, Plan};
use burn_deepspeed::weight::{BlockFormat, BlockMatrix, Orientation, QkvWeight, SeparateQkv, Weight};
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, ElementType,
    InferenceBackend, InputBits, Operations, WeightError,
};
use safetensors::tensor::{Dtype, TensorView};

use crate::common::{assert_near, exact_product, on_each_backend, seeded, values};

const OUTPUTS: usize = 29;
const INPUTS: usize = 96;

fn dense<B: InferenceBackend>(seed: u64) -> Weight<B> {
    Weight::new(seeded([OUTPUTS, INPUTS], seed), Some(seeded([OUTPUTS], seed + 1)), Orientation::OutputInput)
}

fn on_cpu<B: InferenceBackend>() -> bool {
    std::any::type_name::<B::Ops>().ends_with("::CpuOps")
}

/// The path that a product is to take: on CubeCL, up to eight rows read most formats as they are stored.
fn path<B: InferenceBackend>(problem: &BlockProblem) -> Plan {
    use BlockFormat::{BF16, F16, F32, IQ4_NL};
    let dense = problem.rows > 8 || matches!(problem.format, F32 | F16 | BF16 | IQ4_NL);
    Plan::Kernel(match on_cpu::<B>() {
        true => "cpu::product",
        false if dense => "cube::dequantise",
        false => "cube::gemv",
    })
}

/// The CPU rounds one row and a few to 16 bits, and more are not rounded.
fn products_are_those_of_the_dense_matrix<B: InferenceBackend>() {
    for format in BlockFormat::writable() {
        let weight = dense::<B>(1).quantize_blocks(format).unwrap();
        let found = weight.blocks().map(|blocks| (blocks.shape(), blocks.formats().bytes()));
        assert_eq!(found, Some(([OUTPUTS, INPUTS], OUTPUTS * format.row_bytes(INPUTS).unwrap())));
        // A device on the CPU takes seconds to compile the kernels of each number of rows.
        for tokens in [1, 2, 4, 8, 9, 40].into_iter().filter(|tokens| on_cpu::<B>() || [4, 40].contains(tokens)) {
            let problem = BlockProblem { dtype: ElementType::F32, rows: 2 * tokens, format };
            assert_eq!(B::Ops::plan_block_product(&problem, &Default::default()), path::<B>(&problem));
            let input = seeded::<B, 3>([2, tokens, INPUTS], 3);
            let expected = exact_product(input.clone(), weight.input_output());
            assert_near(B::Ops::vector_matmul(input.clone(), &weight), expected.clone(), 1e-3);
            let bias = weight.bias().unwrap().unsqueeze();
            assert_near(B::Ops::linear(input, &weight), expected + bias, 1e-3);
        }
        let none = Tensor::<B, 3>::zeros([0, 3, INPUTS], &Default::default());
        assert_eq!(B::Ops::linear(none, &weight).dims(), [0, 3, OUTPUTS]);
    }
}

/// On the CPU, with a step for each 32 features: their largest magnitude over 127. Nothing is rounded elsewhere, and floats nowhere.
fn an_input_of_8_bits_costs_no_more_than_half_a_step<B: InferenceBackend>() {
    for format in [BlockFormat::Q4_0, BlockFormat::Q8_0, BlockFormat::Q5_1, BlockFormat::F16] {
        let exact = dense::<B>(1).quantize_blocks(format).unwrap();
        let rounded = exact.clone().with_rounded_input(InputBits::Eight);
        let weights = values(exact.matrix());
        for tokens in [1, 7, 20].into_iter().filter(|tokens| on_cpu::<B>() || *tokens == 20) {
            let input = seeded::<B, 3>([2, tokens, INPUTS], 3);
            let linear = |weight| values(B::Ops::linear(input.clone(), weight));
            let (found, wanted, rows) = (linear(&rounded), linear(&exact), values(input.clone()));
            assert_eq!(found != wanted, on_cpu::<B>() && format != BlockFormat::F16, "{format}, {tokens} tokens");
            for (at, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                let row = rows[at / OUTPUTS * INPUTS..][..INPUTS].chunks(32);
                let own = weights[at % OUTPUTS * INPUTS..][..INPUTS].chunks(32);
                let error = row.zip(own).map(|(row, own)| {
                    let largest = row.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
                    largest / 254.0 * own.iter().map(|weight| weight.abs()).sum::<f64>()
                });
                assert!((found - wanted).abs() <= error.sum::<f64>() + 1e-3, "{format}: {found} for {wanted}");
            }
        }
    }
}

fn a_layer_with_inputs_of_8_bits_is_close<B: InferenceBackend>() {
    let config = DeepSpeedInferenceConfig::new(128, 4).with_matrix_format(MatrixFormat::Blocks(BlockFormat::Q4_0));
    let exact = config.init_self_attention::<B>(0, &Default::default()).unwrap();
    let run = |module: &DeepSpeedSelfAttention<B>| {
        module.forward_uncached(seeded([2, 9, 128], 1), AttentionMask::none(), None).unwrap()
    };
    // Fresh weights are drawn when they are first read.
    let expected = run(&exact);
    let rounded = exact.with_rounded_activations(InputBits::Eight);
    assert_eq!(values(run(&rounded)) != values(expected.clone()), on_cpu::<B>());
    assert_near(run(&rounded), expected, 2e-2);
}

/// A fused projection whose parts have several formats is the concatenation of separate ones.
fn separate_projections_of_several_formats_are_one_product<B: InferenceBackend>() {
    let part = |seed, format| dense::<B>(seed).quantize_blocks(format).unwrap();
    let [query, key, value] =
        [(1, BlockFormat::Q4_0), (3, BlockFormat::Q8_0), (5, BlockFormat::BF16)].map(|(a, b)| part(a, b));
    let input = seeded::<B, 3>([1, 3, INPUTS], 7);
    let each = [&query, &key, &value].map(|weight| B::Ops::linear(input.clone(), weight));
    let qkv = QkvWeight::Separate(SeparateQkv { query, key, value });
    let output = B::Ops::qkv_gemm(input, None, &qkv, false).qkv;
    assert_near(output, Tensor::cat(each.to_vec(), 2), 0.0);
}

fn parts_and_rows_are_those_of_the_dense_matrix<B: InferenceBackend>() {
    for format in [BlockFormat::Q5_1, BlockFormat::MXFP4, BlockFormat::F16] {
        let weight = dense::<B>(1).quantize_blocks(format).unwrap();
        let part = weight.outputs(3, 11);
        assert_eq!(values(part.matrix()), values(weight.matrix().narrow(0, 3, 11)));
        assert_eq!(values(part.bias().unwrap()), values(weight.bias().unwrap().narrow(0, 3, 11)));
        let rows = weight.weights_of(&[28, 0, 28]);
        let expected = [28, 0, 28].map(|row| weight.matrix().narrow(0, row, 1)).to_vec();
        assert_eq!(values(rows), values(Tensor::cat(expected, 0)));
        assert_eq!(weight.weights_of(&[]).dims(), [0, INPUTS]);
    }
    let dense = dense::<B>(1);
    assert_eq!(values(dense.weights_of(&[4])), values(dense.matrix().narrow(0, 4, 1)));
}

/// The record says which formats its rows have. Without a bias, and in an `Option`, as well.
fn records_keep_the_bytes<B: InferenceBackend>() {
    fn check<B: InferenceBackend, R: FileRecorder<B>>(recorder: &R) {
        let folder = tempfile::tempdir().unwrap();
        let weight = dense::<B>(1).quantize_blocks(BlockFormat::Q5_0).unwrap();
        weight.clone().save_file(folder.path().join("weight"), recorder).unwrap();
        let device = Default::default();
        let fresh = Weight::<B>::init_blocks(INPUTS, OUTPUTS, true, None, DType::F32, &device).unwrap();
        let read = fresh.load_file(folder.path().join("weight"), recorder, &device).unwrap();
        let alone =
            Weight::new(weight.matrix(), None, Orientation::OutputInput).quantize_blocks(BlockFormat::Q4_0).unwrap();
        Some(alone.clone()).save_file(folder.path().join("alone"), recorder).unwrap();
        let fresh = Weight::<B>::init_blocks(INPUTS, OUTPUTS, false, None, DType::F32, &device).unwrap();
        let found = Some(fresh).load_file(folder.path().join("alone"), recorder, &device).unwrap().unwrap();
        assert_eq!(values(found.matrix()), values(alone.matrix()));
        let bytes = |weight: &Weight<B>| weight.blocks().unwrap().bytes().into_data();
        assert_eq!(bytes(&read), bytes(&weight));
        assert_eq!(values(read.matrix()), values(weight.matrix()));
    }
    check::<B, _>(&NamedMpkFileRecorder::<FullPrecisionSettings>::default());
    check::<B, _>(&BinFileRecorder::<HalfPrecisionSettings>::default());
}

/// Writes a matrix in this type, as it is and transposed, and its bias in f32.
fn file(folder: &std::path::Path, matrix: &[f32], bias: &[f32], dtype: Dtype) -> std::path::PathBuf {
    let bytes = |value: &f32| match dtype {
        Dtype::F16 => half::f16::from_f32(*value).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(*value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    let [own, bias_bytes]: [Vec<u8>; 2] =
        [matrix.iter().flat_map(bytes).collect(), bias.iter().flat_map(|value| value.to_le_bytes()).collect()];
    let across = (0..INPUTS * OUTPUTS).map(|at| matrix[at % OUTPUTS * INPUTS + at / OUTPUTS]);
    let across: Vec<u8> = across.flat_map(|value| bytes(&value)).collect();
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    let tensors = [
        ("w.weight", view(dtype, &[OUTPUTS, INPUTS], &own)),
        ("t.weight", view(dtype, &[INPUTS, OUTPUTS], &across)),
        ("w.bias", view(Dtype::F32, &[OUTPUTS], &bias_bytes)),
        ("t.bias", view(Dtype::F32, &[OUTPUTS], &bias_bytes)),
    ];
    let path = folder.join("model.safetensors");
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    path
}

/// Floats stay in their type, or are rounded to what is wanted, in both orientations and in parts.
fn floats_of_a_file_stay_or_are_rounded<B: InferenceBackend>() {
    let device = Default::default();
    let (matrix, bias) = (values(seeded::<B, 2>([OUTPUTS, INPUTS], 1)), values(seeded::<B, 1>([OUTPUTS], 2)));
    let [matrix, bias]: [Vec<f32>; 2] = [matrix, bias].map(|all| all.into_iter().map(|value| value as f32).collect());
    for (dtype, own) in
        [(Dtype::F32, BlockFormat::F32), (Dtype::F16, BlockFormat::F16), (Dtype::BF16, BlockFormat::BF16)]
    {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(file(folder.path(), &matrix, &bias, dtype)).unwrap();
        let reader = ParameterReader::<B>::new(&checkpoint, DType::F32, &device);
        for (name, orientation) in [("w", Orientation::OutputInput), ("t", Orientation::InputOutput)] {
            for wanted in [None, Some(BlockFormat::Q8_0), Some(BlockFormat::F16)] {
                let parts = [
                    (WeightPart::Whole, [OUTPUTS, INPUTS]),
                    (WeightPart::Outputs { own: 5..17, all: OUTPUTS }, [12, INPUTS]),
                    (WeightPart::Inputs { own: 32..96, all: INPUTS }, [OUTPUTS, 64]),
                ];
                for (part, [outputs, inputs]) in parts {
                    let fresh = Weight::<B>::init_blocks(inputs, outputs, true, wanted, DType::F32, &device).unwrap();
                    let read = reader.projection(&fresh, &WeightNames::of(name), orientation, &part).unwrap();
                    let module =
                        Weight::<B>::init(inputs, outputs, true, Orientation::OutputInput, DType::F32, &device);
                    let exact = reader.projection(&module, &WeightNames::of(name), orientation, &part).unwrap();
                    let formats: Vec<_> = read.blocks().unwrap().formats().parts().map(|part| part.format).collect();
                    assert_eq!(formats, [wanted.unwrap_or(own)]);
                    let expected = match wanted {
                        Some(format) => exact.clone().quantize_blocks(format).unwrap().matrix(),
                        None => exact.matrix(),
                    };
                    assert_eq!(values(read.matrix()), values(expected), "{own}, {name}, {wanted:?}, {part:?}");
                    assert_eq!(read.bias().map(values), exact.bias().map(values));
                }
            }
        }
    }
}

/// The settings of a layer say in which format its matrices are.
fn a_configuration_names_the_format<B: InferenceBackend>() {
    let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32);
    let config = config.with_matrix_format(MatrixFormat::Blocks(BlockFormat::Q4_1));
    let attention = config.init_self_attention::<B>(0, &Default::default()).unwrap();
    let formats = [attention.qkv().first(), attention.output()].map(|weight| weight.blocks().unwrap().wanted());
    assert_eq!(formats, [Some(BlockFormat::Q4_1); 2]);

    let error = config.clone().with_hidden_size(40).init_self_attention::<B>(0, &Default::default()).unwrap_err();
    assert!(error.to_string().contains("40 inputs") && error.to_string().contains("Q4_1"), "{error}");
    let error = config.clone().with_dtype(DataType::Int8).resolve(0).unwrap_err().to_string();
    assert!(error.contains("`matrix_format` is \"q4_1\"") && error.contains("`dtype` is a float"), "{error}");
    let json = r#"{ "hidden_size": 64, "heads": 4, "dtype": "fp32", "matrix_format": "q4_1" }"#;
    assert_eq!(DeepSpeedInferenceConfig::from_json_str(json), Ok(config));
    let json = json.replace("q4_1", "q4_k");
    let error = DeepSpeedInferenceConfig::from_json_str(&json).unwrap_err().to_string();
    assert!(error.contains("q4_k") && error.contains("stored"), "{error}");
}

fn what_cannot_be_rounded_is_an_error<B: InferenceBackend>() {
    let matrix = seeded::<B, 2>([3, 64], 1);
    let bad = matrix.clone().slice_assign([1..2, 40..41], Tensor::full([1, 1], f32::NAN, &Default::default()));
    let error = BlockMatrix::quantize(bad, BlockFormat::Q4_0).unwrap_err();
    assert!(matches!(error, WeightError::NotFinite { output: 1, input: 40 }), "{error}");
    let error = BlockMatrix::quantize(matrix.clone(), BlockFormat::Q4_K).unwrap_err().to_string();
    assert!(error.contains("q4_k") && error.contains("32 elements"), "{error}");
    let error = BlockMatrix::quantize(matrix.narrow(1, 0, 40), BlockFormat::Q4_0).unwrap_err().to_string();
    assert!(error.contains("40 inputs"), "{error}");
}

on_each_backend!(
    products_are_those_of_the_dense_matrix,
    an_input_of_8_bits_costs_no_more_than_half_a_step,
    a_layer_with_inputs_of_8_bits_is_close,
    separate_projections_of_several_formats_are_one_product,
    parts_and_rows_are_those_of_the_dense_matrix,
    records_keep_the_bytes,
    floats_of_a_file_stay_or_are_rounded,
    a_configuration_names_the_format,
    what_cannot_be_rounded_is_an_error,
);

/// Every module with matrices of blocks: what it computes is what it computes with their floats, in other precision than before.
mod modules {
    use burn_deepspeed::{AttentionMask, CrossCache, JointStreams, LatentSizes, NormType, RotaryLayout, VaeBlock};

    use super::*;
    use crate::attention::randomised;
    use crate::common::on_each_cpu_backend;

    fn config() -> DeepSpeedInferenceConfig {
        DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32)
    }

    fn check<B: InferenceBackend, M: Clone>(
        module: &M,
        quantize: impl Fn(M, BlockFormat) -> Result<M, WeightError>,
        weights: impl Fn(&M) -> Vec<Weight<B>>,
        run: impl Fn(&M) -> Tensor<B, 3>,
    ) {
        let (exact, q8_0) = (run(module), quantize(module.clone(), BlockFormat::Q8_0).unwrap());
        for weight in weights(&q8_0) {
            assert_eq!(weight.blocks().unwrap().wanted(), Some(BlockFormat::Q8_0));
        }
        assert_near(run(&quantize(module.clone(), BlockFormat::F32).unwrap()), exact.clone(), 1e-3);
        let rounded = run(&q8_0);
        assert_near(run(&quantize(q8_0, BlockFormat::F32).unwrap()), rounded.clone(), 1e-3);
        let difference = values(rounded - exact).into_iter().fold(0.0, |max: f64, value| max.max(value.abs()));
        assert!(difference > 1e-5, "nothing was rounded");
        let error = quantize(module.clone(), BlockFormat::Q4_K).err().unwrap().to_string();
        assert!(error.contains("q4_k"), "{error}");
    }

    fn self_attention_has_blocks<B: InferenceBackend>() {
        let device = Default::default();
        let gated = config().with_norm_type(NormType::RMSNorm).with_num_kv(Some(2)).with_context_gate(true);
        for config in [config(), gated] {
            let module = randomised(config.init_self_attention::<B>(0, &device).unwrap());
            check(
                &module,
                |module, format| module.quantize_blocks(format),
                |module| [module.qkv().first(), module.output()].into_iter().chain(module.gate()).cloned().collect(),
                |module| module.forward_uncached(seeded([2, 5, 64], 1), AttentionMask::none(), None).unwrap(),
            );
        }
    }

    fn cross_attention_has_blocks<B: InferenceBackend>() {
        let module = randomised(config().init_cross_attention::<B>(32, 0, &Default::default()).unwrap());
        check(
            &module,
            |module, format| module.quantize_blocks(format),
            |module| [module.query(), module.key(), module.value(), module.output()].map(Clone::clone).to_vec(),
            |module| {
                let cache = CrossCache::new([module], seeded([2, 7, 32], 2), &[7, 4]).unwrap();
                module.forward(seeded([2, 3, 64], 1), AttentionMask::none(), cache.layer(0).unwrap()).unwrap()
            },
        );
    }

    fn latent_attention_has_blocks<B: InferenceBackend>() {
        let sizes = LatentSizes::new(56, [16, 8], 16).with_q_lora_rank(Some(32));
        let config = config().with_norm_type(NormType::RMSNorm).with_rotary(RotaryLayout::Interleaved, 8);
        let module = randomised(config.init_latent_attention::<B>(&sizes, 0, &Default::default()).unwrap());
        let dense = module.clone().quantize_blocks(BlockFormat::Q8_0).unwrap();
        assert!(dense.up().is_dense());
        check(
            &module,
            |module, format| module.quantize_blocks(format),
            |module| vec![module.output().clone()],
            |module| module.forward_uncached(seeded([2, 5, 64], 1), AttentionMask::none(), None).unwrap(),
        );
    }

    fn attention_of_diffusion_models_has_blocks<B: InferenceBackend>() {
        let device = Default::default();
        let module = randomised(config().init_diffusers::<B>(0, &device).unwrap());
        check(
            &module,
            |module, format| module.quantize_blocks(format),
            |module| vec![module.qkv().first().clone(), module.output().clone()],
            |module| module.forward(seeded([2, 6, 64], 1), None, AttentionMask::none()).unwrap(),
        );
        let module = randomised(config().init_joint::<B>(JointStreams::image_first(32), 0, &device).unwrap());
        check(
            &module,
            |module, format| module.quantize_blocks(format),
            |module| {
                let text = module.text().unwrap();
                let outputs = [module.image().output(), text.output()].into_iter().flatten();
                [module.image().qkv().first(), text.qkv().first()].into_iter().chain(outputs).cloned().collect()
            },
            |module| {
                let (image, text) = (seeded([1, 6, 64], 1), seeded([1, 4, 32], 2));
                let output = module.forward(image, Some(text), None, AttentionMask::none()).unwrap();
                let flat = |tensor: Tensor<B, 3>| tensor.flatten::<1>(0, 2).reshape([1, 1, -1]);
                Tensor::cat(vec![flat(output.image), flat(output.text.unwrap())], 2)
            },
        );
        let block = VaeBlock::default().with_groups(4);
        let vae = DeepSpeedInferenceConfig::new(64, 1).with_dtype(DataType::Fp32);
        let module = randomised(vae.init_vae::<B>(block, 0, &device).unwrap());
        check(
            &module,
            |module, format| module.quantize_blocks(format),
            |module| vec![module.qkv().first().clone(), module.output().clone()],
            |module| module.forward(seeded([1, 64, 2, 3], 1)).unwrap().flatten(2, 3),
        );
    }

    on_each_cpu_backend!(
        self_attention_has_blocks,
        cross_attention_has_blocks,
        latent_attention_has_blocks,
        attention_of_diffusion_models_has_blocks,
    );
}
