//! The keys, or the values, of some slots of one head: their products with queries, and their weighted sums. Each is read once from memory, in
//! place; the rows of queries take turns with a few of them, two rows at a time, while they are in the first-level cache.

use std::ops::Range;

use pulp::Simd;

use super::attention::Heads;
use super::element::Element;
use super::interval::Interval;
use super::stream::{LINE, add, dot, prefetch_near};

/// Keys that are multiplied with a query together.
const KEYS: usize = 4;

/// Bytes of values that all rows add before the next ones: less than a first-level cache holds.
const TOGETHER: usize = 16 << 10;

/// Bytes between what is read and what is prefetched. Hardware prefetchers stop at the end of a page, and lose interleaved streams.
const AHEAD: usize = 4 << 10;

/// What is stored in some slots of one head: in an interval of them, or else in those that are kept.
#[derive(Clone, Copy)]
pub(super) struct InSlots<'a, E, const INTERVAL: bool> {
    /// From the first of these slots on if they are an interval, else from the first slot of the head on.
    elements: &'a [E],
    /// From one slot to the next.
    stride: usize,
    features: usize,
    count: usize,
    /// Those that are kept.
    kept: &'a [usize],
    /// Slots between what is read and what is prefetched.
    ahead: usize,
    /// Cache lines of a slot.
    lines: usize,
}

impl<'a, E: Element> InSlots<'a, E, true> {
    /// What is stored in every slot of an interval that is not empty.
    ///
    /// # Panics
    /// If the head has no such slots.
    #[inline(always)]
    pub fn of_interval(heads: Heads<'a, E>, [batch, head]: [usize; 2], features: usize, slots: Interval) -> Self {
        let first = batch * heads.batch + head * heads.head + slots.start * heads.token;
        let elements = &heads.elements[first..];
        // The slots that follow are prefetched.
        assert!((slots.len() - 1) * heads.token + features <= elements.len(), "slots {slots:?} of a head");
        Self::new(elements, heads.token, features, slots.len(), &[])
    }
}

impl<'a, E: Element> InSlots<'a, E, false> {
    /// What is stored in these slots.
    #[inline(always)]
    pub fn of_kept(heads: Heads<'a, E>, [batch, head]: [usize; 2], features: usize, kept: &'a [usize]) -> Self {
        let elements = &heads.elements[batch * heads.batch + head * heads.head..];
        Self::new(elements, heads.token, features, kept.len(), kept)
    }
}

impl<'a, E: Element, const INTERVAL: bool> InSlots<'a, E, INTERVAL> {
    #[inline(always)]
    fn new(elements: &'a [E], stride: usize, features: usize, count: usize, kept: &'a [usize]) -> Self {
        let bytes = (features * size_of::<E>()).max(1);
        let ahead = (AHEAD / bytes.max(LINE)).max(KEYS);
        Self { elements, stride, features, count, kept, ahead, lines: bytes.div_ceil(LINE) }
    }

    #[inline(always)]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The prefetches for some slots, divided over some turns.
    #[inline(always)]
    pub fn turns(&self, slots: Range<usize>, turns: usize) -> Turns {
        Turns { slots, turns, turn: 0 }
    }

    #[inline(always)]
    pub fn get(&self, at: usize) -> &'a [E] {
        if INTERVAL {
            assert!(at < self.count);
            let first = at * self.stride;
            // SAFETY: `of_interval` has checked the last of the slots.
            return unsafe { self.elements.get_unchecked(first..first + self.features) };
        }
        &self.elements[self.kept[at] * self.stride..][..self.features]
    }

    /// Prefetches what is read some time after `at`. After the last of these slots, it is in those of the next block.
    #[inline(always)]
    fn prefetch(&self, at: usize) {
        let ahead = at + self.ahead;
        let slot = if INTERVAL { ahead } else { self.kept[ahead.min(self.count - 1)] };
        let first = slot * self.stride;
        prefetch_near(self.elements, first);
        for line in 1..self.lines {
            prefetch_near(self.elements, first + line * (LINE / size_of::<E>()));
        }
    }

    /// The products with each of `queries`, `[rows, features]`, into the first columns of `scores`, `[rows, stride]`.
    #[inline(always)]
    pub fn products<S: Simd>(&self, simd: S, queries: &[f32], scores: &mut [f32], stride: usize) {
        let count = self.count;
        let whole = count / KEYS * KEYS;
        for at in (0..whole).step_by(KEYS) {
            self.some_products::<S, KEYS>(simd, at, queries, scores, stride);
        }
        for at in whole..count {
            self.some_products::<S, 1>(simd, at, queries, scores, stride);
        }
    }

    /// The products with `N` of the slots, from `at` on.
    #[inline(always)]
    fn some_products<S: Simd, const N: usize>(
        &self,
        simd: S,
        at: usize,
        queries: &[f32],
        scores: &mut [f32],
        stride: usize,
    ) {
        let mut runs = [&[][..]; N];
        for (n, run) in runs.iter_mut().enumerate() {
            *run = self.get(at + n);
        }
        let mut turns = Turns::new(at..at + N, queries.len() / self.features);
        let mut queries = queries.chunks_exact(2 * self.features);
        let mut scores = scores.chunks_exact_mut(2 * stride);
        for (queries, scores) in (&mut queries).zip(&mut scores) {
            turns.prefetch(self);
            let (one, other) = queries.split_at(self.features);
            let products = dot(simd, runs, [one, other], None);
            scores[at..at + N].copy_from_slice(&products[0]);
            scores[stride + at..][..N].copy_from_slice(&products[1]);
        }
        if !queries.remainder().is_empty() {
            turns.prefetch(self);
            let [products] = dot(simd, runs, [queries.remainder()], None);
            scores.into_remainder()[at..at + N].copy_from_slice(&products);
        }
    }

    /// Adds what the slots hold to each of `sums`, `[rows, features]`, times its factor in the first columns of `factors`,
    /// `[rows, stride]`.
    #[inline(always)]
    pub fn add_to<S: Simd>(&self, simd: S, factors: &[f32], stride: usize, sums: &mut [f32]) {
        let (count, rows) = (self.count, factors.len() / stride);
        // One row reads each of them once anyway.
        let together = if rows == 1 { count } else { (TOGETHER / (self.features * size_of::<E>()).max(1)).max(1) };
        for start in (0..count).step_by(together) {
            let some = start..count.min(start + together);
            let mut turns = Turns::new(some.clone(), rows);
            let mut factors = factors.chunks_exact(2 * stride);
            let mut sums = sums.chunks_exact_mut(2 * self.features);
            for (factors, sums) in (&mut factors).zip(&mut sums) {
                let (one, other) = factors.split_at(stride);
                let (to_one, to_other) = sums.split_at_mut(self.features);
                self.add_some(simd, turns.next(), some.clone(), [one, other], [to_one, to_other]);
            }
            let (factors, sums) = (factors.remainder(), sums.into_remainder());
            if !factors.is_empty() {
                self.add_some(simd, turns.next(), some, [factors], [sums]);
            }
        }
    }

    /// Adds to `M` rows what `some` slots hold, and prefetches what is read some time after `fetched`.
    #[inline(always)]
    fn add_some<S: Simd, const M: usize>(
        &self,
        simd: S,
        fetched: Range<usize>,
        some: Range<usize>,
        factors: [&[f32]; M],
        mut sums: [&mut [f32]; M],
    ) {
        let vectors = self.features / S::F32_LANES;
        let mut done = 0;
        if M == 1 {
            for _ in 0..vectors / 8 {
                self.add_vectors::<S, M, 8>(simd, done, &fetched, &some, factors, &mut sums);
                done += 8;
            }
        }
        while vectors - done >= 4 {
            self.add_vectors::<S, M, 4>(simd, done, &fetched, &some, factors, &mut sums);
            done += 4;
        }
        while done < vectors {
            self.add_vectors::<S, M, 1>(simd, done, &fetched, &some, factors, &mut sums);
            done += 1;
        }
        let done = done * S::F32_LANES;
        if done < self.features {
            for at in some {
                let rest = &self.get(at)[done..];
                for m in 0..M {
                    for (sum, element) in sums[m][done..].iter_mut().zip(rest) {
                        *sum += element.widen() * factors[m][at];
                    }
                }
            }
        }
    }

    /// The same for `W` vectors from `first` on, with the sums in registers.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "several arrays at one index")]
    fn add_vectors<S: Simd, const M: usize, const W: usize>(
        &self,
        simd: S,
        first: usize,
        fetched: &Range<usize>,
        some: &Range<usize>,
        factors: [&[f32]; M],
        sums: &mut [&mut [f32]; M],
    ) {
        let part = first * S::F32_LANES..(first + W) * S::F32_LANES;
        let mut totals = [[simd.splat_f32s(0.0); W]; M];
        for m in 0..M {
            totals[m].copy_from_slice(S::as_simd_f32s(&sums[m][part.clone()]).0);
        }
        for at in some.clone() {
            if first == 0 && at.wrapping_sub(fetched.start) < fetched.len() {
                self.prefetch(at);
            }
            let run = E::run::<S>(&self.get(at)[part.clone()], W);
            let mut splats = [simd.splat_f32s(0.0); M];
            for m in 0..M {
                splats[m] = simd.splat_f32s(factors[m][at]);
            }
            for w in 0..W {
                // SAFETY: the run has `W` vectors.
                let value = unsafe { E::vector(simd, run, w) };
                for m in 0..M {
                    totals[m][w] = simd.mul_add_e_f32s(value, splats[m], totals[m][w]);
                }
            }
        }
        for m in 0..M {
            S::as_mut_simd_f32s(&mut sums[m][part.clone()]).0.copy_from_slice(&totals[m]);
        }
    }

    /// Adds one slot to one row.
    #[inline(always)]
    pub fn add_one<S: Simd>(&self, simd: S, at: usize, factor: f32, sums: &mut [f32]) {
        add(simd, [self.get(at)], [&[factor]], [sums]);
    }
}

/// Divides slots over the turns of the rows, for prefetches: requested all together, they would wait for each other.
pub(super) struct Turns {
    slots: Range<usize>,
    turns: usize,
    turn: usize,
}

impl Turns {
    #[inline(always)]
    fn new(slots: Range<usize>, rows: usize) -> Self {
        Self { slots, turns: rows.div_ceil(2), turn: 0 }
    }

    /// The slots of the next turn.
    #[inline(always)]
    fn next(&mut self) -> Range<usize> {
        let (turn, len) = (self.turn, self.slots.len());
        self.turn += 1;
        self.slots.start + turn * len / self.turns..self.slots.start + (turn + 1) * len / self.turns
    }

    #[inline(always)]
    pub fn prefetch<E: Element, const INTERVAL: bool>(&mut self, of: &InSlots<'_, E, INTERVAL>) {
        for at in self.next() {
            of.prefetch(at);
        }
    }
}
