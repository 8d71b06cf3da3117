//! The arguments of the masked softmax.

use burn::tensor::{Tensor, backend::Backend};

use crate::error::{check_broadcast, check_shape};

/// An additive mask, in one of the two ranks that DeepSpeed takes.
#[derive(Debug, Clone)]
pub enum AdditiveMask<B: Backend> {
    /// One number for each key, `[B, S]`.
    Keys(Tensor<B, 2>),
    /// One for each pair, `[B or 1, N or 1, T or 1, S]`.
    Pairs(Tensor<B, 4>),
}

impl<B: Backend> AdditiveMask<B> {
    /// One number for each pair, `[B or 1, N or 1, T or 1, S]`.
    pub(super) fn pairs(self) -> Tensor<B, 4> {
        match self {
            Self::Keys(mask) => {
                let [batch, keys] = mask.dims();
                mask.reshape([batch, 1, 1, keys])
            }
            Self::Pairs(mask) => mask,
        }
    }
}

/// The arguments of [`Operations::softmax`](crate::ops::Operations::softmax); start from [`Softmax::new`].
#[derive(Debug, Clone)]
pub struct Softmax<B: Backend> {
    /// `attn_scores`: `[B, N, T, S]`.
    pub scores: Tensor<B, 4>,
    /// `layer_scale`: plain factor on the scores. Default: 1.
    pub scale: f64,
    /// The bias of every head of the model, `[all heads, T or 1, S]`; this rank's start at `head_offset`.
    pub alibi: Option<Tensor<B, 3>>,
    /// First head of this rank in `alibi`. Default: 0.
    pub head_offset: usize,
    /// `attn_mask`: added to the scores. `-inf` hides; a finite number, DeepSpeed's -10000 included, is just added.
    pub mask: Option<AdditiveMask<B>>,
    /// `triangular`: the position of the first query among the keys. `Some(0)` is DeepSpeed's triangle, `Some(S - T)`
    /// that of the last T tokens; `None` hides nothing.
    pub triangular: Option<usize>,
    /// `local_attention` and `window_size`: keys that a query sees, itself included. Counted from the position that
    /// `triangular` gives, or from `S - T` without it.
    pub window: Option<usize>,
}

impl<B: Backend> Softmax<B> {
    /// A plain softmax of `scores`.
    pub fn new(scores: Tensor<B, 4>) -> Self {
        Self { scores, scale: 1.0, alibi: None, head_offset: 0, mask: None, triangular: None, window: None }
    }

    /// Panics unless all parts fit together.
    #[track_caller]
    pub(super) fn check(&self) {
        let [batch, heads, tokens, keys] = self.scores.dims();
        if let Some(alibi) = &self.alibi {
            let [all, rows, columns] = alibi.dims();
            let least = self.head_offset + heads;
            assert!(
                least <= all,
                "softmax: `alibi` has {all} heads, expected at least {least} (offset {} and {heads} heads)",
                self.head_offset
            );
            check_broadcast("softmax", "alibi", &[heads, tokens, keys], &[heads, rows, columns]);
        }
        match &self.mask {
            Some(AdditiveMask::Keys(mask)) => check_shape("softmax", "mask", &[batch, keys], &mask.dims()),
            Some(AdditiveMask::Pairs(mask)) => {
                check_broadcast("softmax", "mask", &[batch, heads, tokens, keys], &mask.dims());
            }
            None => {}
        }
    }
}
