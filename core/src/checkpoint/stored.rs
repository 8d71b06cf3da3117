//! What the header of a file says of a tensor.

use std::fmt;

use safetensors::Dtype;

use crate::block::BlockFormat;
use crate::element::ElementType;

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
    /// How elements of this type are stored.
    pub(super) fn of(element: ElementType) -> Self {
        Self::Plain(match element {
            ElementType::F64 => Dtype::F64,
            ElementType::F32 | ElementType::Flex32 => Dtype::F32,
            ElementType::F16 => Dtype::F16,
            ElementType::BF16 => Dtype::BF16,
            ElementType::I64 => Dtype::I64,
            ElementType::I32 => Dtype::I32,
            ElementType::I16 => Dtype::I16,
            ElementType::I8 => Dtype::I8,
            ElementType::U64 => Dtype::U64,
            ElementType::U32 => Dtype::U32,
            ElementType::U16 => Dtype::U16,
            ElementType::U8 => Dtype::U8,
            ElementType::Bool => Dtype::BOOL,
        })
    }

    /// How rows in this format are stored: the inverse of [`format`](Self::format).
    pub(super) fn of_format(format: BlockFormat) -> Self {
        match format {
            BlockFormat::F32 => Self::Plain(Dtype::F32),
            BlockFormat::F16 => Self::Plain(Dtype::F16),
            BlockFormat::BF16 => Self::Plain(Dtype::BF16),
            blocks => Self::Blocks(blocks),
        }
    }

    /// Elements and bytes of what cannot be divided: an element, or a block of them.
    pub(super) fn unit(self) -> (usize, usize) {
        match self {
            Self::Plain(dtype) => (1, dtype.bitsize() / 8),
            Self::Blocks(format) => (format.elements(), format.bytes()),
        }
    }

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
