//! The backends that the modules run on: one impl block each, and nothing else.
//!
//! Each backend sits behind its Cargo feature. On `Autodiff` every operation is the reference, so modules train.

#[cfg(feature = "autodiff")]
mod autodiff;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "ndarray")]
mod ndarray;
