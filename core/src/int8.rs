//! Constants of the int8 formats, defined once for weights and cache, references and kernels.

/// Largest magnitude of an int8 element: the range is symmetric, so -128 is not produced.
pub const LARGEST: f32 = 127.0;
