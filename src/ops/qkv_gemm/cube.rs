//! Projections on CubeCL: for a few rows one kernel with norm and bias in it, for many a norm kernel and Burn's matmul.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::{Machine, gemv, norm};
use cubecl::ir::Type;
use cubek_matmul::definition::MatmulElems;
use cubek_matmul::launch::{Strategy, launch_ref};
use cubek_std::InputBinding;

use super::{QkvGemmOutput, reference};
use crate::error::check_shape;
use crate::ops::cube::{Collected, CubeCall, CubeOps, Inputs, handle, is_float, planned};
use crate::ops::{check_types, product};
use crate::spec::NormSpec;
use crate::weight::{FusedNorm, Orientation, QkvWeight, SeparateQkv, Weight};

/// [`InferenceBackend::qkv_gemm`](crate::InferenceBackend::qkv_gemm) on CubeCL.
pub(crate) fn qkv_gemm<B: CubeOps>(
    input: Tensor<B, 3>,
    norm: Option<&FusedNorm<B>>,
    qkv: &QkvWeight<B>,
    want_norm: bool,
) -> QkvGemmOutput<B> {
    let [batch, tokens, width] = input.dims();
    if batch * tokens * width == 0 || !is_float(input.dtype()) {
        return reference(input, norm, qkv, want_norm);
    }
    if let Some(norm) = norm {
        check_shape("qkv_gemm", "input", &[batch, tokens, norm.size()], &[batch, tokens, width]);
    }
    let weights: Vec<&Weight<B>> = match qkv {
        QkvWeight::Fused(weight) => vec![weight],
        QkvWeight::Separate(SeparateQkv { query, key, value }) => vec![query, key, value],
    };
    if batch * tokens <= gemv::MOST_ROWS {
        let (qkv, normed) = project_few("qkv_gemm", input.clone(), norm, &weights, true, want_norm && norm.is_some());
        return QkvGemmOutput { qkv, inp_norm: want_norm.then(|| normed.unwrap_or(input)) };
    }
    let normed = match norm {
        Some(norm) => normalise(input, norm),
        None => input,
    };
    let inp_norm = want_norm.then(|| normed.clone());
    let mut parts: Vec<_> =
        weights.iter().map(|weight| project_many("qkv_gemm", normed.clone(), weight, true)).collect();
    let qkv = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 2) };
    QkvGemmOutput { qkv, inp_norm }
}

/// `input · weight`, with its bias or without.
pub(crate) fn project<B: CubeOps>(
    operation: &str,
    input: Tensor<B, 3>,
    weight: &Weight<B>,
    bias: bool,
) -> Tensor<B, 3> {
    let [batch, tokens, width] = input.dims();
    let rows = batch * tokens;
    if rows * width == 0 || !is_float(input.dtype()) {
        let dtype = input.dtype();
        return crate::ops::project(operation, input, weight, weight.bias().filter(|_| bias), dtype);
    }
    match rows <= gemv::MOST_ROWS {
        true => project_few(operation, input, None, &[weight], bias, false).0,
        false => project_many(operation, input, weight, bias),
    }
}

/// Burn's matmul, which accumulates halves in f32 and reads a transposed matrix as it lies. It would round f32 to TF32 where
/// the device has that. Weights of int8 are rounded to the element type of the input.
fn project_many<B: CubeOps>(operation: &str, input: Tensor<B, 3>, weight: &Weight<B>, bias: bool) -> Tensor<B, 3> {
    let [batch, tokens, width] = input.dims();
    check_shape(operation, "input", &[batch, tokens, weight.input_size()], &[batch, tokens, width]);
    let dtype = input.dtype();
    check_types(operation, dtype, weight);
    let input = input.reshape([batch * tokens, width]);
    let exact = dtype == DType::F32 && B::has_tf32(&input.device());
    let product = product(weight, dtype, |part| match exact {
        true => exact_matmul(input.clone(), part),
        false => input.clone().matmul(part),
    });
    let sum = match weight.bias().filter(|_| bias) {
        Some(bias) => product + bias.cast(dtype).unsqueeze(),
        None => product,
    };
    sum.reshape([batch, tokens, weight.output_size()])
}

/// A product of f32 matrices that keeps every digit, on ordinary arithmetic units.
///
/// # Shapes
/// - lhs: `[rows, in]`, rhs: `[in, out]`, output: `[rows, out]`
fn exact_matmul<B: CubeOps>(lhs: Tensor<B, 2>, rhs: Tensor<B, 2>) -> Tensor<B, 2> {
    let mut inputs = Collected::new();
    inputs.float(lhs);
    inputs.float(rhs);
    inputs.call(&ExactMatmul).next()
}

#[derive(Debug, Clone, Copy)]
struct ExactMatmul;

impl CubeCall for ExactMatmul {
    const NAME: &'static str = "exact_matmul";

    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)> {
        vec![(Shape::new([inputs[0].0[0], inputs[1].0[1]]), inputs[0].1)]
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Inputs<R>) -> Vec<CubeTensor<R>> {
        let (lhs, rhs) = (inputs.next(), inputs.next());
        let shape = Shape::new([lhs.meta.shape()[0], rhs.meta.shape()[1]]);
        let output = empty_device_dtype(lhs.client.clone(), lhs.device.clone(), shape, lhs.dtype);
        let elements: Type = lhs.dtype.into();
        let mut types = MatmulElems::from_single_dtype(elements);
        let (client, lhs) = (lhs.client.clone(), InputBinding::new(lhs.binding(), elements.storage_type()));
        let rhs = InputBinding::new(rhs.binding(), elements.storage_type());
        let mut launch = |strategy: Strategy| {
            launch_ref(&strategy, &client, lhs.clone(), rhs.clone(), output.clone().binding(), &mut types)
        };
        launch(Strategy::SimpleUnit(Default::default()))
            .or_else(|_| launch(Strategy::Naive))
            .unwrap_or_else(|error| panic!("exact_matmul: no kernel takes the product: {error:?}"));
        vec![output]
    }
}

fn project_few<B: CubeOps>(
    operation: &str,
    input: Tensor<B, 3>,
    norm: Option<&FusedNorm<B>>,
    weights: &[&Weight<B>],
    bias: bool,
    want_norm: bool,
) -> (Tensor<B, 3>, Option<Tensor<B, 3>>) {
    let [batch, tokens, width] = input.dims();
    let rows = batch * tokens;
    let dtype = input.dtype();
    let mut inputs = Collected::new();
    inputs.float(input.reshape([rows, width]));
    let norm = norm.map(|norm| {
        inputs.float(norm.gamma());
        if let Some(beta) = norm.beta() {
            inputs.float(beta);
        }
        NormCall { spec: norm.spec(), beta: norm.has_beta() }
    });
    let matrices = weights
        .iter()
        .map(|weight| {
            check_shape(operation, "input", &[batch, tokens, weight.input_size()], &[batch, tokens, width]);
            check_types(operation, dtype, weight);
            let kept = match weight.int8() {
                Some(matrix) => {
                    inputs.int(matrix.elements());
                    inputs.float(matrix.scales());
                    Kept::Int8(matrix.blocks())
                }
                None => {
                    inputs.float(weight.matrix());
                    Kept::Dense(weight.orientation())
                }
            };
            let bias = weight.bias().filter(|_| bias);
            let has_bias = bias.is_some();
            if let Some(bias) = bias {
                inputs.float(bias);
            }
            Matrix { kept, outputs: weight.output_size(), bias: has_bias }
        })
        .collect();
    let call = GemvCall { norm, matrices, want_norm };
    let width_out = call.outputs_width();
    let mut outputs = inputs.call(&call);
    let product: Tensor<B, 2> = outputs.next();
    let normed = want_norm.then(|| outputs.next::<2>().reshape([batch, tokens, width]));
    (product.reshape([batch, tokens, width_out]), normed)
}

/// LayerNorm or RMSNorm over the last axis, rounded to the input's element type.
///
/// # Shapes
/// - input, output: `[B, T, E]`
fn normalise<B: CubeOps>(input: Tensor<B, 3>, norm: &FusedNorm<B>) -> Tensor<B, 3> {
    let [batch, tokens, width] = input.dims();
    let mut inputs = Collected::new();
    inputs.float(input.reshape([batch * tokens, width]));
    inputs.float(norm.gamma());
    if let Some(beta) = norm.beta() {
        inputs.float(beta);
    }
    let normed: Tensor<B, 2> = inputs.call(&NormCall { spec: norm.spec(), beta: norm.has_beta() }).next();
    normed.reshape([batch, tokens, width])
}

#[derive(Debug, Clone, Copy)]
struct NormCall {
    spec: NormSpec,
    beta: bool,
}

impl CubeCall for NormCall {
    const NAME: &'static str = "norm";

    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)> {
        vec![inputs[0].clone()]
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Inputs<R>) -> Vec<CubeTensor<R>> {
        let input = inputs.rows();
        let gamma = handle(&inputs.rows());
        let beta = self.beta.then(|| handle(&inputs.rows()));
        let shape = input.meta.shape().clone();
        let output = empty_device_dtype(input.client.clone(), input.device.clone(), shape, input.dtype);
        let arguments = norm::Norm {
            input: &handle(&input),
            residual: None,
            sum: None,
            gamma: &gamma,
            beta: beta.as_ref(),
            output: &handle(&output),
            epsilon: self.spec.epsilon as f32,
            rms: self.spec.rms,
        };
        planned("norm", norm::launch(&input.client, &Machine::new(&input.client), arguments));
        vec![output]
    }
}

/// One projection of a call: a matrix, and where it has one its bias.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    kept: Kept,
    outputs: usize,
    bias: bool,
}

/// How its weights are kept.
#[derive(Debug, Clone, Copy)]
enum Kept {
    Dense(Orientation),
    /// Elements, then scales of blocks of so many outputs and inputs.
    Int8([usize; 2]),
}

/// Norm, matrices and biases for a few rows: a launch for each matrix, side by side into one output.
#[derive(Debug, Clone)]
struct GemvCall {
    norm: Option<NormCall>,
    matrices: Vec<Matrix>,
    want_norm: bool,
}

impl GemvCall {
    fn outputs_width(&self) -> usize {
        self.matrices.iter().map(|matrix| matrix.outputs).sum()
    }
}

impl CubeCall for GemvCall {
    const NAME: &'static str = "gemv";

    fn outputs(&self, inputs: &[(Shape, DType)]) -> Vec<(Shape, DType)> {
        let (shape, dtype) = &inputs[0];
        let product = (Shape::new([shape[0], self.outputs_width()]), *dtype);
        std::iter::once(product).chain(self.want_norm.then(|| inputs[0].clone())).collect()
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Inputs<R>) -> Vec<CubeTensor<R>> {
        let input = inputs.rows();
        let (client, rows) = (input.client.clone(), input.meta.shape()[0]);
        let machine = Machine::new(&client);
        let empty = |shape| empty_device_dtype(client.clone(), input.device.clone(), shape, input.dtype);
        let parameters = self.norm.map(|norm| {
            let gamma = handle(&inputs.rows());
            (norm.spec, gamma, norm.beta.then(|| handle(&inputs.rows())))
        });
        let output = empty(Shape::new([rows, self.outputs_width()]));
        let normed = self.want_norm.then(|| empty(input.meta.shape().clone()));
        let mut offset = 0;
        for (index, projection) in self.matrices.iter().enumerate() {
            let elements = handle(&inputs.rows());
            let scales;
            let matrix = match projection.kept {
                Kept::Dense(orientation) => gemv::Matrix::Dense(&elements, lying(orientation)),
                Kept::Int8(blocks) => {
                    scales = handle(&inputs.rows());
                    gemv::Matrix::Int8(gemv::Int8 { elements: &elements, scales: &scales, blocks })
                }
            };
            let bias = projection.bias.then(|| handle(&inputs.rows()));
            // Every launch computes the norm anew; the first one also writes it out.
            let normed = normed.as_ref().filter(|_| index == 0).map(handle);
            let arguments = gemv::Gemv {
                input: &handle(&input),
                norm: parameters.as_ref().map(|(spec, gamma, beta)| gemv::Norm {
                    kind: if spec.rms { gemv::NormKind::RmsNorm } else { gemv::NormKind::LayerNorm },
                    gamma,
                    beta: beta.as_ref(),
                    epsilon: spec.epsilon as f32,
                }),
                matrix,
                bias: bias.as_ref(),
                output: &handle(&output),
                offset,
                normed: normed.as_ref(),
            };
            planned("gemv", gemv::launch(&client, &machine, arguments));
            offset += projection.outputs;
        }
        std::iter::once(output).chain(normed).collect()
    }
}

/// An orientation in the words of the kernels.
fn lying(orientation: Orientation) -> gemv::Orientation {
    match orientation {
        Orientation::InputOutput => gemv::Orientation::InputOutput,
        Orientation::OutputInput => gemv::Orientation::OutputInput,
    }
}

#[cfg(all(test, feature = "vulkan", feature = "ndarray"))]
mod tests {
    use burn::tensor::Distribution;

    use super::*;

    /// Only devices with TF32 ask for it, so it is called here by name.
    #[test]
    fn an_exact_product_is_that_of_the_cpu() {
        use burn_ndarray::NdArray;
        use burn_wgpu::Wgpu;
        for [rows, inputs, outputs] in [[9, 33, 65], [17, 64, 40], [130, 7, 1]] {
            let random = |shape| Tensor::<NdArray, 2>::random(shape, Distribution::Default, &Default::default());
            let (lhs, rhs) = (random([rows, inputs]), random([outputs, inputs]));
            let device =
                |tensor: &Tensor<NdArray, 2>| Tensor::<Wgpu, 2>::from_data(tensor.to_data(), &Default::default());
            // A transposed view, as a matrix of PyTorch's orientation comes.
            let product = exact_matmul(device(&lhs), device(&rhs).transpose());
            let expected = lhs.matmul(rhs.transpose()).into_data();
            product.into_data().assert_approx_eq::<f32>(&expected, burn::tensor::Tolerance::absolute(1e-5));
        }
    }
}
