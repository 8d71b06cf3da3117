//! How a checkpoint packs queries, keys and values into one matrix.

use super::runs::Segment;
use crate::error::ConfigError;
use crate::kv_source::KvSource;
use crate::parallel::{HeadShard, TpPlan};

/// The order of the outputs of a fused QKV matrix. The layouts differ in values and not in shapes, so there is no default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvLayout {
    /// `q | k | v`: GPT-2, DeepSpeed's `attn_qkvw`, and what the modules hold.
    Concat,
    /// For each head its query, key and value: BLOOM, GPT-NeoX.
    PerHead,
    /// For each key/value head the queries of its group, its key, its value: Falcon.
    PerGroup,
    /// `q | k | v` of rank 0, then of rank 1, up to this number of ranks: fused checkpoints of a tensor-parallel training run.
    /// If there are more ranks than key/value heads, each rank has its own copy.
    PerRank(usize),
}

impl QkvLayout {
    /// The heads of `shard` in the order that their features have in a fused matrix of this layout, which holds these heads
    /// and no others. Heads that several ranks wrote are listed several times.
    ///
    /// # Errors
    /// [`ConfigError::Ranks`] if the ranks of [`PerRank`](Self::PerRank) cannot have written them.
    ///
    /// # Panics
    /// If [`PerHead`](Self::PerHead) does not find a key/value head for every query head.
    pub fn heads(self, shard: &HeadShard) -> Result<Vec<Head>, ConfigError> {
        let HeadShard { total, kv_total, start, kv_start, .. } = *shard;
        Ok(match self {
            Self::Concat => Part::all(shard),
            Self::PerHead => {
                assert!(
                    total == kv_total,
                    "QkvLayout::PerHead: {total} query heads and {kv_total} key/value heads, expected equal numbers"
                );
                shard.queries().flat_map(|index| Part::ALL.map(|part| Head { part, index })).collect()
            }
            Self::PerGroup => {
                let of_group = |group: usize| {
                    let is_of = move |head: &Head| head.index / (total / kv_total) == group;
                    let pair = [Part::Key, Part::Value].map(|part| Head { part, index: group });
                    Part::Query.heads(shard).into_iter().filter(is_of).chain(pair)
                };
                shard.kv_heads().flat_map(of_group).collect()
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

    /// The places of the features of one part of the heads `wanted` in the fused outputs of `model`, in order.
    ///
    /// # Errors
    /// Those of [`heads`](Self::heads).
    ///
    /// # Panics
    /// If the heads do not fit the layout; see [`heads`](Self::heads).
    pub fn features(
        self,
        model: &HeadShard,
        part: Part,
        wanted: &HeadShard,
        head_dim: usize,
    ) -> Result<Vec<usize>, ConfigError> {
        Ok(rows(&part.heads(wanted), &self.heads(model)?, head_dim))
    }

    /// For each feature of this layout, in order, its place in `q | k | v`. Both contain the heads of `shard` and no others.
    ///
    /// # Errors
    /// Those of [`heads`](Self::heads).
    ///
    /// # Panics
    /// If the heads do not fit the layout; see [`heads`](Self::heads).
    pub fn order(self, shard: &HeadShard, head_dim: usize) -> Result<Vec<usize>, ConfigError> {
        Ok(rows(&self.heads(shard)?, &Part::all(shard), head_dim))
    }

    /// The layout of the files of several ranks after `torch.cat`: `q | k | v` of each of them.
    pub fn concatenated(self, ranks: usize) -> Self {
        match self {
            Self::Concat if ranks > 1 => Self::PerRank(ranks),
            other => other,
        }
    }
}

/// The heads of each rank, in the order of the ranks. The numbers of heads may differ by one.
///
/// # Errors
/// [`ConfigError::Ranks`] for more ranks than heads, or none.
pub(super) fn shards(heads: usize, kv_heads: usize, ranks: usize) -> Result<Vec<HeadShard>, ConfigError> {
    Ok(TpPlan::uneven(heads, kv_heads, ranks)?.shards().collect())
}

/// All heads of a model on one rank.
pub fn whole(total: usize, kv_total: usize) -> HeadShard {
    HeadShard { total, start: 0, len: total, kv_total, kv_start: 0, kv_len: kv_total }
}

/// What a projection computes for a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The query.
    Query,
    /// The key.
    Key,
    /// The value.
    Value,
    /// The gate on the context; not a part of `q | k | v`.
    Gate,
}

impl Part {
    /// In the order in which the modules hold them.
    pub const ALL: [Self; 3] = [Self::Query, Self::Key, Self::Value];

    /// What the projection of a layer computes whose keys and values come from `source`.
    pub fn projected(source: KvSource) -> &'static [Self] {
        &Self::ALL[..1 + source.projected()]
    }

    /// This part of the heads of `shard`.
    pub fn heads(self, shard: &HeadShard) -> Vec<Head> {
        let own = match self {
            Self::Query | Self::Gate => shard.queries(),
            Self::Key | Self::Value => shard.kv_heads(),
        };
        own.map(|index| Head { part: self, index }).collect()
    }

    /// For each query head of `shard` its query and then its gate.
    pub fn queries_with_gates(shard: &HeadShard) -> Vec<Head> {
        shard.queries().flat_map(|index| [Self::Query, Self::Gate].map(|part| Head { part, index })).collect()
    }

    /// `q | k | v` of `shard`.
    pub fn all(shard: &HeadShard) -> Vec<Head> {
        Self::ALL.into_iter().flat_map(|part| part.heads(shard)).collect()
    }
}

/// The query, key, value or gate of a head; heads are counted in the whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Query, key, value or gate.
    pub part: Part,
    /// Index among the query heads, or among the key/value heads.
    pub index: usize,
}

/// The first source that has a head, and the head's place there.
fn find(head: &Head, sources: &[&[Head]]) -> (usize, usize) {
    let places = sources.iter().map(|source| source.iter().position(|other| other == head));
    places.enumerate().find_map(|(source, place)| Some((source, place?))).expect("some rank has every head")
}

/// For each source, where the features of its heads go if those of `wanted` are contiguous.
pub(super) fn segments(wanted: &[Head], sources: &[&[Head]], head_dim: usize) -> Vec<Vec<Segment>> {
    segments_at(wanted.iter().enumerate(), sources, head_dim)
}

/// The same for a bias, in which keys that no source has leave a gap.
pub(super) fn segments_of_bias(wanted: &[Head], sources: &[&[Head]], head_dim: usize) -> Vec<Vec<Segment>> {
    let has = |head: &Head| head.part != Part::Key || sources.iter().any(|source| source.contains(head));
    segments_at(wanted.iter().enumerate().filter(|(_, head)| has(head)), sources, head_dim)
}

fn segments_at<'a>(
    wanted: impl Iterator<Item = (usize, &'a Head)>,
    sources: &[&[Head]],
    head_dim: usize,
) -> Vec<Vec<Segment>> {
    let mut found: Vec<Vec<Segment>> = vec![Vec::new(); sources.len()];
    for (to, head) in wanted {
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
fn rows(wanted: &[Head], source: &[Head], head_dim: usize) -> Vec<usize> {
    let first = wanted.iter().map(|head| find(head, &[source]).1 * head_dim);
    first.flat_map(|first| first..first + head_dim).collect()
}
