//! Where the bits of an element are in its block.

use burn_deepspeed_core::block::{BlockFormat, IQ4_NL_VALUES, TWICE_E2M1};

/// Bits of elements: the `span` bytes from `first` on have the lowest bits of the first `span` elements, then those of the next, and so
/// on until all 8 are taken; the next `span` bytes follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Packed {
    pub first: u32,
    /// Bits of an element.
    pub bits: u32,
    pub span: u32,
}

impl Packed {
    const fn new(first: u32, bits: u32, span: u32) -> Self {
        Self { first, bits, span }
    }

    /// Elements whose bits are in the same bytes.
    pub fn period(self) -> u32 {
        self.span * 8 / self.bits
    }

    /// Elements in a word: four of each run.
    pub fn runs(self) -> u32 {
        8 / self.bits
    }

    /// The bits of four elements, in the lowest places of their bytes.
    pub fn mask(self) -> u32 {
        ((1 << self.bits) - 1) * 0x0101_0101
    }
}

/// The lower bits of the elements of a block, which are all bits in most formats.
pub(crate) fn lower(format: BlockFormat) -> Packed {
    match format {
        BlockFormat::Q4_0 | BlockFormat::IQ4_NL => Packed::new(2, 4, 16),
        BlockFormat::Q4_1 => Packed::new(4, 4, 16),
        BlockFormat::Q5_0 => Packed::new(6, 4, 16),
        BlockFormat::Q5_1 => Packed::new(8, 4, 16),
        BlockFormat::MXFP4 => Packed::new(1, 4, 16),
        BlockFormat::Q2_K => Packed::new(16, 2, 32),
        BlockFormat::Q3_K => Packed::new(32, 2, 32),
        BlockFormat::Q4_K => Packed::new(16, 4, 32),
        BlockFormat::Q5_K => Packed::new(48, 4, 32),
        BlockFormat::Q6_K => Packed::new(0, 4, 64),
        BlockFormat::Q8_0 => Packed::new(2, 8, 32),
        // A float is a block of its own.
        BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => Packed::new(0, 8, 1),
    }
}

/// The upper bits, where they are apart and packed like the lower ones.
pub(super) fn upper(format: BlockFormat) -> Option<Packed> {
    match format {
        BlockFormat::Q3_K => Some(Packed::new(0, 1, 32)),
        BlockFormat::Q5_K => Some(Packed::new(16, 1, 32)),
        BlockFormat::Q6_K => Some(Packed::new(128, 2, 32)),
        _ => None,
    }
}

/// The first of 4 bytes that have a fifth bit of each element, in their order.
pub(super) fn fifths(format: BlockFormat) -> Option<u32> {
    match format {
        BlockFormat::Q5_0 => Some(2),
        BlockFormat::Q5_1 => Some(4),
        _ => None,
    }
}

/// What an element chooses from: bytes, 128 added to each, in words.
pub(super) fn table(format: BlockFormat) -> Option<[u32; 4]> {
    let values = match format {
        BlockFormat::IQ4_NL => IQ4_NL_VALUES,
        BlockFormat::MXFP4 => TWICE_E2M1,
        _ => return None,
    };
    let byte = |at: usize| (values[at] as u8 ^ 0x80) as u32;
    Some(std::array::from_fn(|word| (0..4).fold(0, |bits, at| bits | byte(4 * word + at) << (8 * at))))
}

/// What is subtracted from the bits of an element, or from what it chose.
pub(crate) fn offset(format: BlockFormat) -> f32 {
    match format {
        BlockFormat::Q4_0 => 8.0,
        BlockFormat::Q5_0 => 16.0,
        BlockFormat::Q3_K => 4.0,
        BlockFormat::Q6_K => 32.0,
        BlockFormat::Q8_0 | BlockFormat::IQ4_NL | BlockFormat::MXFP4 => 128.0,
        _ => 0.0,
    }
}

/// Parts of a block that have a scale each.
pub(crate) fn parts(format: BlockFormat) -> usize {
    use BlockFormat::{Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};
    match format {
        Q4_K | Q5_K => 8,
        Q2_K | Q3_K | Q6_K => 16,
        _ => 1,
    }
}

/// Whether a number is added to the product of scale and element.
pub(crate) fn has_minimum(format: BlockFormat) -> bool {
    use BlockFormat::{Q2_K, Q4_1, Q4_K, Q5_1, Q5_K};
    matches!(format, Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K)
}
