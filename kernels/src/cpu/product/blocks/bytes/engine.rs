//! Which instructions multiply bytes, and when.

use burn_deepspeed_core::block::BlockFormat;

use crate::cpu::product::amx::has_int8;
use crate::cpu::product::blocks::dot::{self, of_format};
use crate::cpu::product::blocks::formats::{Format, Iq4Nl, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::cpu::product::blocks::k_formats::{Q2K, Q3K, Q4K, Q5K, Q6K};
use crate::cpu::product::blocks::rows::Bits;
use crate::cpu::product::panel;

/// Fewest rows of a sequence that are worth the packing of weights. `examples/products.rs` measures it.
pub(super) const FEWEST_ROWS: usize = 6;

/// Most rows of a sequence in 16 bits if each 16 weights have a scale: twice as many products become f32, and more rows are as fast in f32.
const MOST_ROWS_OF_TWO_SCALES: usize = 16;

/// Which instructions multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cpu::product::blocks) enum Engine {
    Vnni,
    Amx,
}

impl Engine {
    /// The fastest that the processor has for a sequence of this many rows, if it is faster than other kernels.
    pub fn of(format: BlockFormat, bits: Bits, sequence: usize) -> Option<Self> {
        let twice = has_two_scales(format) && bits == Bits::Sixteen;
        let most = if twice { MOST_ROWS_OF_TWO_SCALES } else { usize::MAX };
        match (FEWEST_ROWS..=most).contains(&sequence) && panel::is_available() && dot::is_available() {
            true => Some(if has_int8() { Self::Amx } else { Self::Vnni }),
            false => None,
        }
    }

    /// Turns a signed byte of a row into what the instruction takes: that of VNNI has rows without a sign.
    pub fn flip(self) -> u8 {
        if self == Self::Vnni { 0x80 } else { 0 }
    }
}

/// Whether 32 inputs have two scales.
fn has_two_scales(format: BlockFormat) -> bool {
    fn parts<F: Format>() -> usize {
        F::PARTS
    }
    of_format!(format, parts()) == Some(2)
}
