//! What the header of a file says of a tensor.

use std::fmt;

use safetensors::Dtype;

use crate::block::BlockFormat;

/// A tensor in a file, whatever the format of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) element: StoredElement,
    /// Row by row: the last axis is contiguous.
    pub(super) shape: Vec<usize>,
    /// First byte in the file.
    pub(super) start: u64,
}

/// How elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoredElement {
    /// Each by itself.
    Plain(Dtype),
    /// In blocks.
    Blocks(BlockFormat),
}

impl StoredElement {
    /// The format of floats and blocks that a matrix can keep in memory.
    pub(super) fn format(self) -> Option<BlockFormat> {
        match self {
            Self::Blocks(format) => Some(format),
            Self::Plain(Dtype::F32) => Some(BlockFormat::F32),
            Self::Plain(Dtype::F16) => Some(BlockFormat::F16),
            Self::Plain(Dtype::BF16) => Some(BlockFormat::BF16),
            Self::Plain(_) => None,
        }
    }
}

impl fmt::Display for StoredElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => fmt::Debug::fmt(dtype, f),
            Self::Blocks(format) => fmt::Display::fmt(format, f),
        }
    }
}
