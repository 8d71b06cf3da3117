//! Heads of a packed projection, turned by their positions and put where they belong: queries beside each other, keys and
//! values into the cache. Each is read once and written once.

use pulp::Arch;
use rayon::prelude::*;

use super::Disjoint;

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
    let Scatter { input, width, first, heads, head_dim, tokens, rotation, places } = *problem;
    assert!(
        first + heads * head_dim <= width,
        "scatter: {heads} heads of {head_dim} from {first} on, rows have {width}"
    );
    let row = tokens * width;
    assert!(input.len().is_multiple_of(row.max(1)), "scatter: `input` has {} elements, rows have {row}", input.len());
    if input.is_empty() || heads * head_dim == 0 {
        return;
    }
    let batch = input.len() / row;
    if let Some(Rotation { cos, sin, half, .. }) = rotation {
        assert!(2 * half <= head_dim, "scatter: {half} pairs in heads of {head_dim} features");
        for (name, actual) in [("cos", cos.len()), ("sin", sin.len())] {
            let expected = batch * tokens * half;
            assert!(actual == expected, "scatter: `{name}` has {actual} elements, expected {expected}");
        }
    }
    let expected = match places {
        Places::Beside => batch * tokens * heads * head_dim,
        Places::Slots { slots, starts, counts } => {
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
            batch * heads * slots * head_dim
        }
    };
    assert!(output.len() == expected, "scatter: `output` has {} elements, expected {expected}", output.len());

    let output = Disjoint::new(output);
    let together = TASK.div_ceil(heads * head_dim);
    let count = batch * tokens;
    (0..count.div_ceil(together)).into_par_iter().for_each(|task| {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for index in task * together..count.min((task + 1) * together) {
                    token(problem, index, &output);
                }
            },
        );
    });
}

/// The heads of one token; `index` counts over all rows.
#[inline(always)]
fn token(problem: &Scatter<'_>, index: usize, output: &Disjoint<'_>) {
    let Scatter { input, width, first, heads, head_dim, tokens, rotation, places } = *problem;
    let (row, at) = (index / tokens, index % tokens);
    let (start, stride) = match places {
        Places::Beside => (index * heads * head_dim, head_dim),
        Places::Slots { counts, .. } if at >= counts[row] => return,
        Places::Slots { slots, starts, .. } => ((row * heads * slots + starts[row] + at) * head_dim, slots * head_dim),
    };
    let features = input[index * width + first..][..heads * head_dim].chunks_exact(head_dim);
    for (head, features) in features.enumerate() {
        // SAFETY: every head of every token has a place of its own.
        let place = unsafe { output.part(start + head * stride, head_dim) };
        match rotation {
            Some(rotation) => rotation.turn(index, features, place),
            None => place.copy_from_slice(features),
        }
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
