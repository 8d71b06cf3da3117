//! Which keys a query sees and what is added to its scores: one definition for every attention kernel.

use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::machine::{Unsupported, array, check_extent};

/// The score of a hidden key: the lowest finite number, so that nothing rests on infinities.
pub(crate) const HIDDEN: f32 = f32::MIN;

/// Arguments of tanh above this give 1 in f32; some drivers overflow on them.
const TANH_IS_ONE: f32 = 15.0;

/// What a layer hides by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Whether a query sees only itself and the keys before it.
    pub causal: bool,
    /// Keys that a query sees, itself included, counted back from it.
    pub window: Option<u32>,
    /// `c` of `c · tanh(score / c)`, in front of bias and mask.
    pub softcap: Option<f32>,
    /// The slot of the first query among the keys, where `bounds` does not say.
    pub start: u32,
    /// Keys that a row holds, where `bounds` does not say.
    pub end: u32,
}

/// Keys that nobody sees: `[B, S]`, not 0 hides.
#[derive(Debug, Clone)]
pub struct HiddenKeys<R: Runtime> {
    /// Integers of any width.
    pub hidden: TensorHandle<R>,
    /// For ALiBi: the position of each key, `[B, S]` of i32; the slots without.
    pub positions: Option<TensorHandle<R>>,
}

/// Pairs that are hidden: `[B or 1, N or 1, T or 1, S or 1]`, not 0 hides. Integers of the width of [`HiddenKeys`].
pub type HiddenPairs<R> = TensorHandle<R>;

/// What is added to the scores: `[B or 1, N or 1, T or 1, S or 1]`, floats. `-inf` hides.
pub type Bias<R> = TensorHandle<R>;

/// Everything that decides over a score beside query and key.
#[derive(Debug, Clone)]
pub struct MaskArguments<R: Runtime> {
    /// What the layer hides by itself.
    pub rules: Rules,
    /// `[B, 2]` of u32 or i32, dense: slot of the first query, and keys, of each row.
    pub bounds: Option<TensorHandle<R>>,
    /// Keys that nobody sees.
    pub hidden_keys: Option<HiddenKeys<R>>,
    /// Pairs that are hidden.
    pub hidden_pairs: Option<HiddenPairs<R>>,
    /// What is added to the scores.
    pub bias: Option<Bias<R>>,
    /// ALiBi slopes, `[N]` of f32: `slope · (key position - query position)` is added.
    pub slopes: Option<TensorHandle<R>>,
}

impl<R: Runtime> MaskArguments<R> {
    /// These rules and nothing else.
    pub fn new(rules: Rules) -> Self {
        Self { rules, bounds: None, hidden_keys: None, hidden_pairs: None, bias: None, slopes: None }
    }

    pub(crate) fn check(&self) -> Result<(), Unsupported> {
        let hidden = self.hidden_keys.as_ref();
        let tensors = [
            self.bounds.as_ref(),
            hidden.map(|keys| &keys.hidden),
            hidden.and_then(|keys| keys.positions.as_ref()),
            self.hidden_pairs.as_ref(),
            self.bias.as_ref(),
            self.slopes.as_ref(),
        ];
        tensors.into_iter().flatten().try_for_each(|tensor| check_extent(&[tensor]))
    }

    /// Whether the queries of one key head may see different keys.
    pub(crate) fn differs_by_row(&self, tokens: usize) -> bool {
        self.hidden_pairs.is_some() || tokens > 1 && (self.rules.causal || self.rules.window.is_some())
    }

    /// Whether a query sees a range of keys with their plain scores.
    pub(crate) fn is_range(&self) -> bool {
        let pairs = self.hidden_pairs.is_some() || self.bias.is_some() || self.slopes.is_some();
        !pairs && self.hidden_keys.is_none() && self.rules.softcap.is_none()
    }

    /// Element type of the masks.
    pub(crate) fn mask_type(&self) -> StorageType {
        let keys = self.hidden_keys.as_ref().map(|keys| keys.hidden.dtype);
        keys.or(self.hidden_pairs.as_ref().map(|pairs| pairs.dtype))
            .unwrap_or(u32::as_type_native_unchecked().storage_type())
    }

    /// Element type of the bias.
    pub(crate) fn bias_type(&self) -> StorageType {
        self.bias.as_ref().map_or(f32::as_type_native_unchecked().storage_type(), |bias| bias.dtype)
    }

    pub(crate) fn launch<M: Int, E: Float>(&self) -> MasksLaunch<M, E, R> {
        let optional = |tensor: Option<&TensorHandle<R>>| tensor.map(array);
        let hidden = self.hidden_keys.as_ref();
        let hidden_keys = hidden.map(|keys| &keys.hidden);
        let positions = hidden.and_then(|keys| keys.positions.as_ref());
        let row = |tensor: Option<&TensorHandle<R>>| tensor.map_or([0; 2], |tensor| broadcast_strides(tensor));
        let (hidden_strides, position_strides) = (row(hidden_keys), row(positions));
        MasksLaunch::new(
            self.rules.start,
            self.rules.end,
            self.rules.window.unwrap_or(0),
            self.rules.softcap.unwrap_or(1.0),
            optional(self.bounds.as_ref()).into(),
            optional(hidden_keys).into(),
            RowStridesLaunch::new(hidden_strides[0], hidden_strides[1]),
            optional(positions).into(),
            RowStridesLaunch::new(position_strides[0], position_strides[1]),
            optional(self.hidden_pairs.as_ref()).into(),
            pair_strides(self.hidden_pairs.as_ref()),
            optional(self.bias.as_ref()).into(),
            pair_strides(self.bias.as_ref()),
            optional(self.slopes.as_ref()).into(),
            RuleFlags {
                causal: self.rules.causal,
                window: self.rules.window.is_some(),
                softcap: self.rules.softcap.is_some(),
            },
        )
    }
}

/// Strides with 0 along axes of one element.
fn broadcast_strides<R: Runtime, const D: usize>(tensor: &TensorHandle<R>) -> [u32; D] {
    std::array::from_fn(|axis| if tensor.shape()[axis] == 1 { 0 } else { tensor.strides()[axis] as u32 })
}

fn pair_strides<R: Runtime>(tensor: Option<&TensorHandle<R>>) -> PairStridesLaunch<R> {
    let [batch, head, query, key] = tensor.map_or([0; 4], broadcast_strides);
    PairStridesLaunch::new(batch, head, query, key)
}

/// The rules that are compiled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RuleFlags {
    causal: bool,
    window: bool,
    softcap: bool,
}

#[derive(CubeType, CubeLaunch)]
pub(crate) struct RowStrides {
    row: u32,
    key: u32,
}

#[derive(CubeType, CubeLaunch)]
pub(crate) struct PairStrides {
    batch: u32,
    head: u32,
    query: u32,
    key: u32,
}

/// [`MaskArguments`] on the device.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Masks<M: Int, E: Float> {
    start: u32,
    end: u32,
    window: u32,
    softcap: f32,
    bounds: ComptimeOption<Array<u32>>,
    hidden_keys: ComptimeOption<Array<M>>,
    hidden_strides: RowStrides,
    positions: ComptimeOption<Array<i32>>,
    position_strides: RowStrides,
    pairs: ComptimeOption<Array<M>>,
    pair_strides: PairStrides,
    bias: ComptimeOption<Array<E>>,
    bias_strides: PairStrides,
    slopes: ComptimeOption<Array<f32>>,
    #[cube(comptime)]
    flags: RuleFlags,
}

/// Which query: its row of the batch, its head, its place among the new tokens and its slot among the keys.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Query {
    pub batch: u32,
    pub head: u32,
    pub token: u32,
    pub slot: u32,
}

#[cube]
impl<M: Int, E: Float> Masks<M, E> {
    /// The slot of the first query of a row.
    pub fn start(&self, batch: u32) -> u32 {
        #[comptime]
        match &self.bounds {
            ComptimeOption::Some(bounds) => bounds[(batch * 2) as usize],
            ComptimeOption::None => self.start,
        }
    }

    /// The keys that a row holds.
    pub fn end(&self, batch: u32) -> u32 {
        #[comptime]
        match &self.bounds {
            ComptimeOption::Some(bounds) => bounds[(batch * 2 + 1) as usize],
            ComptimeOption::None => self.end,
        }
    }

    /// The first key that a query at `slot` may see.
    pub fn first(&self, slot: u32) -> u32 {
        let mut first = 0u32.runtime();
        if comptime!(self.flags.window) {
            first = max(slot + 1, self.window) - self.window;
        }
        first
    }

    /// Behind the last key that a query at `slot` may see, of a row with `end` keys.
    pub fn behind(&self, slot: u32, end: u32) -> u32 {
        let mut behind = end;
        if comptime!(self.flags.causal) {
            behind = min(end, slot + 1);
        }
        behind
    }

    /// Whether nobody sees a key.
    pub fn hides_key(&self, batch: u32, key: u32) -> bool {
        #[comptime]
        match &self.hidden_keys {
            ComptimeOption::Some(hidden) => {
                hidden[(batch * self.hidden_strides.row + key * self.hidden_strides.key) as usize] != M::from_int(0)
            }
            ComptimeOption::None => false.runtime(),
        }
    }

    /// The score of a key that lies in the query's range and is not hidden from everybody: softcap, ALiBi, bias, and
    /// [`HIDDEN`] for a hidden pair.
    pub fn score(&self, raw: f32, query: Query, key: u32) -> f32 {
        let mut score = raw;
        if comptime!(self.flags.softcap) {
            let ratio = score / self.softcap;
            // By comparison, not by clamping: a NaN stays one.
            let ratio = select(ratio > TANH_IS_ONE, TANH_IS_ONE, ratio);
            let ratio = select(ratio < -TANH_IS_ONE, -TANH_IS_ONE, ratio);
            score = ratio.tanh() * self.softcap;
        }
        #[comptime]
        match &self.slopes {
            ComptimeOption::Some(slopes) => {
                score += slopes[query.head as usize] * self.distance(query, key);
            }
            ComptimeOption::None => {}
        }
        #[comptime]
        match &self.bias {
            ComptimeOption::Some(bias) => {
                let strides = &self.bias_strides;
                let at = query.batch * strides.batch
                    + query.head * strides.head
                    + query.token * strides.query
                    + key * strides.key;
                score += f32::cast_from(bias[at as usize]);
                score = select(score < HIDDEN, HIDDEN, score);
            }
            ComptimeOption::None => {}
        }
        #[comptime]
        match &self.pairs {
            ComptimeOption::Some(pairs) => {
                let strides = &self.pair_strides;
                let at = query.batch * strides.batch
                    + query.head * strides.head
                    + query.token * strides.query
                    + key * strides.key;
                score = select(pairs[at as usize] != M::from_int(0), HIDDEN, score);
            }
            ComptimeOption::None => {}
        }
        score
    }

    /// Key position minus query position.
    fn distance(&self, query: Query, key: u32) -> f32 {
        #[comptime]
        match &self.positions {
            ComptimeOption::Some(positions) => {
                let strides = &self.position_strides;
                let row = query.batch * strides.row;
                let last = self.end(query.batch) - 1;
                let from = positions[(row + min(query.slot, last) * strides.key) as usize];
                let to = positions[(row + key * strides.key) as usize];
                f32::cast_from(to - from)
            }
            ComptimeOption::None => f32::cast_from(key) - f32::cast_from(query.slot),
        }
    }
}
