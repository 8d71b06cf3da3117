//! The rows of a matrix of blocks, and their checks.

use burn_deepspeed_core::block::{BlockFormat, UNIT_BYTES};
use burn_deepspeed_core::divisor::gcd;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use crate::cube::contract::{Checked, Contract, i8_type, same_type};
use crate::cube::machine::Unsupported;

/// Consecutive rows of one format, `[out, in]`, among the bytes of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a, R: Runtime> {
    /// All bytes of the matrix, of i8, contiguous; a multiple of [`UNIT_BYTES`], with
    /// anything after the last row.
    pub bytes: &'a TensorHandle<R>,
    /// The first byte of the rows. They follow each other.
    pub first: usize,
    /// The format of the rows.
    pub format: BlockFormat,
    /// `[out, in]`; `in` is a whole number of blocks.
    pub shape: [usize; 2],
}

/// [`Blocks`], checked.
#[derive(Debug)]
pub(crate) struct CheckedBlocks<'a, R: Runtime> {
    pub bytes: Checked<'a, R>,
    pub first: usize,
    pub format: BlockFormat,
    pub row_bytes: usize,
}

impl<R: Runtime> CheckedBlocks<'_, R> {
    /// Rows begin at a multiple of this many bytes, a power of two up to [`UNIT_BYTES`].
    pub fn row_unit(&self) -> usize {
        [self.first, self.row_bytes].into_iter().fold(UNIT_BYTES, gcd)
    }
}

impl<'a, R: Runtime> Blocks<'a, R> {
    /// Checks that the rows are among the bytes.
    #[track_caller]
    pub(crate) fn check(&self, contract: &Contract<'_, R>) -> Result<CheckedBlocks<'a, R>, Unsupported> {
        let Self { bytes, first, format, shape: [outputs, inputs] } = *self;
        let [size] = contract.axes("matrix", bytes);
        let row_bytes = format.row_bytes(inputs);
        contract.require(row_bytes.is_some(), || {
            format!("rows of {inputs} elements are no whole number of blocks of {format}")
        });
        let row_bytes = row_bytes.unwrap_or_default();
        let end = row_bytes.checked_mul(outputs).and_then(|rows| rows.checked_add(first));
        contract.require(end.is_some_and(|end| end <= size), || {
            format!("`matrix` has {size} bytes, expected {outputs} rows of {row_bytes} from {first} on")
        });
        let bytes = contract.rows("matrix", bytes, &[size])?;
        same_type("matrix", &bytes, i8_type())?;
        let start = bytes.handle.offset_start.unwrap_or_default() as usize;
        for (what, size) in [("bytes of the matrix", size), ("first byte of the matrix in its buffer", start)] {
            if !size.is_multiple_of(UNIT_BYTES) {
                return Err(Unsupported::Multiple { what, size, multiple: UNIT_BYTES });
            }
        }
        Ok(CheckedBlocks { bytes, first, format, row_bytes })
    }
}
