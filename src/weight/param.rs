//! How parameters are created, and what they keep when a record is loaded.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Tensor, backend::Backend};

use crate::error::check_shape;
use crate::pages::use_huge_pages;

/// Standard deviation of freshly initialised matrices, that of GPT-2 and BLOOM.
pub(super) const INITIAL_DEVIATION: f64 = 0.02;

/// A parameter that is initialised when it is first read.
pub(super) fn lazy<B: Backend, const D: usize>(
    shape: [usize; D],
    dtype: DType,
    device: &B::Device,
    init: impl Fn(&B::Device) -> Tensor<B, D> + Send + Sync + 'static,
) -> Param<Tensor<B, D>> {
    let ready = move |device: &B::Device, require_grad: bool| {
        let tensor = init(device).cast(dtype);
        use_huge_pages(&tensor);
        if require_grad { tensor.require_grad() } else { tensor }
    };
    steady(Param::uninitialized(ParamId::new(), ready, device.clone(), true, shape.into()), shape, dtype)
}

/// A parameter with this value.
pub(super) fn given<B: Backend, const D: usize>(value: Tensor<B, D>) -> Param<Tensor<B, D>> {
    let (shape, dtype) = (value.dims(), value.dtype());
    use_huge_pages(&value);
    steady(Param::from_tensor(value), shape, dtype)
}

/// Keeps the element type of a parameter when a record of another type is loaded, and checks the shape.
fn steady<B: Backend, const D: usize>(
    param: Param<Tensor<B, D>>,
    shape: [usize; D],
    dtype: DType,
) -> Param<Tensor<B, D>> {
    param.load_mapper(move |loaded: Tensor<B, D>| {
        check_shape("load_record", "parameter of the record", &shape, &loaded.dims());
        let loaded = loaded.cast(dtype);
        use_huge_pages(&loaded);
        loaded
    })
}
