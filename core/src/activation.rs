//! The activations of MLPs that kernels have.

/// An activation, applied to each element on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · (1 + erf(x / √2)) / 2`: the exact GELU, <https://arxiv.org/abs/1606.08415>. The activation in BERT's MLP.
    Gelu,
    /// `x · (1 + tanh(√(2 / π) · (x + 0.044715 · x³))) / 2`: the approximation of the same paper. GPT-2's and Gemma's.
    GeluTanh,
    /// `x / (1 + e^(-x))`, <https://arxiv.org/abs/1702.03118>: LLaMA's.
    Silu,
}
