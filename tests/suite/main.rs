//! All integration tests, in one binary.

mod common;

mod attention;
mod cache;
mod config;
mod generate;
mod golden;
#[cfg(feature = "autodiff")]
mod gradients;
mod load;
mod ops;
mod properties;
