//! The arguments of every attention kernel: a problem in memory.

use half::{bf16, f16};

use super::masks::Masks;
use crate::contract::{check_len, extent, product};

/// A `[batch, heads, tokens, features]` tensor in a slice, its features contiguous. Strides are in elements.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a, E = f32> {
    /// The slice; its first element is the first of the tensor.
    pub elements: &'a [E],
    /// From one row of the batch to the next.
    pub batch: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one token to the next.
    pub token: usize,
}

impl<'a, E> Heads<'a, E> {
    /// A tensor that is contiguous in this order.
    pub fn dense(elements: &'a [E], heads: usize, tokens: usize, features: usize) -> Self {
        Self { elements, batch: heads * tokens * features, head: tokens * features, token: features }
    }

    pub(super) fn token(&self, batch: usize, head: usize, token: usize, features: usize) -> &'a [E] {
        &self.elements[batch * self.batch + head * self.head + token * self.token..][..features]
    }

    #[track_caller]
    fn check(&self, kernel: &str, name: &str, sizes: [usize; 4]) {
        let (needed, actual) = (extent(&sizes, &[self.batch, self.head, self.token, 1]), self.elements.len());
        assert!(
            needed <= actual,
            "{kernel}: `{name}` has {actual} elements, {sizes:?} with its strides needs {needed}"
        );
    }
}

/// Keys or values.
#[derive(Debug, Clone, Copy)]
pub enum Cached<'a> {
    /// In f32.
    F32(Heads<'a>),
    /// In f16.
    F16(Heads<'a, f16>),
    /// In bf16.
    BF16(Heads<'a, bf16>),
    /// In int8, times a scale for each head of each token.
    Int8 {
        /// The elements.
        elements: Heads<'a, i8>,
        /// `[batch, kv_heads, capacity]`.
        scales: &'a [f32],
    },
}

impl<'a> From<Heads<'a>> for Cached<'a> {
    fn from(heads: Heads<'a>) -> Self {
        Self::F32(heads)
    }
}

impl<'a> From<Heads<'a, f16>> for Cached<'a> {
    fn from(heads: Heads<'a, f16>) -> Self {
        Self::F16(heads)
    }
}

impl<'a> From<Heads<'a, bf16>> for Cached<'a> {
    fn from(heads: Heads<'a, bf16>) -> Self {
        Self::BF16(heads)
    }
}

impl Cached<'_> {
    #[track_caller]
    fn check(&self, kernel: &str, name: &str, sizes: [usize; 4]) {
        match self {
            Self::F32(heads) => heads.check(kernel, name, sizes),
            Self::F16(heads) => heads.check(kernel, name, sizes),
            Self::BF16(heads) => heads.check(kernel, name, sizes),
            Self::Int8 { elements, scales } => {
                elements.check(kernel, name, sizes);
                let (actual, expected) = (scales.len(), product(&sizes[..3]));
                assert!(actual == expected, "{kernel}: `{name}` has {actual} scales, expected {expected}");
            }
        }
    }
}

/// The arguments of [`flash`](super::flash::flash) and [`decode`](super::decode::decode).
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Rows of the batch.
    pub batch: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Queries of each row.
    pub tokens: usize,
    /// Slots of each row for keys and values; the masks give the number of used ones.
    pub capacity: usize,
    /// Features of queries and keys.
    pub head_dim: usize,
    /// Features of values.
    pub value_dim: usize,
    /// `[batch, heads, tokens, head_dim]`.
    pub query: Heads<'a>,
    /// `[batch, kv_heads, capacity, head_dim]`.
    pub key: Cached<'a>,
    /// `[batch, kv_heads, capacity, value_dim]`.
    pub value: Cached<'a>,
    /// Plain factor on the scores.
    pub scale: f32,
    /// A sink for each query head, `[heads]`: a score that joins the sum of a query's weights, and has no value. It is neither scaled nor
    /// masked.
    pub sinks: Option<&'a [f32]>,
    /// Which query sees which keys.
    pub masks: Masks<'a>,
}

impl Attention<'_> {
    /// The scales of a key/value head, out of those of all of them.
    pub(super) fn scales<'s>(&self, all: &'s [f32], batch: usize, kv_head: usize) -> &'s [f32] {
        &all[(batch * self.kv_heads + kv_head) * self.capacity..][..self.capacity]
    }

    /// Query heads of a key/value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The index of a row of a key/value head, which is token `row / group` of head `row % group`, in `[batch, tokens, heads]`.
    pub(super) fn place(&self, batch: usize, kv_head: usize, row: usize) -> usize {
        let group = self.group();
        (batch * self.tokens + row / group) * self.heads + kv_head * group + row % group
    }

    /// Panics unless the slices, and the output, have the lengths that the sizes imply.
    #[track_caller]
    pub(super) fn check(&self, kernel: &str, output: usize) {
        let Attention { batch, heads, kv_heads, tokens, capacity, head_dim, value_dim, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{kernel}: `query` has {heads} heads, expected a multiple of the {kv_heads} heads of `key`"
        );
        assert!(head_dim > 0, "{kernel}: `query` has heads without features");
        check_len(kernel, "output", output, product(&[batch, tokens, heads, value_dim]));
        self.query.check(kernel, "query", [batch, heads, tokens, head_dim]);
        self.key.check(kernel, "key", [batch, kv_heads, capacity, head_dim]);
        self.value.check(kernel, "value", [batch, kv_heads, capacity, value_dim]);
        if let Some(sinks) = self.sinks {
            check_len(kernel, "sinks", sinks.len(), heads);
        }
        self.masks.check(kernel, batch, heads, tokens, capacity);
    }
}
