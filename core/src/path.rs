//! Limits that decide which kernel a step runs on.

/// New tokens per row up to which a step runs on the decoding kernels, which split the keys instead of the queries.
pub const MOST_DECODE_TOKENS: usize = 8;

/// Largest head size of the CubeCL attention kernels, in features.
pub const LARGEST_CUBE_HEAD: usize = 256;
