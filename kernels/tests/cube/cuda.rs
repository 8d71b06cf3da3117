//! The tests of `main.rs` on a CUDA device, in bf16 too: `cargo test -p burn-deepspeed-kernels --features cuda --test cube_cuda`.
//! They fail without a driver, so plain `cargo test` leaves them out.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

/// Where the tests run.
mod device {
    use crate::lab::Element;

    pub type Gpu = cubecl::cuda::CudaRuntime;
    pub const ELEMENTS: &[Element] = &[Element::F32, Element::F16, Element::Bf16];
    /// Whether the case at this place of a list runs here, unless all do: every second one.
    pub fn runs(at: usize) -> bool {
        at.is_multiple_of(2)
    }
}

mod cache_write;
mod contract;
mod decode;
mod decode_mma;
mod dequantise;
#[path = "../device_panics/mod.rs"]
mod device_panics;
mod gemv;
mod gemv_blocks;
mod gemv_blocks_mma;
mod gemv_contract;
mod gemv_mma;
mod lab;
mod norm;
mod pad_transform;
mod prefill_mma;
mod prefill_simt;
mod problem;
#[path = "../refused/mod.rs"]
mod refused;
mod softmax;

use burn_deepspeed_oracle as oracle;
