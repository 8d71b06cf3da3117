//! Inputs of matrices of 16 bits that are rounded to bf16.

use burn::tensor::{DType, Tensor};
use burn_deepspeed::config::MatrixFormat;
use burn_deepspeed::ops::linear;
use burn_deepspeed::weight::{BlockFormat, Int8Blocks, Orientation, QkvWeight, Weight};
use burn_deepspeed::{
    ActivationRounding, AttentionInit, DataType, DeepSpeedInferenceConfig, InferenceBackend, Operations,
};
use half::bf16;

use crate::common::{assert_near, exact_product, on_each_cpu_backend, seeded, values};

const OUTPUTS: usize = 29;
const INPUTS: usize = 96;

fn weight<B: InferenceBackend>() -> Weight<B> {
    Weight::new(seeded([OUTPUTS, INPUTS], 1), Some(seeded([OUTPUTS], 2)), Orientation::OutputInput)
}

fn rounded<B: InferenceBackend>(input: &Tensor<B, 3>) -> Tensor<B, 3> {
    Tensor::from_data(input.to_data().convert::<bf16>().convert::<f32>(), (&input.device(), DType::F32))
}

/// The reference and the kernels multiply the rounded input: the difference from the product of the input itself is larger than every other error.
fn kernels_and_reference_multiply_the_rounded_input<B: InferenceBackend>() {
    for format in [BlockFormat::BF16, BlockFormat::F16] {
        let exact = weight::<B>().quantize_blocks(format).unwrap();
        let weight = exact.clone().with_rounded_input(ActivationRounding::Bf16);
        let bias = weight.bias().unwrap().unsqueeze::<3>();
        // One row, a few, and many, which have other kernels.
        for tokens in [1, 9, 40] {
            let input = seeded::<B, 3>([2, tokens, INPUTS], 3);
            let expected = exact_product(rounded(&input), weight.input_output()) + bias.clone();
            let found = B::Ops::linear(input.clone(), &weight);
            assert_near(found.clone(), expected.clone(), 2e-5);
            assert_near(linear::reference(input.clone(), &weight), expected, 2e-5);
            let never = values(B::Ops::linear(input, &exact));
            let differs = values(found).into_iter().zip(never).filter(|(found, never)| (found - never).abs() > 1e-4);
            assert!(differs.count() > tokens * OUTPUTS, "{format}, {tokens} tokens");
        }
    }
}

fn a_row_does_not_depend_on_the_batch<B: InferenceBackend>() {
    let weight = weight::<B>().quantize_blocks(BlockFormat::BF16).unwrap();
    let weight = weight.with_rounded_input(ActivationRounding::Bf16);
    for tokens in [1, 17, 40] {
        let input = seeded::<B, 3>([3, tokens, INPUTS], 3);
        let all = B::Ops::linear(input.clone(), &weight).narrow(0, 1, 1);
        assert_eq!(values(B::Ops::linear(input.narrow(0, 1, 1), &weight)), values(all), "{tokens} tokens");
    }
}

fn other_matrices_are_not_affected<B: InferenceBackend>() {
    let input = seeded::<B, 3>([2, 40, INPUTS], 3);
    let dense = weight::<B>();
    let blocks = dense.clone().quantize_blocks(BlockFormat::Q8_0).unwrap();
    let int8 = dense.clone().quantize(Int8Blocks::PerOutput).unwrap();
    for weight in [dense, blocks, int8] {
        let rounded = weight.clone().with_rounded_input(ActivationRounding::Bf16);
        assert_eq!(values(B::Ops::linear(input.clone(), &rounded)), values(B::Ops::linear(input.clone(), &weight)));
    }
}

fn a_configuration_asks_for_it<B: InferenceBackend>() {
    let json =
        r#"{ "hidden_size": 64, "heads": 4, "dtype": "fp32", "matrix_format": "bf16", "round_activations": "bf16" }"#;
    let config = DeepSpeedInferenceConfig::from_json_str(json).unwrap();
    let attention = config.init_self_attention::<B>(0, &Default::default()).unwrap();
    for weight in [attention.qkv().first(), attention.output()] {
        assert_eq!(weight.input_rounding(), ActivationRounding::Bf16);
    }
    assert!(matches!(attention.qkv(), QkvWeight::Fused(_)));

    let of_int8 = config.clone().with_matrix_format(MatrixFormat::OfDtype).with_dtype(DataType::Int8);
    let of_blocks = config.with_matrix_format(MatrixFormat::Blocks(BlockFormat::Q4_0));
    for (config, remedy) in [(of_int8, "`dtype` is \"bf16\""), (of_blocks, "`matrix_format` is \"bf16\"")] {
        let error = config.resolve(0).unwrap_err().to_string();
        assert!(error.contains("`round_activations` is \"bf16\"") && error.contains(remedy), "{error}");
    }
}

on_each_cpu_backend!(
    kernels_and_reference_multiply_the_rounded_input,
    a_row_does_not_depend_on_the_batch,
    other_matrices_are_not_affected,
    a_configuration_asks_for_it,
);
