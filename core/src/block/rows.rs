//! A matrix of blocks: the formats of its rows, and its bytes.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::BlockFormat;

/// The bytes of a matrix in memory are a multiple of this, with zeros after the last row: kernels of devices read them in words, and several
/// words at once.
pub const UNIT_BYTES: usize = 16;

/// The formats of the rows of a matrix `[out, in]`. Rows are contiguous in memory, and each is a whole number of blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowFormats {
    inputs: usize,
    /// Formats of consecutive rows, and the number of these.
    parts: Vec<(BlockFormat, usize)>,
}

/// Consecutive rows of one format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPart {
    /// Their format.
    pub format: BlockFormat,
    /// The rows.
    pub outputs: Range<usize>,
    /// Their bytes in those of the matrix.
    pub bytes: Range<usize>,
}

impl RowFormats {
    /// Every row in one format; `None` if `inputs` are no whole number of blocks, or the matrix has more bytes than memory.
    pub fn uniform(format: BlockFormat, [outputs, inputs]: [usize; 2]) -> Option<Self> {
        Self::new(inputs, std::iter::repeat_n(format, outputs))
    }

    /// Rows in these formats; `None` if `inputs` are no whole number of blocks of one of them, or the matrix has more bytes than memory.
    pub fn new(inputs: usize, formats: impl IntoIterator<Item = BlockFormat>) -> Option<Self> {
        let mut parts: Vec<(BlockFormat, usize)> = Vec::new();
        for format in formats {
            match parts.last_mut() {
                Some((last, rows)) if *last == format => *rows += 1,
                _ => parts.push((format, 1)),
            }
        }
        let made = Self { inputs, parts };
        made.checked_bytes().map(|_| made)
    }

    /// Bytes of all rows, of formats that were read from a record.
    pub fn checked_bytes(&self) -> Option<usize> {
        let part = |&(format, rows): &(BlockFormat, usize)| format.row_bytes(self.inputs)?.checked_mul(rows);
        self.parts.iter().try_fold(0usize, |all, own| all.checked_add(part(own)?))
    }

    /// Bytes of a matrix in memory: those of all rows, up to a multiple of [`UNIT_BYTES`]. `None` if that is more than memory has.
    pub fn bytes_in_memory(&self) -> Option<usize> {
        self.checked_bytes()?.checked_next_multiple_of(UNIT_BYTES)
    }

    /// Number of rows.
    pub fn outputs(&self) -> usize {
        self.parts.iter().map(|(_, rows)| rows).sum()
    }

    /// Elements of a row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> usize {
        self.parts().last().map_or(0, |part| part.bytes.end)
    }

    /// The rows by format, in order.
    pub fn parts(&self) -> impl Iterator<Item = RowPart> {
        let (mut row, mut byte) = (0, 0);
        self.parts.iter().map(move |&(format, rows)| {
            let (outputs, bytes) = (row..row + rows, byte..byte + rows * self.row_bytes(format));
            (row, byte) = (outputs.end, bytes.end);
            RowPart { format, outputs, bytes }
        })
    }

    /// Format and bytes of each row, in order.
    pub fn rows(&self) -> impl Iterator<Item = (BlockFormat, Range<usize>)> {
        self.parts().flat_map(|RowPart { format, outputs, bytes }| {
            let row = self.row_bytes(format);
            (0..outputs.len()).map(move |at| (format, bytes.start + at * row..bytes.start + (at + 1) * row))
        })
    }

    /// The bytes of a row in this format.
    fn row_bytes(&self, format: BlockFormat) -> usize {
        self.inputs / format.elements() * format.bytes()
    }

    /// The rows `outputs` by format, and their bytes in those of this matrix.
    pub fn parts_of(&self, outputs: Range<usize>) -> impl Iterator<Item = RowPart> {
        self.parts().filter_map(move |part| {
            let own = part.outputs.start.max(outputs.start)..part.outputs.end.min(outputs.end);
            let row = self.row_bytes(part.format);
            let bytes = |output: usize| part.bytes.start + (output - part.outputs.start) * row;
            (!own.is_empty()).then(|| RowPart {
                format: part.format,
                bytes: bytes(own.start)..bytes(own.end),
                outputs: own,
            })
        })
    }

    /// The rows `outputs` as a separate matrix, and their bytes in those of this one.
    pub fn narrow(&self, outputs: Range<usize>) -> (Self, Range<usize>) {
        let own: Vec<RowPart> = self.parts_of(outputs).collect();
        let bytes = own.first().map_or(0, |part| part.bytes.start)..own.last().map_or(0, |part| part.bytes.end);
        let parts = own.into_iter().map(|part| (part.format, part.outputs.len())).collect();
        (Self { inputs: self.inputs, parts }, bytes)
    }
}

/// A matrix `[out, in]` of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRows {
    /// Where each row is, and its format.
    pub formats: RowFormats,
    /// The rows.
    pub bytes: Vec<u8>,
}

impl BlockRows {
    /// Rounds a matrix of floats, `[out, in]`. `None` if `inputs` are no whole number of blocks.
    ///
    /// # Panics
    /// If `values` are not `outputs · inputs`, or the format [cannot be written](BlockFormat::can_quantise).
    pub fn quantise(values: &[f32], shape: [usize; 2], format: BlockFormat) -> Option<Self> {
        let formats = RowFormats::uniform(format, shape)?;
        assert!(values.len() == shape[0] * shape[1], "BlockRows::quantise: {} values for {shape:?}", values.len());
        Some(Self { formats, bytes: format.quantise(values) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_several_formats_are_found_and_cut() {
        use BlockFormat::{F16, Q4_0, Q8_0};
        let formats = RowFormats::new(64, [Q4_0, Q4_0, Q8_0, F16, F16]);
        let formats = formats.expect("rows of 64");
        assert_eq!((formats.outputs(), formats.bytes()), (5, 2 * 36 + 68 + 2 * 128));
        let part = |format, outputs, bytes| RowPart { format, outputs, bytes };
        let middle: Vec<_> = formats.parts_of(1..4).collect();
        assert_eq!(middle, [part(Q4_0, 1..2, 36..72), part(Q8_0, 2..3, 72..140), part(F16, 3..4, 140..268)]);
        let rows: Vec<_> = formats.rows().collect();
        assert_eq!(rows, [(Q4_0, 0..36), (Q4_0, 36..72), (Q8_0, 72..140), (F16, 140..268), (F16, 268..396)]);
        let (own, bytes) = formats.narrow(1..4);
        assert_eq!((own.outputs(), own.bytes(), bytes), (3, 232, 36..268));
        assert_eq!(RowFormats::uniform(Q4_0, [1, 40]), None);
    }
}
