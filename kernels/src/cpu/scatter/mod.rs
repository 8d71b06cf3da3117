//! Heads of a packed projection, normalised, rotated by their positions and written to their places: queries to a contiguous
//! tensor, keys and values into the cache, in floats or int8. Each is read from memory once and written once; in between, a head is
//! in the first cache.

mod norm;
mod rotation;

use std::ops::Range;

use burn_deepspeed_core::int8::LARGEST;
use pulp::{Arch, Simd, WithSimd};

use crate::contract::{check_len, product};
use crate::cpu::element::Float;
use crate::cpu::scratch::{Disjoint, with_scratch};
use crate::cpu::simd::round;
use crate::cpu::stream::{LINE, prefetch_near};
use crate::cpu::threads;

pub use self::norm::HeadNorm;
pub use self::rotation::Rotation;

/// Elements of a task, so that a task is worth a thread.
const TASK: usize = 1 << 14;

/// The arguments of [`scatter`].
#[derive(Debug, Clone, Copy)]
pub struct Scatter<'a> {
    /// `[batch, tokens, width]`.
    pub input: &'a [f32],
    /// Features of a token.
    pub width: usize,
    /// The first feature of the first head.
    pub first: usize,
    /// Contiguous heads.
    pub heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// New tokens of each row.
    pub tokens: usize,
    /// The norm of the heads.
    pub norm: Option<HeadNorm<'a>>,
    /// The rotation of the heads.
    pub rotation: Option<Rotation<'a>>,
    /// What the features of each token are multiplied by at last, `[batch, tokens]`.
    pub factors: Option<&'a [f32]>,
    /// Where they go.
    pub places: Places<'a>,
}

/// A place for each token of each head.
#[derive(Debug, Clone, Copy)]
pub enum Places<'a> {
    /// `[batch, tokens, heads, head_dim]`.
    Packed,
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

/// A type that heads are written in: f32, `f16` or `bf16` of the crate `half`.
#[allow(private_bounds, reason = "the kernels are written for these")]
pub trait AnyFloat: Float {}

impl<E: Float> AnyFloat for E {}

/// Copies the heads to their places in `output`, normalised, rotated and multiplied, all in f32, and rounds what they have become to the
/// type of `output`; the rest of it stays as it is.
///
/// # Panics
/// If a slice does not have the length that the sizes imply, or a token has no slot.
pub fn scatter<E: AnyFloat>(problem: &Scatter<'_>, output: &mut [E]) {
    let heads = problem.check();
    check_len("scatter", "output", output.len(), product(&[heads, problem.head_dim]));
    run(problem, &Floats { elements: Disjoint::new(output), head_dim: problem.head_dim });
}

/// The same in int8: writes to `elements` what [`scatter`] writes, divided by a scale and rounded to integers, and to `scales`
/// the scale of each head of each place.
///
/// A scale is the largest magnitude of its head over 127; elements are rounded to nearest, ties to even. A head with an
/// infinity or NaN has a scale of NaN.
///
/// # Panics
/// As [`scatter`].
pub fn scatter_int8(problem: &Scatter<'_>, elements: &mut [i8], scales: &mut [f32]) {
    let heads = problem.check();
    check_len("scatter", "elements", elements.len(), product(&[heads, problem.head_dim]));
    check_len("scatter", "scales", scales.len(), heads);
    let head_dim = problem.head_dim;
    run(problem, &Int8 { elements: Disjoint::new(elements), scales: Disjoint::new(scales), head_dim });
}

impl Scatter<'_> {
    fn batch(&self) -> usize {
        self.input.len() / (self.tokens * self.width).max(1)
    }

    /// Panics unless the sizes fit together; returns how many heads the places hold.
    #[track_caller]
    fn check(&self) -> usize {
        let Scatter { input, width, first, heads, head_dim, tokens, norm, rotation, factors, places } = *self;
        assert!(
            product(&[heads, head_dim]).saturating_add(first) <= width,
            "scatter: {heads} heads of {head_dim} from {first} on, rows have {width}"
        );
        let row = product(&[tokens, width]);
        assert!(
            if row == 0 { input.is_empty() } else { input.len().is_multiple_of(row) },
            "scatter: `input` has {} elements, rows have {row}",
            input.len()
        );
        let batch = self.batch();
        if let Some(Rotation { cos, sin, half, .. }) = rotation {
            assert!(half <= head_dim / 2, "scatter: {half} pairs in heads of {head_dim} features");
            for (name, actual) in [("cos", cos.len()), ("sin", sin.len())] {
                check_len("scatter", name, actual, product(&[batch, tokens, half]));
            }
        }
        if let Some(norm) = norm {
            norm.check(heads, head_dim, product(&[batch, tokens]));
        }
        if let Some(factors) = factors {
            check_len("scatter", "factors", factors.len(), product(&[batch, tokens]));
        }
        let Places::Slots { slots, starts, counts } = places else { return product(&[batch, tokens, heads]) };
        // Without tokens, the length of the input does not give the number of rows.
        let batch = if tokens == 0 { starts.len() } else { batch };
        check_len("scatter", "starts", starts.len(), batch);
        check_len("scatter", "counts", counts.len(), batch);
        for (start, count) in starts.iter().zip(counts) {
            assert!(*count <= tokens, "scatter: `counts` has {count}, expected at most {tokens} tokens");
            assert!(
                *start <= slots && *count <= slots - start,
                "scatter: {count} tokens from slot {start} on, of {slots}"
            );
        }
        product(&[batch, heads, slots])
    }
}

/// Where heads are put.
trait Sink: Sync {
    /// Whether [`place`](Self::place) is where a head stays.
    fn is_in_place(&self) -> bool;

    /// Where the features of a head are written to: its place, or `scratch` on the way there.
    ///
    /// # Safety
    /// No other task uses this place.
    unsafe fn place<'s>(&'s self, head: usize, scratch: &'s mut [f32]) -> &'s mut [f32];

    /// Puts features in their place, unless they were written there.
    ///
    /// # Safety
    /// No other task uses this place.
    unsafe fn put(&self, head: usize, features: &[f32]);
}

struct Floats<'a, E> {
    elements: Disjoint<'a, E>,
    head_dim: usize,
}

impl<E: Float> Sink for Floats<'_, E> {
    #[inline(always)]
    fn is_in_place(&self) -> bool {
        E::as_f32s(&[]).is_some()
    }

    #[inline(always)]
    unsafe fn place<'s>(&'s self, head: usize, scratch: &'s mut [f32]) -> &'s mut [f32] {
        // SAFETY: the caller guarantees it.
        let elements = unsafe { self.elements.part(head * self.head_dim, self.head_dim) };
        E::as_f32s_mut(elements).unwrap_or(scratch)
    }

    #[inline(always)]
    unsafe fn put(&self, head: usize, features: &[f32]) {
        if !self.is_in_place() {
            // SAFETY: the caller guarantees it.
            E::round(features, unsafe { self.elements.part(head * self.head_dim, self.head_dim) });
        }
    }
}

struct Int8<'a> {
    elements: Disjoint<'a, i8>,
    scales: Disjoint<'a>,
    head_dim: usize,
}

impl Sink for Int8<'_> {
    #[inline(always)]
    fn is_in_place(&self) -> bool {
        false
    }

    #[inline(always)]
    unsafe fn place<'s>(&'s self, _head: usize, scratch: &'s mut [f32]) -> &'s mut [f32] {
        scratch
    }

    #[inline(always)]
    unsafe fn put(&self, head: usize, features: &[f32]) {
        // SAFETY: the caller guarantees it.
        let (elements, scale) =
            unsafe { (self.elements.part(head * self.head_dim, self.head_dim), self.scales.part(head, 1)) };
        scale[0] = round(features, LARGEST, elements, |whole| whole as i8);
    }
}

fn run(problem: &Scatter<'_>, sink: &impl Sink) {
    let size = problem.heads * problem.head_dim;
    let count = problem.batch() * problem.tokens;
    if size * count == 0 {
        return;
    }
    let together = TASK.div_ceil(size);
    threads::each(count.div_ceil(together), |task| {
        let tokens = task * together..count.min((task + 1) * together);
        with_scratch(2 * problem.head_dim, |scratch| {
            let scratch = scratch.split_at_mut(problem.head_dim);
            Arch::new().dispatch(Task { problem, sink, tokens, scratch });
        });
    });
}

/// Some tokens, counted over all rows.
struct Task<'a, K> {
    problem: &'a Scatter<'a>,
    sink: &'a K,
    tokens: Range<usize>,
    /// For a head that was normalised, and for one that was rotated too.
    scratch: (&'a mut [f32], &'a mut [f32]),
}

impl<K: Sink> WithSimd for Task<'_, K> {
    type Output = ();

    // A closure would be compiled for the baseline instruction set.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let (normalised, scratch) = self.scratch;
        for index in self.tokens {
            token(self.problem, index, self.sink, normalised, scratch);
        }
    }
}

/// The heads of one token; `index` counts over all rows.
#[inline(always)]
fn token(problem: &Scatter<'_>, index: usize, sink: &impl Sink, normalised: &mut [f32], scratch: &mut [f32]) {
    let Scatter { input, width, first, heads, head_dim, tokens, norm, rotation, factors, places } = *problem;
    let (row, at) = (index / tokens, index % tokens);
    let (start, stride) = match places {
        Places::Packed => (index * heads, 1),
        Places::Slots { counts, .. } if at >= counts[row] => return,
        Places::Slots { slots, starts, .. } => (row * heads * slots + starts[row] + at, slots),
    };
    let features = &input[index * width + first..][..heads * head_dim];
    let mean_square = match norm {
        Some(norm) => norm.mean_square(index, features),
        None => None,
    };
    let is_copied = norm.is_none() && rotation.is_none() && factors.is_none();
    for (head, mut features) in features.chunks_exact(head_dim).enumerate() {
        // Those of the next token, which are too far away for the hardware to see.
        for at in (0..head_dim).step_by(LINE / size_of::<f32>()) {
            prefetch_near(input, (index + 1) * width + first + head * head_dim + at);
        }
        if is_copied && !sink.is_in_place() {
            // SAFETY: every head of every token has its own place.
            unsafe { sink.put(start + head * stride, features) };
            continue;
        }
        // SAFETY: every head of every token has its own place.
        let place = unsafe { sink.place(start + head * stride, scratch) };
        if let Some(norm) = norm.filter(|norm| !norm.after_rotation) {
            normalised.copy_from_slice(features);
            norm.apply(head, mean_square, normalised);
            features = normalised;
        }
        match rotation {
            Some(rotation) => rotation.rotate(index, features, place),
            None => place.copy_from_slice(features),
        }
        if let Some(norm) = norm.filter(|norm| norm.after_rotation) {
            norm.apply(head, None, place);
        }
        if let Some(factors) = factors {
            let factor = factors[index];
            for feature in place {
                *feature *= factor;
            }
        }
        // SAFETY: as above.
        unsafe { sink.put(start + head * stride, scratch) };
    }
}
