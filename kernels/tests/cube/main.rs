//! Every CubeCL kernel against plain loops, on the Vulkan device that there is: lavapipe will do.
//!
//! Outputs are filled with NaN before a launch, every buffer ends in canaries, slots no query may read hold NaN, rows are
//! pitched as CUDA's are, the device is asked for errors after each launch, and a panic of its compiler ends the run.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used)]

/// Where the tests run.
mod device {
    use crate::lab::Element;

    pub type Gpu = cubecl::wgpu::WgpuRuntime;
    /// Those of every Vulkan device.
    pub const ELEMENTS: &[Element] = &[Element::F32, Element::F16];
    /// Whether the case at this place of a list runs here, unless all do: a sixth, none of those that run on CUDA.
    pub fn runs(at: usize) -> bool {
        at % 6 == 1
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
