//! Which keys a query may not see. Masks are structural: no large negative number, and no bool whose meaning must be guessed.

use burn::tensor::{Bool, DType, FloatDType, Int, Tensor, backend::Backend};

use crate::error::{check_broadcast, check_shape};
use crate::zeros::flags;

/// What is hidden in addition to the causal triangle and the window, which a layer applies itself, and what is added to the
/// scores.
///
/// Start from [`none`](Self::none), [`keep`](Self::keep) or [`hide`](Self::hide) and refine. Hidden keys never affect the
/// result, even if they contain NaN; a query that sees no key returns zeros.
///
/// ```
/// # use burn_ndarray::NdArray;
/// use burn::tensor::{Int, Tensor};
/// use burn_deepspeed::AttentionMask;
///
/// // the padding mask of a tokenizer: 1 marks a real token
/// let padding = Tensor::<NdArray, 2, Int>::from_data([[0, 1, 1], [1, 1, 1]], &Default::default());
/// let mask = AttentionMask::from_padding(padding);
/// # let _: AttentionMask<NdArray> = mask;
/// ```
#[derive(Debug, Clone)]
pub struct AttentionMask<B: Backend> {
    hidden_keys: Option<Tensor<B, 2, Bool>>,
    hidden_pairs: Option<Tensor<B, 4, Bool>>,
    bias: Option<Tensor<B, 4>>,
}

impl<B: Backend> Default for AttentionMask<B> {
    fn default() -> Self {
        Self::none()
    }
}

impl<B: Backend> AttentionMask<B> {
    /// Hides nothing.
    pub fn none() -> Self {
        Self { hidden_keys: None, hidden_pairs: None, bias: None }
    }

    /// Hides the keys that are false. `[B, S]`, where S counts the cached keys too.
    pub fn keep(keys: Tensor<B, 2, Bool>) -> Self {
        Self::hide(flags(keys, Tensor::bool_not))
    }

    /// Hides the keys that are true. `[B, S]`, where S counts the cached keys too.
    pub fn hide(keys: Tensor<B, 2, Bool>) -> Self {
        Self { hidden_keys: Some(keys), ..Self::none() }
    }

    /// Hides the keys that are 0 in a tokenizer's padding mask, `[B, S]`; any other value is a real token.
    pub fn from_padding(mask: Tensor<B, 2, Int>) -> Self {
        Self::hide(flags(mask, |mask| mask.equal_elem(0)))
    }

    /// An additive mask as `transformers` and DeepSpeed build them, `[B or 1, N or 1, T or 1, S]`. Values at or below half of
    /// the lowest number of its dtype hide; the others are a bias. DeepSpeed's -10000 is above that limit and stays a bias;
    /// pass its 0/1 mask to [`from_padding`](Self::from_padding) instead.
    pub fn from_additive(mask: Tensor<B, 4>) -> Self {
        let limit = match mask.dtype() {
            DType::F16 => f64::from(half::f16::MIN) / 2.0,
            _ => f64::from(f32::MIN) / 2.0,
        };
        let hidden = flags(mask.clone(), |mask| mask.lower_equal_elem(limit));
        let bias = if mask.shape().num_elements() == 0 { mask } else { mask.mask_fill(hidden.clone(), 0.0) };
        Self { hidden_pairs: Some(hidden), bias: Some(bias), hidden_keys: None }
    }

    /// Also hides the pairs of query and key that are true. `[B or 1, N or 1, T or 1, S]`.
    ///
    /// # Panics
    /// If the mask already hides pairs.
    pub fn and_hide_pairs(mut self, pairs: Tensor<B, 4, Bool>) -> Self {
        assert!(
            self.hidden_pairs.is_none(),
            "AttentionMask::and_hide_pairs: the mask already hides pairs; combine them first"
        );
        self.hidden_pairs = Some(pairs);
        self
    }

    /// Also hides the pairs of query and key that are false. `[B or 1, N or 1, T or 1, S]`.
    ///
    /// # Panics
    /// If the mask already hides pairs.
    pub fn and_keep_pairs(self, pairs: Tensor<B, 4, Bool>) -> Self {
        self.and_hide_pairs(flags(pairs, Tensor::bool_not))
    }

    /// Adds `bias` to the scaled scores. `[B or 1, N or 1, T or 1, S]`; `-inf` hides.
    pub fn with_bias(mut self, bias: Tensor<B, 4>) -> Self {
        self.bias = Some(match self.bias {
            Some(before) => before + bias,
            None => bias,
        });
        self
    }

    /// The hidden keys, `[B, S]`; true hides.
    pub fn hidden_keys(&self) -> Option<&Tensor<B, 2, Bool>> {
        self.hidden_keys.as_ref()
    }

    /// The hidden pairs, `[B or 1, N or 1, T or 1, S]`; true hides.
    pub fn hidden_pairs(&self) -> Option<&Tensor<B, 4, Bool>> {
        self.hidden_pairs.as_ref()
    }

    /// Whether a bias is added to the scores.
    pub fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// The bias, in f32: `[B or 1, N or 1, T or 1, S]`.
    pub fn bias(&self) -> Option<Tensor<B, 4>> {
        self.bias.clone().map(|bias| bias.cast(FloatDType::F32))
    }

    /// Panics unless every part broadcasts to scores of `[B, N, T, S]`.
    #[track_caller]
    pub(crate) fn check(&self, operation: &str, [batch, heads, tokens, keys]: [usize; 4]) {
        if let Some(hidden) = &self.hidden_keys {
            check_shape(operation, "mask over keys", &[batch, keys], &hidden.dims());
        }
        if let Some(hidden) = &self.hidden_pairs {
            check_broadcast(operation, "mask over pairs", &[batch, heads, tokens, keys], &hidden.dims());
        }
        if let Some(bias) = &self.bias {
            check_broadcast(operation, "bias", &[batch, heads, tokens, keys], &bias.dims());
        }
    }
}
