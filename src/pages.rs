//! Huge pages for the matrices and caches that are in the memory of the process.

use std::any::TypeId;

use burn::tensor::{DType, Int, Tensor, backend::Backend};

use crate::zeros::zeros;

/// Moves the elements of a tensor into huge pages if it is in the memory of the process, has 2 MiB or more, and the system has such pages,
/// as Linux does. Reads of a large tensor take two thirds to nine tenths of the time then. The parameters and caches of this crate are in huge
/// pages already.
///
/// The tensor stays as it is, on every backend. The move takes about as long as a copy, so do it once, when the tensor is loaded.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_deepspeed::use_huge_pages;
/// use burn_ndarray::NdArray;
///
/// let matrix = Tensor::<NdArray, 2>::ones([1024, 4096], &Default::default());
/// use_huge_pages(&matrix);
/// ```
pub fn use_huge_pages<B: Backend, const D: usize>(tensor: &Tensor<B, D>) {
    memory::floats(tensor, memory::Pages::Now);
}

/// The same for a tensor of integers.
pub(crate) fn ints_use_huge_pages<B: Backend, const D: usize>(tensor: &Tensor<B, D, Int>) {
    memory::ints(tensor, memory::Pages::Now);
}

/// Zeros. In the memory of the process, the system allocates them when they are first written, and in huge pages.
pub(crate) fn zeros_on_demand<B: Backend, const D: usize>(
    shape: [usize; D],
    (device, dtype): (&B::Device, DType),
) -> Tensor<B, D> {
    let zeros = match memory::zeros(TypeId::of::<B::FloatTensorPrimitive>(), shape, dtype) {
        Some(data) => Tensor::from_data(data, (device, dtype)),
        None => zeros(shape, (device, dtype)),
    };
    memory::floats(&zeros, memory::Pages::WhenWritten);
    zeros
}

/// The same for integers.
pub(crate) fn int_zeros_on_demand<B: Backend, const D: usize>(
    shape: [usize; D],
    (device, dtype): (&B::Device, DType),
) -> Tensor<B, D, Int> {
    let zeros = match memory::zeros(TypeId::of::<B::IntTensorPrimitive>(), shape, dtype) {
        Some(data) => Tensor::from_data(data, (device, dtype)),
        None => zeros(shape, (device, dtype)),
    };
    memory::ints(&zeros, memory::Pages::WhenWritten);
    zeros
}

/// Tensors in the memory of the process.
mod memory {
    use std::any::{Any, TypeId};

    use burn::tensor::{DType, Int, Tensor, TensorData, TensorPrimitive, backend::Backend};
    use burn_deepspeed_kernels::cpu::pages::{move_to_huge_pages, reserve_huge_pages};

    /// When a tensor gets huge pages.
    #[derive(Clone, Copy)]
    pub enum Pages {
        Now,
        WhenWritten,
    }

    #[cfg_attr(not(feature = "cpu"), expect(dead_code, reason = "no tensor is in the memory of the process"))]
    impl Pages {
        fn of<E>(self, elements: &[E]) {
            match self {
                Self::Now => move_to_huge_pages(elements),
                Self::WhenWritten => reserve_huge_pages(elements),
            }
        }
    }

    pub fn floats<B: Backend, const D: usize>(tensor: &Tensor<B, D>, pages: Pages) {
        // First, because a clone is work on other backends.
        if has(TypeId::of::<B::FloatTensorPrimitive>())
            && let TensorPrimitive::Float(primitive) = tensor.clone().into_primitive()
        {
            apply(&primitive, pages);
        }
    }

    pub fn ints<B: Backend, const D: usize>(tensor: &Tensor<B, D, Int>, pages: Pages) {
        if has(TypeId::of::<B::IntTensorPrimitive>()) {
            apply(&tensor.clone().into_primitive(), pages);
        }
    }

    /// The data of zeros for `burn-ndarray` 0.21, which would write them. Rust asks the system for zeros instead.
    pub fn zeros<const D: usize>(primitive: TypeId, shape: [usize; D], dtype: DType) -> Option<TensorData> {
        let count = shape.iter().product();
        match dtype {
            _ if !is_ndarray(primitive) => None,
            DType::F32 => Some(TensorData::new(vec![0_f32; count], shape)),
            DType::I16 => Some(TensorData::new(vec![0_i16; count], shape)),
            DType::I8 => Some(TensorData::new(vec![0_i8; count], shape)),
            _ => None,
        }
    }

    /// Whether tensors of this type are in the memory of the process.
    fn has(primitive: TypeId) -> bool {
        is_ndarray(primitive) || is_flex(primitive)
    }

    #[cfg(feature = "ndarray")]
    fn is_ndarray(primitive: TypeId) -> bool {
        primitive == TypeId::of::<burn_ndarray::NdArrayTensor>()
    }

    #[cfg(not(feature = "ndarray"))]
    fn is_ndarray(_primitive: TypeId) -> bool {
        false
    }

    #[cfg(feature = "flex")]
    fn is_flex(primitive: TypeId) -> bool {
        primitive == TypeId::of::<burn_flex::FlexTensor>()
    }

    #[cfg(not(feature = "flex"))]
    fn is_flex(_primitive: TypeId) -> bool {
        false
    }

    fn apply(primitive: &dyn Any, pages: Pages) {
        #[cfg(feature = "ndarray")]
        if let Some(tensor) = primitive.downcast_ref() {
            ndarray(tensor, pages);
        }
        #[cfg(feature = "flex")]
        if let Some(tensor) = primitive.downcast_ref::<burn_flex::FlexTensor>() {
            pages.of(tensor.bytes());
        }
        #[cfg(not(any(feature = "ndarray", feature = "flex")))]
        let _ = (primitive, pages);
    }

    #[cfg(feature = "ndarray")]
    fn ndarray(tensor: &burn_ndarray::NdArrayTensor, pages: Pages) {
        use burn_ndarray::NdArrayTensor::{F32, F64, I8, I16};

        match tensor {
            F32(storage) => pages.of(storage.view().as_slice_memory_order().unwrap_or_default()),
            F64(storage) => pages.of(storage.view().as_slice_memory_order().unwrap_or_default()),
            I16(storage) => pages.of(storage.view().as_slice_memory_order().unwrap_or_default()),
            I8(storage) => pages.of(storage.view().as_slice_memory_order().unwrap_or_default()),
            _ => {}
        }
    }
}
