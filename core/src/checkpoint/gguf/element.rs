//! The numbers that `ggml` gives to element types.

use safetensors::Dtype;

use super::source::Problem;
use crate::block::BlockFormat;
use crate::checkpoint::stored::StoredElement;

use BlockFormat::*;
use StoredElement::{Blocks, Plain};

/// Every type that is read and written, with its number.
const NUMBERS: [(u32, StoredElement); 20] = [
    (0, Plain(Dtype::F32)),
    (1, Plain(Dtype::F16)),
    (2, Blocks(Q4_0)),
    (3, Blocks(Q4_1)),
    (6, Blocks(Q5_0)),
    (7, Blocks(Q5_1)),
    (8, Blocks(Q8_0)),
    (10, Blocks(Q2_K)),
    (11, Blocks(Q3_K)),
    (12, Blocks(Q4_K)),
    (13, Blocks(Q5_K)),
    (14, Blocks(Q6_K)),
    (20, Blocks(IQ4_NL)),
    (24, Plain(Dtype::I8)),
    (25, Plain(Dtype::I16)),
    (26, Plain(Dtype::I32)),
    (27, Plain(Dtype::I64)),
    (28, Plain(Dtype::F64)),
    (30, Plain(Dtype::BF16)),
    (39, Blocks(MXFP4)),
];

/// The number of an element type; `None` for one that GGUF does not have.
pub(super) fn number(element: StoredElement) -> Option<u32> {
    NUMBERS.iter().find(|(_, own)| *own == element).map(|(number, _)| *number)
}

/// The element type of a number.
pub(super) fn element(number: u32) -> Result<StoredElement, Problem> {
    if let Some((_, element)) = NUMBERS.iter().find(|(own, _)| *own == number) {
        return Ok(*element);
    }
    let name = match number {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        _ => return Err(format!("has type {number}, which is unknown")),
    };
    let read: Vec<String> = BlockFormat::ALL.iter().map(BlockFormat::to_string).collect();
    Err(format!("has type {name}, which is not read; {} are", read.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_of_blocks_has_a_number() {
        for format in BlockFormat::ALL {
            let stored = StoredElement::of_format(format);
            assert_eq!(number(stored).map(element), Some(Ok(stored)), "{format}");
        }
        assert_eq!(number(Plain(Dtype::U8)), None);
    }
}
