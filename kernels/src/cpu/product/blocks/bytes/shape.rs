//! The sizes of a product.

use crate::cpu::product::blocks::formats::Format;
use crate::cpu::product::blocks::rows::CHUNK;

/// The sizes of a product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Chunks of 32 inputs, an even number: the last may be padding.
    pub chunks: usize,
    /// Scales of a chunk, 1 or 2. The inputs of one are a step.
    pub parts: usize,
    /// Whether outputs have minima.
    pub minima: bool,
}

impl Shape {
    pub fn of<F: Format>(inputs: usize) -> Self {
        Self { chunks: inputs.div_ceil(CHUNK).next_multiple_of(2), parts: F::PARTS, minima: F::MINIMA }
    }

    pub fn steps(self) -> usize {
        self.chunks * self.parts
    }

    /// Inputs of a step.
    pub fn depth(self) -> usize {
        CHUNK / self.parts
    }

    /// The chunk of a step, and the first of its inputs in the chunk.
    pub fn place(self, step: usize) -> (usize, usize) {
        (step / self.parts, step % self.parts * self.depth())
    }
}
