//! Kernels on slices, for any CPU.

pub mod activation;
pub mod attention;
pub mod decode;
mod element;
pub mod flash;
pub mod gate;
mod integer_keys;
mod interval;
mod lanes;
pub mod masks;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod norm;
pub mod pages;
pub mod places;
pub mod product;
pub mod scatter;
mod scores;
mod scratch;
mod simd;
mod slots;
mod stream;
mod sums;
pub mod threads;
mod transpose;
#[cfg(target_arch = "x86_64")]
mod x86;
