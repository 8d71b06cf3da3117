//! Heads of a packed projection, turned by their positions and put where they belong: queries beside each other, keys and
//! values into the cache, in f32 or int8. Each is read once and written once.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::simd::round;
use super::{Disjoint, with_room};

/// Largest element of int8: the range is symmetric, so -128 is not used.
const LARGEST: f32 = 127.0;

/// Elements of a task, so that a task is worth a thread.
const TASK: usize = 1 << 14;

/// Which features of a head form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Features `i` and `i + half`.
    Half,
    /// Features `2 i` and `2 i + 1`.
    Interleaved,
}

/// Cosine and sine of each token, `[batch, tokens, half]` each: rotary positions (arXiv:2104.09864).
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Pairs that turn; features behind the last pass.
    pub half: usize,
    /// Which features form a pair.
    pub pairs: Pairs,
}

/// The arguments of [`scatter`].
#[derive(Debug, Clone, Copy)]
pub struct Scatter<'a> {
    /// `[batch, tokens, width]`.
    pub input: &'a [f32],
    /// Features of a token.
    pub width: usize,
    /// The first feature of the first head.
    pub first: usize,
    /// Heads, one behind the other.
    pub heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// New tokens of each row.
    pub tokens: usize,
    /// By what the heads turn.
    pub rotation: Option<Rotation<'a>>,
    /// Where they go.
    pub places: Places<'a>,
}

/// A place for each token of each head.
#[derive(Debug, Clone, Copy)]
pub enum Places<'a> {
    /// `[batch, tokens, heads, head_dim]`.
    Beside,
    /// `[batch, heads, slots, head_dim]`.
    Slots {
        /// Slots of a head.
        slots: usize,
        /// The slot of each row's first token.
        starts: &'a [usize],
        /// Tokens that each row keeps, from the first on.
        counts: &'a [usize],
    },
}

/// Copies the heads to their places in `output`, turned; the rest of it stays as it is.
///
/// # Panics
/// If a slice does not have the length that the sizes say, or a token has no slot.
pub fn scatter(problem: &Scatter<'_>, output: &mut [f32]) {
    let heads = problem.check();
    check_len("output", output.len(), heads * problem.head_dim);
    run(problem, &F32 { elements: Disjoint::new(output), head_dim: problem.head_dim });
}

/// The same in int8: to `elements` what [`scatter`] writes, rounded to whole numbers, and to `scales`, one for each head of each
/// place, what they are to be multiplied with.
///
/// A scale is the largest magnitude of its head over 127; elements are rounded to the nearest, halves to the even one. A head with
/// an infinity or NaN has a scale of NaN.
///
/// # Panics
/// As [`scatter`].
pub fn scatter_int8(problem: &Scatter<'_>, elements: &mut [i8], scales: &mut [f32]) {
    let heads = problem.check();
    check_len("elements", elements.len(), heads * problem.head_dim);
    check_len("scales", scales.len(), heads);
    let head_dim = problem.head_dim;
    run(problem, &Int8 { elements: Disjoint::new(elements), scales: Disjoint::new(scales), head_dim });
}

#[track_caller]
fn check_len(name: &str, actual: usize, expected: usize) {
    assert!(actual == expected, "scatter: `{name}` has {actual} elements, expected {expected}");
}

impl Scatter<'_> {
    fn batch(&self) -> usize {
        self.input.len() / (self.tokens * self.width).max(1)
    }

    /// Panics unless the sizes fit together; returns how many heads the places hold.
    #[track_caller]
    fn check(&self) -> usize {
        let Scatter { input, width, first, heads, head_dim, tokens, rotation, places } = *self;
        assert!(
            first + heads * head_dim <= width,
            "scatter: {heads} heads of {head_dim} from {first} on, rows have {width}"
        );
        let row = tokens * width;
        assert!(
            input.len().is_multiple_of(row.max(1)),
            "scatter: `input` has {} elements, rows have {row}",
            input.len()
        );
        let batch = self.batch();
        if let Some(Rotation { cos, sin, half, .. }) = rotation {
            assert!(2 * half <= head_dim, "scatter: {half} pairs in heads of {head_dim} features");
            for (name, actual) in [("cos", cos.len()), ("sin", sin.len())] {
                check_len(name, actual, batch * tokens * half);
            }
        }
        let Places::Slots { slots, starts, counts } = places else { return batch * tokens * heads };
        // Of no tokens the input does not say how many rows there are.
        let batch = if tokens == 0 { starts.len() } else { batch };
        assert!(
            starts.len() == batch && counts.len() == batch,
            "scatter: {} starts and {} counts for {batch} rows",
            starts.len(),
            counts.len()
        );
        for (start, count) in starts.iter().zip(counts) {
            assert!(*count <= tokens, "scatter: {count} tokens of {tokens}");
            assert!(start + count <= slots, "scatter: {count} tokens from slot {start} on, of {slots}");
        }
        batch * heads * slots
    }
}

/// Where heads are put.
trait Sink: Sync {
    /// Where the features of a head are written to: its place, or `room` on the way there.
    ///
    /// # Safety
    /// Nobody else has this place.
    unsafe fn place<'s>(&'s self, head: usize, room: &'s mut [f32]) -> &'s mut [f32];

    /// Puts what was written to `room` in its place.
    ///
    /// # Safety
    /// Nobody else has this place.
    unsafe fn put(&self, head: usize, room: &[f32]);
}

struct F32<'a> {
    elements: Disjoint<'a>,
    head_dim: usize,
}

impl Sink for F32<'_> {
    #[inline(always)]
    unsafe fn place<'s>(&'s self, head: usize, _room: &'s mut [f32]) -> &'s mut [f32] {
        // SAFETY: the caller says so.
        unsafe { self.elements.part(head * self.head_dim, self.head_dim) }
    }

    #[inline(always)]
    unsafe fn put(&self, _head: usize, _room: &[f32]) {}
}

struct Int8<'a> {
    elements: Disjoint<'a, i8>,
    scales: Disjoint<'a>,
    head_dim: usize,
}

impl Sink for Int8<'_> {
    #[inline(always)]
    unsafe fn place<'s>(&'s self, _head: usize, room: &'s mut [f32]) -> &'s mut [f32] {
        room
    }

    #[inline(always)]
    unsafe fn put(&self, head: usize, room: &[f32]) {
        // SAFETY: the caller says so.
        let (elements, scale) =
            unsafe { (self.elements.part(head * self.head_dim, self.head_dim), self.scales.part(head, 1)) };
        scale[0] = round(room, LARGEST, elements, |whole| whole as i8);
    }
}

fn run(problem: &Scatter<'_>, sink: &impl Sink) {
    let size = problem.heads * problem.head_dim;
    let count = problem.batch() * problem.tokens;
    if size * count == 0 {
        return;
    }
    let together = TASK.div_ceil(size);
    (0..count.div_ceil(together)).into_par_iter().for_each(|task| {
        let tokens = task * together..count.min((task + 1) * together);
        with_room(problem.head_dim, |room| Arch::new().dispatch(Task { problem, sink, tokens, room }));
    });
}

/// Some tokens, counted over all rows.
struct Task<'a, K> {
    problem: &'a Scatter<'a>,
    sink: &'a K,
    tokens: Range<usize>,
    /// For a head.
    room: &'a mut [f32],
}

impl<K: Sink> WithSimd for Task<'_, K> {
    type Output = ();

    // A closure would be compiled for the oldest of processors.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for index in self.tokens {
            token(self.problem, index, self.sink, self.room);
        }
    }
}

/// The heads of one token; `index` counts over all rows.
#[inline(always)]
fn token(problem: &Scatter<'_>, index: usize, sink: &impl Sink, room: &mut [f32]) {
    let Scatter { input, width, first, heads, head_dim, tokens, rotation, places } = *problem;
    let (row, at) = (index / tokens, index % tokens);
    let (start, stride) = match places {
        Places::Beside => (index * heads, 1),
        Places::Slots { counts, .. } if at >= counts[row] => return,
        Places::Slots { slots, starts, .. } => (row * heads * slots + starts[row] + at, slots),
    };
    let features = input[index * width + first..][..heads * head_dim].chunks_exact(head_dim);
    for (head, features) in features.enumerate() {
        // SAFETY: every head of every token has a place of its own.
        let place = unsafe { sink.place(start + head * stride, room) };
        match rotation {
            Some(rotation) => rotation.turn(index, features, place),
            None => place.copy_from_slice(features),
        }
        // SAFETY: as above.
        unsafe { sink.put(start + head * stride, room) };
    }
}

impl Rotation<'_> {
    #[inline(always)]
    fn turn(&self, index: usize, features: &[f32], place: &mut [f32]) {
        let half = self.half;
        let angles = || self.cos[index * half..][..half].iter().zip(&self.sin[index * half..][..half]);
        let (turning, passing) = features.split_at(2 * half);
        let (turned, passed) = place.split_at_mut(2 * half);
        passed.copy_from_slice(passing);
        match self.pairs {
            Pairs::Half => {
                let (a, b) = turning.split_at(half);
                let (c, d) = turned.split_at_mut(half);
                for ((((c, d), a), b), (cos, sin)) in c.iter_mut().zip(d).zip(a).zip(b).zip(angles()) {
                    *c = a * cos - b * sin;
                    *d = b * cos + a * sin;
                }
            }
            Pairs::Interleaved => {
                let pairs = turned.as_chunks_mut().0.iter_mut().zip(turning.as_chunks().0);
                for ((pair, [a, b]), (cos, sin)) in pairs.zip(angles()) {
                    *pair = [a * cos - b * sin, b * cos + a * sin];
                }
            }
        }
    }
}
