//! Matrices of blocks that are written as one.

use crate::block::{BlockFormat, BlockRows};
use crate::checkpoint::stored::StoredElement;
use crate::checkpoint::tensor::NewTensor;
use crate::error::WeightError;
use crate::layout::Orientation;

/// Rows of one length, in the order of the file.
struct Rows<'a> {
    /// Format and bytes of each row.
    rows: Vec<(BlockFormat, &'a [u8])>,
    inputs: usize,
}

/// The tensor of these matrices, their outputs in this order; see [`CheckpointWriter::blocks`](super::CheckpointWriter::blocks).
pub(super) fn tensor(
    name: &str,
    orientation: Orientation,
    (matrices, order): (&[BlockRows], &[usize]),
) -> Result<NewTensor, WeightError> {
    let rows = Rows::new(matrices, order);
    let format = match rows.formats()[..] {
        [] => BlockFormat::F32,
        [format] if format.elements() > 1 && orientation == Orientation::InputOutput => {
            return Err(WeightError::TransposedBlocks { name: name.into(), format });
        }
        [format] => format,
        // Floats of 16 bits lose nothing in f32.
        ref formats if formats.iter().all(|format| format.elements() == 1) => BlockFormat::F32,
        ref formats => {
            let formats = formats.iter().map(BlockFormat::to_string).collect();
            return Err(WeightError::SeveralFormats { name: name.into(), formats });
        }
    };
    let bytes = match orientation {
        Orientation::OutputInput => rows.bytes(format),
        Orientation::InputOutput => transposed(&rows.bytes(format), rows.rows.len(), format.bytes()),
    };
    let shape = orientation.shape(rows.inputs, rows.rows.len()).to_vec();
    Ok(NewTensor { element: StoredElement::of_format(format), shape, bytes })
}

impl<'a> Rows<'a> {
    fn new(matrices: &'a [BlockRows], order: &[usize]) -> Self {
        let inputs = matrices[0].formats.inputs();
        for BlockRows { formats, bytes } in matrices {
            let (own, needed) = (formats.inputs(), formats.bytes());
            assert!(own == inputs, "CheckpointWriter::blocks: rows of {inputs} and of {own} elements");
            assert!(bytes.len() == needed, "CheckpointWriter::blocks: {} bytes for {needed}", bytes.len());
        }
        let of_matrix = |matrix: &'a BlockRows| {
            matrix.formats.rows().map(|(format, bytes)| (format, &matrix.bytes[bytes])).collect::<Vec<_>>()
        };
        let all: Vec<_> = matrices.iter().flat_map(of_matrix).collect();
        Self { rows: order.iter().map(|&row| all[row]).collect(), inputs }
    }

    /// The formats that rows have, each once.
    fn formats(&self) -> Vec<BlockFormat> {
        let has = |format: &BlockFormat| self.rows.iter().any(|(own, _)| own == format);
        BlockFormat::ALL.into_iter().filter(has).collect()
    }

    /// The rows in this format. Those in another one are floats, and become f32.
    fn bytes(&self, format: BlockFormat) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.rows.len() * (self.inputs / format.elements()) * format.bytes());
        let mut values = vec![0.0; self.inputs];
        for &(own, row) in &self.rows {
            if own == format {
                bytes.extend(row);
            } else {
                own.dequantise(row, &mut values);
                bytes.extend(format.quantise(&values));
            }
        }
        bytes
    }
}

/// The bytes of a transposed matrix whose elements have `size` bytes.
fn transposed(bytes: &[u8], outputs: usize, size: usize) -> Vec<u8> {
    let row = bytes.len() / outputs.max(1);
    let mut into = Vec::with_capacity(bytes.len());
    for element in (0..row).step_by(size) {
        (0..outputs).for_each(|output| into.extend(&bytes[output * row + element..][..size]));
    }
    into
}
