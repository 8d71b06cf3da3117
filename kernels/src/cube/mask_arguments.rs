//! Which keys a query sees and what is added to its scores, on the host.

use burn_deepspeed_core::visibility::Window;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::contract::{Checked, Contract, f32_type, same_type, whole_numbers};
use super::machine::Unsupported;
use super::masks::{MasksLaunch, PairStridesLaunch, RowStridesLaunch, RuleFlags, WindowRule};
use super::tensors::{array, broadcast_strides, presence};

/// What a layer hides by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Whether a query sees only itself and the keys before it.
    pub causal: bool,
    /// The part of the keys that a query sees; `None` for all.
    pub window: Option<Window>,
    /// `c` of `c · tanh(score / c)`, before bias and mask.
    pub softcap: Option<f32>,
    /// The slot of the first query among the keys, where `bounds` does not say.
    pub start: u32,
    /// Keys that a row holds, where `bounds` does not say.
    pub end: u32,
}

/// Keys that no query sees: `[B or 1, S or 1]`, a value other than 0 hides. S is at least the keys of the longest row.
#[derive(Debug, Clone)]
pub struct HiddenKeys<R: Runtime> {
    /// Integers of any width.
    pub hidden: TensorHandle<R>,
    /// For ALiBi: the position of each key, `[B or 1, S or 1]` of i32. Default: its slot.
    pub positions: Option<TensorHandle<R>>,
}

/// Pairs that are hidden: `[B or 1, N or 1, T or 1, S or 1]`, a value other than 0 hides. Integers of the width of
/// [`HiddenKeys`].
pub type HiddenPairs<R> = TensorHandle<R>;

/// What is added to the scores: `[B or 1, N or 1, T or 1, S or 1]`, floats. `-inf` hides.
pub type Bias<R> = TensorHandle<R>;

/// Everything that affects a score apart from query and key.
#[derive(Debug, Clone)]
pub struct MaskArguments<R: Runtime> {
    /// What the layer hides by itself.
    pub rules: Rules,
    /// `[B, 2]` of u32 or i32: slot of the first query, and number of keys, of each row. A row that claims more keys than the
    /// problem has is cut off there.
    pub bounds: Option<TensorHandle<R>>,
    /// Keys that no query sees.
    pub hidden_keys: Option<HiddenKeys<R>>,
    /// Pairs that are hidden.
    pub hidden_pairs: Option<HiddenPairs<R>>,
    /// What is added to the scores.
    pub bias: Option<Bias<R>>,
    /// ALiBi slopes, `[N]` of f32: `slope · (key position - query position)` is added.
    pub slopes: Option<TensorHandle<R>>,
    /// For [`Window::Chunk`]: the slot of each row's first token, `[B]` of u32 or i32. Default: 0.
    pub origins: Option<TensorHandle<R>>,
}

/// The sizes that masks have to fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaskSizes {
    pub batch: usize,
    pub heads: usize,
    pub tokens: usize,
    /// Keys of the longest row.
    pub keys: usize,
}

impl<R: Runtime> MaskArguments<R> {
    /// These rules and nothing else.
    pub fn new(rules: Rules) -> Self {
        Self { rules, bounds: None, hidden_keys: None, hidden_pairs: None, bias: None, slopes: None, origins: None }
    }

    /// Checks every part against the sizes of a problem.
    #[track_caller]
    pub(crate) fn check<'a>(
        &'a self,
        contract: &Contract<'_, R>,
        sizes: MaskSizes,
    ) -> Result<CheckedMasks<'a, R>, Unsupported> {
        let MaskSizes { batch, heads, tokens, keys } = sizes;
        let Rules { start, end, .. } = self.rules;
        let bounds = check_bounds(contract, self.bounds.as_ref(), batch, [start, end], [tokens, keys])?;

        let (by_key, by_pair) = ([batch, keys], [batch, heads, tokens, keys]);
        let hidden = self.hidden_keys.as_ref();
        let hidden_keys = hidden.map(|all| contract.broadcast("hidden_keys", &all.hidden, &by_key)).transpose()?;
        let positions = hidden.and_then(|all| all.positions.as_ref());
        let positions = positions.map(|all| contract.broadcast("positions", all, &by_key)).transpose()?;
        let hidden_pairs =
            self.hidden_pairs.as_ref().map(|pairs| contract.broadcast("hidden_pairs", pairs, &by_pair)).transpose()?;
        let bias = self.bias.as_ref().map(|bias| contract.broadcast("bias", bias, &by_pair)).transpose()?;
        let slopes = self.slopes.as_ref().map(|slopes| contract.rows("slopes", slopes, &[heads])).transpose()?;

        let origins = self.origins.as_ref().map(|origins| contract.rows("origins", origins, &[batch])).transpose()?;

        positions.map_or(Ok(()), |positions| whole_numbers("positions", &positions))?;
        origins.map_or(Ok(()), |origins| whole_numbers("origins", &origins))?;
        if let (Some(keys), Some(pairs)) = (&hidden_keys, &hidden_pairs) {
            same_type("hidden_pairs", pairs, keys.dtype)?;
        }
        slopes.map_or(Ok(()), |slopes| same_type("slopes", &slopes, f32_type()))?;
        for tensor in [&hidden_keys, &hidden_pairs, &bias].into_iter().flatten() {
            contract.supports(&[tensor.dtype])?;
        }
        let rules = Rules { end: bounds.end, ..self.rules };
        Ok(CheckedMasks { rules, bounds: bounds.by_row, hidden_keys, positions, hidden_pairs, bias, slopes, origins })
    }
}

/// The slots of the rows, checked.
#[derive(Debug)]
pub(crate) struct CheckedBounds<'a, R: Runtime> {
    /// First slot and end of each row, on the device.
    pub by_row: Option<Checked<'a, R>>,
    /// The end of every row, or the most that `by_row` may say.
    pub end: u32,
}

/// Checks the slots of new tokens, `start..end` in every row unless `bounds` says otherwise, against the slots that there are.
#[track_caller]
pub(crate) fn check_bounds<'a, R: Runtime>(
    contract: &Contract<'_, R>,
    bounds: Option<&'a TensorHandle<R>>,
    batch: usize,
    [start, end]: [u32; 2],
    [tokens, slots]: [usize; 2],
) -> Result<CheckedBounds<'a, R>, Unsupported> {
    if let Some(bounds) = bounds {
        let by_row = contract.exact("bounds", bounds, &[batch, 2])?;
        whole_numbers("bounds", &by_row)?;
        return Ok(CheckedBounds { by_row: Some(by_row), end: slots.min(u32::MAX as usize) as u32 });
    }
    contract.require(end as usize <= slots, || format!("`end` is {end}, expected at most {slots} slots"));
    contract.require((start as usize).saturating_add(tokens) <= u32::MAX as usize, || {
        format!("`start` is {start}, expected a slot that {tokens} tokens fit after")
    });
    Ok(CheckedBounds { by_row: None, end })
}

/// What is done to products in the range of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Adds {
    Nothing,
    /// ALiBi.
    Slopes,
    Bias,
    /// Other rules, or several.
    More,
}

/// Masks that were checked.
#[derive(Debug)]
pub(crate) struct CheckedMasks<'a, R: Runtime> {
    rules: Rules,
    bounds: Option<Checked<'a, R>>,
    hidden_keys: Option<Checked<'a, R>>,
    positions: Option<Checked<'a, R>>,
    hidden_pairs: Option<Checked<'a, R>>,
    bias: Option<Checked<'a, R>>,
    slopes: Option<Checked<'a, R>>,
    origins: Option<Checked<'a, R>>,
}

impl<R: Runtime> CheckedMasks<'_, R> {
    /// Whether keys after a query are hidden from it.
    pub fn is_causal(&self) -> bool {
        self.rules.causal
    }

    /// Whether the queries of one key head may see different keys.
    pub fn differs_by_row(&self, tokens: usize) -> bool {
        self.hidden_pairs.is_some() || tokens > 1 && (self.rules.causal || self.rules.window.is_some())
    }

    /// What scores of keys in a query's range are, apart from products.
    pub fn adds(&self) -> Adds {
        let more = self.rules.softcap.is_some() || self.hides_some();
        match (self.bias.is_some(), self.slopes.is_some()) {
            (false, false) if !more => Adds::Nothing,
            (false, true) if !more => Adds::Slopes,
            (true, false) if !more => Adds::Bias,
            _ => Adds::More,
        }
    }

    /// Whether the keys that a query sees depend on more than its slot: rows have bounds of their own, or there is a window.
    pub fn has_ranges(&self) -> bool {
        self.bounds.is_some() || self.rules.window.is_some()
    }

    /// Whether keys in a query's range may be hidden, other than by a bias.
    pub fn hides_some(&self) -> bool {
        self.hidden_keys.is_some() || self.hidden_pairs.is_some()
    }

    /// Whether some keys may be hidden from every query.
    pub fn hides_keys(&self) -> bool {
        self.hidden_keys.is_some()
    }

    /// Whether there is a bias for each key, and every `size` of a query can be read as a vector.
    pub fn has_bias_vectors(&self, size: usize) -> bool {
        self.bias.is_some_and(|bias| {
            let [outer @ .., key]: [usize; 4] = broadcast_strides(bias);
            key == 1 && outer.iter().all(|stride| stride.is_multiple_of(size))
        })
    }

    /// Element type of the masks.
    pub fn mask_type(&self) -> StorageType {
        let mask = self.hidden_keys.or(self.hidden_pairs);
        mask.map_or(u32::as_type_native_unchecked().storage_type(), |mask| mask.dtype)
    }

    /// Element type of the bias.
    pub fn bias_type(&self) -> StorageType {
        self.bias.map_or(f32_type(), |bias| bias.dtype)
    }

    /// The argument of a kernel.
    pub fn launch<M: Int, E: Float>(&self) -> MasksLaunch<M, E, R> {
        let Rules { causal, window, softcap, start, end } = self.rules;
        // Only chunks read the origins.
        let origins = self.origins.filter(|_| matches!(window, Some(Window::Chunk(_))));
        let tensors =
            [self.bounds, self.hidden_keys, self.positions, self.hidden_pairs, self.bias, self.slopes, origins];
        let present = presence(&tensors.map(|tensor| tensor.is_some()));
        let (rule, size) = window_rule(window);
        MasksLaunch::new(
            start,
            end,
            size,
            softcap.unwrap_or(1.0),
            self.bounds.map(array).into(),
            row_strides(self.bounds),
            self.hidden_keys.map(array).into(),
            row_strides(self.hidden_keys),
            self.positions.map(array).into(),
            row_strides(self.positions),
            self.hidden_pairs.map(array).into(),
            pair_strides(self.hidden_pairs),
            self.bias.map(array).into(),
            pair_strides(self.bias),
            self.slopes.map(array).into(),
            origins.map(array).into(),
            RuleFlags { causal, window: rule, softcap: softcap.is_some(), present },
        )
    }
}

/// A window as the kernels take it. One that is wider than any row hides nothing, and sums of slots and sizes do not overflow.
fn window_rule(window: Option<Window>) -> (WindowRule, u32) {
    let (rule, size) = match window {
        None => (WindowRule::All, 0),
        Some(Window::Back(keys)) => (WindowRule::Back, keys),
        Some(Window::Around(reach)) => (WindowRule::Around, reach),
        Some(Window::Chunk(size)) => (WindowRule::Chunk, size.max(1)),
    };
    (rule, u32::try_from(size).unwrap_or(u32::MAX).min(u32::MAX / 2))
}

pub(crate) fn row_strides<R: Runtime>(tensor: Option<Checked<'_, R>>) -> RowStridesLaunch<R> {
    let [row, key] = tensor.map_or([0; 2], broadcast_strides).map(|stride| stride as u32);
    RowStridesLaunch::new(row, key)
}

fn pair_strides<R: Runtime>(tensor: Option<Checked<'_, R>>) -> PairStridesLaunch<R> {
    let [batch, head, query, key] = tensor.map_or([0; 4], broadcast_strides).map(|stride| stride as u32);
    PairStridesLaunch::new(batch, head, query, key)
}
