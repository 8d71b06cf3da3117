//! Which heads each rank holds.

use std::ops::Range;

use super::rank::part;
use crate::error::ConfigError;

/// How the heads of a model are split over ranks; the head split of DeepSpeed's `ds_attention.py`, checked.
///
/// Every rank holds a contiguous range of query heads and the key/value heads that they read. If there are more ranks than
/// key/value heads, several ranks hold the same key/value head.
///
/// ```
/// use burn_deepspeed_core::parallel::TpPlan;
///
/// let plan = TpPlan::new(8, 2, 4)?; // query heads, key/value heads, ranks
/// let shard = plan.shard(3);
/// assert_eq!((shard.queries(), shard.kv_heads()), (6..8, 1..2));
///
/// let error = TpPlan::new(52, 52, 8).unwrap_err();
/// assert!(error.to_string().starts_with("52 query heads over 8 ranks; valid: 1, 2, 4, 13, 26, 52"));
/// let plan = TpPlan::uneven(52, 52, 8)?; // 7 or 6 heads on a rank
/// assert_eq!((plan.shard(3).len, plan.shard(4).len), (7, 6));
/// # Ok::<_, burn_deepspeed_core::error::ConfigError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TpPlan {
    heads: usize,
    kv_heads: usize,
    ranks: usize,
}

impl TpPlan {
    /// The same number of heads on each rank.
    ///
    /// # Errors
    /// [`ConfigError::KvHeadsDoNotDivide`], or [`ConfigError::Ranks`] with the rank counts that work.
    pub fn new(heads: usize, kv_heads: usize, ranks: usize) -> Result<Self, ConfigError> {
        let plan = Self::grouped(heads, kv_heads, ranks)?;
        match Self::splits(heads, kv_heads, ranks) {
            true => Ok(plan),
            false => Err(plan.refused(Self::valid_ranks(heads, kv_heads).collect(), true)),
        }
    }

    /// Any number of ranks up to one per query head. The numbers of heads on two ranks differ by at most one key/value head, or by
    /// one query head where several ranks share a key/value head. Equal to [`new`](Self::new) where that succeeds.
    ///
    /// # Errors
    /// [`ConfigError::KvHeadsDoNotDivide`], or [`ConfigError::Ranks`] for more ranks than query heads, or none.
    pub fn uneven(heads: usize, kv_heads: usize, ranks: usize) -> Result<Self, ConfigError> {
        let plan = Self::grouped(heads, kv_heads, ranks)?;
        match (1..=heads).contains(&ranks) {
            true => Ok(plan),
            false => Err(plan.refused(Vec::new(), false)),
        }
    }

    fn grouped(heads: usize, kv_heads: usize, ranks: usize) -> Result<Self, ConfigError> {
        match kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads) {
            true => Ok(Self { heads, kv_heads, ranks }),
            false => Err(ConfigError::KvHeadsDoNotDivide { heads, num_kv: kv_heads }),
        }
    }

    fn refused(self, valid: Vec<usize>, even: bool) -> ConfigError {
        let Self { heads, kv_heads, ranks } = self;
        ConfigError::Ranks { heads, kv_heads, ranks, valid, even }
    }

    /// Every number of ranks that gives each the same number of heads, in ascending order.
    pub fn valid_ranks(heads: usize, kv_heads: usize) -> impl Iterator<Item = usize> {
        let small: Vec<_> = (1..=heads.isqrt()).filter(|&ranks| heads.is_multiple_of(ranks)).collect();
        let large: Vec<_> =
            small.iter().rev().map(|ranks| heads / ranks).filter(|ranks| !small.contains(ranks)).collect();
        small.into_iter().chain(large).filter(move |&ranks| Self::splits(heads, kv_heads, ranks))
    }

    fn splits(heads: usize, kv_heads: usize, ranks: usize) -> bool {
        ranks > 0 && heads.is_multiple_of(ranks) && (kv_heads.is_multiple_of(ranks) || ranks.is_multiple_of(kv_heads))
    }

    /// Ranks that the heads are split over.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The heads of one rank.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn shard(&self, rank: usize) -> HeadShard {
        let Self { heads, kv_heads, ranks } = *self;
        assert!(rank < ranks, "TpPlan::shard: rank {rank} of {ranks}");
        let group = heads / kv_heads;
        let (queries, keys) = if ranks <= kv_heads {
            let keys = part(kv_heads, ranks, rank);
            (keys.start * group..keys.end * group, keys)
        } else {
            // Which key/value head this rank reads, and which of its ranks it is.
            let (kv, sharers) = (0..kv_heads)
                .map(|kv| (kv, part(ranks, kv_heads, kv)))
                .find(|(_, sharers)| sharers.contains(&rank))
                .expect("every rank has a key/value head");
            let own = part(group, sharers.len(), rank - sharers.start);
            (kv * group + own.start..kv * group + own.end, kv..kv + 1)
        };
        HeadShard {
            total: heads,
            start: queries.start,
            len: queries.len(),
            kv_total: kv_heads,
            kv_start: keys.start,
            kv_len: keys.len(),
        }
    }

    /// The heads of every rank, in order.
    pub fn shards(&self) -> impl Iterator<Item = HeadShard> {
        let plan = *self;
        (0..plan.ranks).map(move |rank| plan.shard(rank))
    }
}

/// The heads of one rank, out of those of the whole model.
///
/// Weight slicing, int8 scales, ALiBi slopes, the KV cache and the map from query to key/value heads all read this value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShard {
    /// Query heads of the whole model.
    pub total: usize,
    /// First query head of this rank.
    pub start: usize,
    /// Query heads of this rank.
    pub len: usize,
    /// Key/value heads of the whole model.
    pub kv_total: usize,
    /// First key/value head of this rank.
    pub kv_start: usize,
    /// Key/value heads of this rank.
    pub kv_len: usize,
}

impl HeadShard {
    /// The query heads of this rank, counted in the whole model.
    pub fn queries(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// The key/value heads of this rank, counted in the whole model.
    pub fn kv_heads(&self) -> Range<usize> {
        self.kv_start..self.kv_start + self.kv_len
    }

    /// Whether this rank is the first of those that hold its key/value heads. It alone counts them in a sum over the ranks.
    pub fn counts_keys(&self) -> bool {
        self.start == self.kv_start * (self.total / self.kv_total)
    }

    /// Query heads that share one key/value head.
    pub fn queries_per_kv(&self) -> usize {
        self.len / self.kv_len
    }
}
