//! All integration tests, in one binary.

mod common;

mod attention;
mod cache;
mod config;
#[cfg(feature = "autodiff")]
mod gradients;
mod generate;
mod golden;
mod load;
mod ops;
mod properties;
