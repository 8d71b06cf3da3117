//! How pairs of features and matrices are laid out in memory.

use serde::{Deserialize, Serialize};

/// Which features of a head form a rotary pair. There is no default: the layouts agree at position 0 and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RotaryLayout {
    /// Features `i` and `i + dim / 2`: GPT-NeoX, LLaMA, Mistral. DeepSpeed's `rotate_half`.
    Half,
    /// Features `2 i` and `2 i + 1`: GPT-J. DeepSpeed's `rotate_every_two`.
    Interleaved,
}

/// How a matrix is stored. DeepSpeed's `transposed_mode` is `OutputInput`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Orientation {
    /// `[in, out]`: DeepSpeed's default, GPT-2's `Conv1D`.
    InputOutput,
    /// `[out, in]`: PyTorch's `Linear`.
    OutputInput,
}

impl Orientation {
    /// Shape of a matrix from `input` to `output` features.
    pub fn shape(self, input: usize, output: usize) -> [usize; 2] {
        match self {
            Self::InputOutput => [input, output],
            Self::OutputInput => [output, input],
        }
    }
}
