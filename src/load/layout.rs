//! How a checkpoint packs queries, keys and values into one matrix.

use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::read::Segment;
use crate::error::ConfigError;
use crate::parallel::{HeadShard, TpPlan};

/// The order of the outputs of a fused QKV matrix. Shapes agree between layouts and values do not, so there is no default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvLayout {
    /// `q | k | v`: GPT-2, DeepSpeed's `attn_qkvw`, and what the modules hold.
    Concat,
    /// For each head its query, key and value: BLOOM, GPT-NeoX.
    PerHead,
    /// For each key/value head the queries of its group, its key, its value: Falcon.
    PerGroup,
    /// `q | k | v` of each of so many ranks, one behind the other: fused checkpoints that were saved by a
    /// tensor-parallel training run. Where there are more ranks than key/value heads, each rank has a copy of its own.
    PerRank(usize),
}

impl QkvLayout {
    /// The fused outputs of whole queries, keys and values: the way back from [`split`](Self::split) with all heads.
    ///
    /// # Shapes
    /// - parts: `[rows, all N·H, columns]` and twice `[rows, all K·H, columns]`
    /// - output: `[rows, (all N + 2 all K)·H, columns]`; under [`PerRank`](Self::PerRank) more if key/value heads are replicated
    ///
    /// # Panics
    /// As [`split`](Self::split).
    pub fn merge<B: Backend>(self, parts: [Tensor<B, 3>; 3], head_dim: usize) -> Tensor<B, 3> {
        let [heads, kv_heads] = [0, 1].map(|part: usize| parts[part].dims()[1] / head_dim);
        let whole = whole(heads, kv_heads);
        let rows = rows(&self.checked_heads(&whole), &Part::all(&whole), head_dim);
        picked(Tensor::cat(parts.into(), 1), 1, &rows)
    }

    /// Queries, keys and values of the heads of `shard`, taken out of the fused outputs of the whole model.
    ///
    /// # Shapes
    /// - fused: `[rows, (all N + 2 all K)·H, columns]`; under [`PerRank`](Self::PerRank) more if key/value heads are replicated
    /// - output: `[rows, N·H, columns]` and twice `[rows, K·H, columns]`
    ///
    /// # Panics
    /// If the heads do not fit the layout: [`PerHead`](Self::PerHead) needs a key/value head for every query head,
    /// [`PerRank`](Self::PerRank) a rank count that the heads can be split over.
    pub fn split<B: Backend>(self, fused: Tensor<B, 3>, shard: &HeadShard, head_dim: usize) -> [Tensor<B, 3>; 3] {
        let heads = self.checked_heads(&whole(shard.total, shard.kv_total));
        Part::ALL.map(|part| picked(fused.clone(), 1, &rows(&part.heads(shard), &heads, head_dim)))
    }

    fn checked_heads(self, shard: &HeadShard) -> Vec<Head> {
        self.heads(shard).unwrap_or_else(|error| panic!("QkvLayout::{self:?}: {error}"))
    }

    /// The heads of `shard` in the order that their features have in a fused matrix of this layout, which holds these heads
    /// and no others. Those that several ranks wrote stand there several times.
    ///
    /// # Errors
    /// [`ConfigError::Ranks`] if so many ranks as [`PerRank`](Self::PerRank) says cannot have written them.
    ///
    /// # Panics
    /// If [`PerHead`](Self::PerHead) does not find a key/value head for every query head.
    pub(super) fn heads(self, shard: &HeadShard) -> Result<Vec<Head>, ConfigError> {
        let HeadShard { total, kv_total, start, kv_start, .. } = *shard;
        Ok(match self {
            Self::Concat => Part::all(shard),
            Self::PerHead => {
                assert!(
                    total == kv_total,
                    "QkvLayout::PerHead: {total} query heads and {kv_total} key/value heads, expected as many"
                );
                shard.queries().flat_map(|index| Part::ALL.map(|part| Head { part, index })).collect()
            }
            Self::PerGroup => {
                let of_group = |group: usize| {
                    let is_of = move |head: &Head| head.index / (total / kv_total) == group;
                    let pair = [Part::Key, Part::Value].map(|part| Head { part, index: group });
                    Part::Query.heads(shard).into_iter().filter(is_of).chain(pair)
                };
                shard.keys().flat_map(of_group).collect()
            }
            Self::PerRank(ranks) => {
                let parts = shards(shard.len, shard.kv_len, ranks)?;
                let inside = |part: HeadShard| HeadShard {
                    start: start + part.start,
                    kv_start: kv_start + part.kv_start,
                    ..part
                };
                parts.into_iter().flat_map(|part| Part::all(&inside(part))).collect()
            }
        })
    }

    /// The layout of a file that so many ranks wrote and `torch.cat` made one: `q | k | v` of each of them.
    pub(super) fn concatenated(self, ranks: usize) -> Self {
        match self {
            Self::Concat if ranks > 1 => Self::PerRank(ranks),
            other => other,
        }
    }
}

/// The heads of each of so many ranks, in their order. They need not be as many on each.
///
/// # Errors
/// [`ConfigError::Ranks`] for more ranks than heads, or none.
pub(super) fn shards(heads: usize, kv_heads: usize, ranks: usize) -> Result<Vec<HeadShard>, ConfigError> {
    Ok(TpPlan::uneven(heads, kv_heads, ranks)?.shards().collect())
}

fn whole(total: usize, kv_total: usize) -> HeadShard {
    HeadShard { total, start: 0, len: total, kv_total, kv_start: 0, kv_len: kv_total }
}

/// What a projection computes of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Query,
    Key,
    Value,
}

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Query, Self::Key, Self::Value];

    /// This part of the heads of `shard`.
    pub(super) fn heads(self, shard: &HeadShard) -> Vec<Head> {
        let own = match self {
            Self::Query => shard.queries(),
            Self::Key | Self::Value => shard.keys(),
        };
        own.map(|index| Head { part: self, index }).collect()
    }

    /// `q | k | v` of `shard`.
    pub(super) fn all(shard: &HeadShard) -> Vec<Head> {
        Self::ALL.into_iter().flat_map(|part| part.heads(shard)).collect()
    }
}

/// The query, key or value of a head; heads are counted in the whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    part: Part,
    index: usize,
}

/// The first source that has a head, and the head's place there.
fn find(head: &Head, sources: &[&[Head]]) -> (usize, usize) {
    let places = sources.iter().map(|source| source.iter().position(|other| other == head));
    places.enumerate().find_map(|(source, place)| Some((source, place?))).expect("some rank has every head")
}

/// Of each source, where the features of its heads go if `wanted` lie one behind the other.
pub(super) fn segments(wanted: &[Head], sources: &[&[Head]], head_dim: usize) -> Vec<Vec<Segment>> {
    let mut found: Vec<Vec<Segment>> = vec![Vec::new(); sources.len()];
    for (to, head) in wanted.iter().enumerate() {
        let (source, from) = find(head, sources);
        found[source].push(Segment { from: from * head_dim, len: head_dim, to: to * head_dim });
    }
    for segments in &mut found {
        segments.sort_by_key(|segment| segment.from);
        segments.dedup_by(|next, last| {
            let adjacent = (next.from, next.to) == (last.from + last.len, last.to + last.len);
            last.len += if adjacent { next.len } else { 0 };
            adjacent
        });
    }
    found
}

/// Which features of `source` those of `wanted` are, in order.
pub(super) fn rows(wanted: &[Head], source: &[Head], head_dim: usize) -> Vec<usize> {
    let first = wanted.iter().map(|head| find(head, &[source]).1 * head_dim);
    first.flat_map(|first| first..first + head_dim).collect()
}

/// These places of an axis, in this order.
pub(super) fn picked<B: Backend, const D: usize>(tensor: Tensor<B, D>, axis: usize, places: &[usize]) -> Tensor<B, D> {
    if let Some(&first) = places.first().filter(|&&first| places.iter().copied().eq(first..first + places.len())) {
        return tensor.narrow(axis, first, places.len()); // a view, where the others are gathered
    }
    let index: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    let index = Tensor::from_data(TensorData::new(index, [places.len()]), &tensor.device());
    tensor.select(axis, index)
}
