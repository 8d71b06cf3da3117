//! Products of f32 matrices on devices whose matrix units would round to TF32.

use burn::tensor::{Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::Type;
use cubek_matmul::definition::MatmulElems;
use cubek_matmul::launch::{Strategy, launch_ref};
use cubek_std::InputBinding;

use crate::ops::cube::{CubeCall, CubeDevice, TensorKind, TensorLike, empty, float, from_float};

/// The arguments of a product, with `T` for each tensor.
#[derive(Debug, Clone)]
struct ExactMatmul<T> {
    lhs: T,
    rhs: T,
}

/// A product of f32 matrices that keeps every digit, on ordinary arithmetic units.
///
/// # Shapes
/// - lhs: `[rows, in]`, rhs: `[in, out]`, output: `[rows, out]`
pub(super) fn exact_matmul<B: CubeDevice>(lhs: Tensor<B, 2>, rhs: Tensor<B, 2>) -> Tensor<B, 2> {
    from_float(B::run::<ExactMatmul<()>>(ExactMatmul { lhs: float(lhs), rhs: float(rhs) }))
}

impl CubeCall for ExactMatmul<()> {
    const NAME: &'static str = "exact_matmul";

    type Arguments<T: TensorLike> = ExactMatmul<T>;
    type Output<T: TensorLike> = T;

    fn walk<T: TensorLike, U: TensorLike>(call: ExactMatmul<T>, visit: &mut impl FnMut(T) -> U) -> ExactMatmul<U> {
        ExactMatmul { lhs: visit(call.lhs), rhs: visit(call.rhs) }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(output: T, visit: &mut impl FnMut(T) -> U) -> U {
        visit(output)
    }

    fn announce(call: ExactMatmul<TensorKind>) -> TensorKind {
        let ((lhs, dtype), (rhs, _)) = (call.lhs, call.rhs);
        (Shape::new([lhs[0], rhs[1]]), dtype)
    }

    fn launch<R: CubeRuntime>(call: ExactMatmul<CubeTensor<R>>) -> CubeTensor<R> {
        let ExactMatmul { lhs, rhs } = call;
        let output = empty(&lhs, [lhs.meta.shape()[0], rhs.meta.shape()[1]]);
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
        output
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
            // A transposed view, as a matrix in PyTorch's orientation is.
            let product = exact_matmul(device(&lhs), device(&rhs).transpose());
            let expected = lhs.matmul(rhs.transpose()).into_data();
            product.into_data().assert_approx_eq::<f32>(&expected, burn::tensor::Tolerance::absolute(1e-5));
        }
    }
}
