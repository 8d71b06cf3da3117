//! Which keys a query sees and what is added to its scores, on the device: one definition for every attention kernel.

use cubecl::prelude::*;

/// The score of a hidden key: the lowest finite number, so that nothing depends on infinities.
pub(crate) const HIDDEN: f32 = f32::MIN;

/// Arguments of tanh above this give 1 in f32; some drivers overflow on them.
const TANH_IS_ONE: f32 = 15.0;

/// Which part of the keys a query sees; the size is a scalar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum WindowRule {
    All,
    Back,
    Around,
    Chunk,
}

/// The rules that are compiled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RuleFlags {
    pub causal: bool,
    pub window: WindowRule,
    pub softcap: bool,
    /// Which tensors are there; see [`presence`](super::tensors::presence).
    pub present: u32,
}

#[derive(CubeType, CubeLaunch)]
pub(crate) struct RowStrides {
    pub row: u32,
    pub key: u32,
}

#[derive(CubeType, CubeLaunch)]
pub(crate) struct PairStrides {
    batch: u32,
    head: u32,
    query: u32,
    key: u32,
}

/// The checked [`MaskArguments`](super::MaskArguments).
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Masks<M: Int, E: Float> {
    /// The slot of the first query, where `bounds` does not say.
    start: u32,
    /// The keys of every row, or with `bounds` the most that a row may have: masks and cache hold that many.
    end: u32,
    window: u32,
    softcap: f32,
    bounds: ComptimeOption<Array<u32>>,
    bounds_strides: RowStrides,
    hidden_keys: ComptimeOption<Array<M>>,
    hidden_strides: RowStrides,
    positions: ComptimeOption<Array<i32>>,
    position_strides: RowStrides,
    pairs: ComptimeOption<Array<M>>,
    pair_strides: PairStrides,
    bias: ComptimeOption<Array<E>>,
    bias_strides: PairStrides,
    slopes: ComptimeOption<Array<f32>>,
    /// The slot of the first token of each row, for chunks.
    origins: ComptimeOption<Array<u32>>,
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
            ComptimeOption::Some(bounds) => bounds[(batch * self.bounds_strides.row) as usize],
            ComptimeOption::None => self.start,
        }
    }

    /// The keys that a row holds. The host has not checked those of `bounds`: no value may lead to a read outside the tensors.
    pub fn end(&self, batch: u32) -> u32 {
        #[comptime]
        match &self.bounds {
            ComptimeOption::Some(bounds) => {
                let at = batch * self.bounds_strides.row + self.bounds_strides.key;
                min(bounds[at as usize], self.end)
            }
            ComptimeOption::None => self.end,
        }
    }

    /// The first key that a query at `slot` may see, in the row of the batch that the cube works on.
    pub fn first(&self, slot: u32) -> u32 {
        let mut first = 0u32.runtime();
        if comptime!(self.flags.window == WindowRule::Back) {
            first = max(slot + 1, self.window) - self.window;
        }
        if comptime!(self.flags.window == WindowRule::Around) {
            first = max(slot, self.window) - self.window;
        }
        if comptime!(self.flags.window == WindowRule::Chunk) {
            let origin = self.origin();
            let before = max(slot, origin) - origin;
            first = select(slot < origin, 0u32, origin + before / self.window * self.window);
        }
        first
    }

    /// The end of the keys that a query at `slot` may see, of a row with `end` keys.
    pub fn last_end(&self, slot: u32, end: u32) -> u32 {
        let mut limit = end;
        if comptime!(self.flags.causal) {
            limit = min(end, slot + 1);
        } else if comptime!(self.flags.window == WindowRule::Around) {
            limit = min(end, slot + self.window + 1);
        } else if comptime!(self.flags.window == WindowRule::Chunk) {
            let origin = self.origin();
            let own = self.first(slot) + self.window;
            limit = min(end, select(slot < origin, origin, own));
        }
        limit
    }

    /// The slot of the first token of the row that the cube works on. The host has not checked it: keys are bounded by the end.
    fn origin(&self) -> u32 {
        #[comptime]
        match &self.origins {
            ComptimeOption::Some(origins) => origins[CUBE_POS_Z as usize],
            ComptimeOption::None => 0u32.runtime(),
        }
    }

    /// Whether no query sees a key.
    pub fn hides_key(&self, batch: u32, key: u32) -> bool {
        #[comptime]
        match &self.hidden_keys {
            ComptimeOption::Some(hidden) => {
                hidden[(batch * self.hidden_strides.row + key * self.hidden_strides.key) as usize] != M::from_int(0)
            }
            ComptimeOption::None => false.runtime(),
        }
    }

    /// A score after the softcap.
    pub fn capped(&self, raw: f32) -> f32 {
        let mut score = raw;
        if comptime!(self.flags.softcap) {
            let ratio = score / self.softcap;
            // By comparison, not by clamping: a NaN stays one.
            let ratio = select(ratio > TANH_IS_ONE, TANH_IS_ONE, ratio);
            let ratio = select(ratio < -TANH_IS_ONE, -TANH_IS_ONE, ratio);
            score = ratio.tanh() * self.softcap;
        }
        score
    }

    /// The ALiBi slope of a head; 0 without ALiBi.
    pub fn slope(&self, head: u32) -> f32 {
        #[comptime]
        match &self.slopes {
            ComptimeOption::Some(slopes) => slopes[head as usize],
            ComptimeOption::None => 0.0f32.runtime(),
        }
    }

    /// A scaled product with everything that is added to it, by a slope and a bias that were read before.
    pub fn add(&self, raw: f32, slope: f32, distance: f32, bias: f32) -> f32 {
        let mut score = self.capped(raw);
        #[comptime]
        match &self.slopes {
            ComptimeOption::Some(_) => {
                score = fma(slope, distance, score);
            }
            ComptimeOption::None => {}
        }
        #[comptime]
        match &self.bias {
            ComptimeOption::Some(_) => {
                score += bias;
            }
            ComptimeOption::None => {}
        }
        score
    }

    /// Where the biases of a query begin.
    pub fn bias_place(&self, query: Query) -> u32 {
        let strides = &self.bias_strides;
        query.batch * strides.batch + query.head * strides.head + query.token * strides.query
    }

    /// The biases of four keys of a query whose biases begin at `place`; zeros without a bias. If `quads`, the keys from `key + further` on,
    /// and these are a whole vector; otherwise that key and the next one, and those 8 keys on.
    pub fn biases(&self, place: u32, key: u32, further: u32, #[comptime] quads: bool) -> Vector<f32, Const<4>> {
        let mut biases = Vector::<f32, Const<4>>::new(0.0f32);
        #[comptime]
        match &self.bias {
            ComptimeOption::Some(bias) => {
                if comptime!(quads) {
                    // What is constant stays apart, as part of the address.
                    let at = ((place + key) / 4) as usize * 4 + further as usize;
                    let four = bias.slice(at, at + 4).into_vectorized().with_vector_size::<Const<4>>();
                    biases = Vector::cast_from(four[0usize]);
                } else {
                    #[unroll]
                    for e in 0..4u32 {
                        let at = place + (key + further + e / 2 * 8 + e % 2) * self.bias_strides.key;
                        biases[e as usize] = f32::cast_from(bias[at as usize]);
                    }
                }
            }
            ComptimeOption::None => {}
        }
        biases
    }

    /// The score of a key that is in the query's range and not hidden from every query: softcap, ALiBi, bias, and
    /// [`HIDDEN`] for a hidden pair.
    pub fn score(&self, raw: f32, query: Query, key: u32) -> f32 {
        let mut score = self.capped(raw);
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
                let at = self.bias_place(query) + key * self.bias_strides.key;
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
