//! Outputs of a matrix of blocks, dense on the device.

use std::ops::Range;

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_core::block::RowFormats;
use burn_deepspeed_kernels::cube::{Blocks, Dequantise, Machine, dequantise};

use crate::ops::cube::{CubeCall, CubeDevice, TensorKind, TensorLike, from_float, handle, int, kernel_accepts, rows};
use crate::weight::BlockMatrix;

/// Bytes of the outputs that are dense at a time, at most: enough for an efficient product, with little extra memory.
const PART_BYTES: usize = 32 << 20;

/// The arguments of a launch, with `T` for each tensor.
#[derive(Debug, Clone)]
struct DequantiseCall<T> {
    bytes: T,
    formats: RowFormats,
    outputs: Range<usize>,
    dtype: DType,
}

/// The outputs of a matrix in parts, each `[part, in]` with elements of `dtype`. The matrix is never dense as a whole, nor on the host.
pub(super) fn dense_parts<B: CubeDevice>(matrix: &BlockMatrix<B>, dtype: DType) -> impl Iterator<Item = Tensor<B, 2>> {
    let [outputs, inputs] = matrix.shape();
    let most = (PART_BYTES / (inputs * dtype.size()).max(1)).max(1);
    (0..outputs.max(1)).step_by(most).map(move |start| {
        let (bytes, formats) = (int(matrix.bytes()), matrix.formats().clone());
        let call = DequantiseCall { bytes, formats, outputs: start..outputs.min(start + most), dtype };
        from_float(B::run::<DequantiseCall<()>>(call))
    })
}

impl<T> DequantiseCall<T> {
    /// Of the dense outputs.
    fn shape(&self) -> [usize; 2] {
        [self.outputs.len(), self.formats.inputs()]
    }
}

impl CubeCall for DequantiseCall<()> {
    const NAME: &'static str = "dequantise";

    type Arguments<T: TensorLike> = DequantiseCall<T>;
    type Output<T: TensorLike> = T;

    fn walk<T: TensorLike, U: TensorLike>(
        call: DequantiseCall<T>,
        visit: &mut impl FnMut(T) -> U,
    ) -> DequantiseCall<U> {
        DequantiseCall { bytes: visit(call.bytes), formats: call.formats, outputs: call.outputs, dtype: call.dtype }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(output: T, visit: &mut impl FnMut(T) -> U) -> U {
        visit(output)
    }

    fn announce(call: DequantiseCall<TensorKind>) -> TensorKind {
        (Shape::new(call.shape()), call.dtype)
    }

    fn launch<R: CubeRuntime>(call: DequantiseCall<CubeTensor<R>>) -> CubeTensor<R> {
        let shape = call.shape();
        let DequantiseCall { bytes, formats, outputs, dtype } = call;
        let bytes = rows(bytes);
        let (client, machine) = (bytes.client.clone(), Machine::new(&bytes.client));
        let dense = empty_device_dtype(client.clone(), bytes.device.clone(), Shape::new(shape), dtype);
        let (bytes, written) = (handle(&bytes), handle(&dense));
        for part in formats.parts_of(outputs.clone()) {
            let shape = [part.outputs.len(), formats.inputs()];
            let blocks = Blocks { bytes: &bytes, first: part.bytes.start, format: part.format, shape };
            let arguments = Dequantise { blocks, dense: &written, row: part.outputs.start - outputs.start };
            kernel_accepts(Self::NAME, dequantise::launch(&client, &machine, arguments));
        }
        dense
    }
}
