//! Which heads this rank holds, and the sum over ranks behind the output projection.

use burn::tensor::{Tensor, backend::Backend};

use crate::error::{AttentionError, ConfigError};

/// The heads of one rank, out of those of the whole model.
///
/// Weight slicing, ALiBi slopes, the KV cache and the map from query to key/value heads all read this one value.
/// Key/value heads are replicated when there are more ranks than heads. Source: the head split of DeepSpeed's
/// `ds_attention.py`.
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
    /// All heads on one rank.
    ///
    /// # Errors
    /// [`ConfigError::KvHeadsDoNotDivide`] if the query heads do not group evenly.
    pub fn whole(heads: usize, kv_heads: usize) -> Result<Self, ConfigError> {
        Self::of_rank(heads, kv_heads, RankGroup::single())
    }

    /// The heads of one rank of a group.
    ///
    /// # Errors
    /// [`ConfigError::KvHeadsDoNotDivide`], or [`ConfigError::Ranks`] with the rank counts that work.
    pub fn of_rank(heads: usize, kv_heads: usize, group: RankGroup) -> Result<Self, ConfigError> {
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(ConfigError::KvHeadsDoNotDivide { heads, num_kv: kv_heads });
        }
        if !Self::splits(heads, kv_heads, group.ranks) {
            let valid = Self::valid_ranks(heads, kv_heads);
            return Err(ConfigError::Ranks { heads, kv_heads, ranks: group.ranks, valid });
        }
        let len = heads / group.ranks;
        let start = group.rank * len;
        let queries_per_kv = heads / kv_heads;
        Ok(Self {
            total: heads,
            start,
            len,
            kv_total: kv_heads,
            kv_start: start / queries_per_kv,
            kv_len: kv_heads.div_ceil(group.ranks),
        })
    }

    /// Every rank count that these heads can be split over.
    pub fn valid_ranks(heads: usize, kv_heads: usize) -> Vec<usize> {
        (1..=heads).filter(|&ranks| Self::splits(heads, kv_heads, ranks)).collect()
    }

    fn splits(heads: usize, kv_heads: usize, ranks: usize) -> bool {
        ranks > 0 && heads.is_multiple_of(ranks) && (kv_heads.is_multiple_of(ranks) || ranks.is_multiple_of(kv_heads))
    }

    /// Query heads that share one key/value head.
    pub fn queries_per_kv(&self) -> usize {
        self.len / self.kv_len
    }
}

/// A rank and the size of its tensor-parallel group; DeepSpeed's `mp_group`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankGroup {
    rank: usize,
    ranks: usize,
}

impl RankGroup {
    /// One rank that holds everything.
    pub const fn single() -> Self {
        Self { rank: 0, ranks: 1 }
    }

    /// Rank `rank` of `ranks`.
    ///
    /// # Errors
    /// [`ConfigError::RankOutOfRange`], or [`ConfigError::OutOfRange`] for a group of none.
    pub fn new(rank: usize, ranks: usize) -> Result<Self, ConfigError> {
        if ranks == 0 {
            return Err(ConfigError::OutOfRange { key: "mp_size", value: "0".into(), limit: "at least 1" });
        }
        if rank >= ranks {
            return Err(ConfigError::RankOutOfRange { rank, ranks });
        }
        Ok(Self { rank, ranks })
    }

    /// This rank, counted from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks of the group.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The sum of `partial` over all ranks; the argument itself when there is one.
    ///
    /// # Errors
    /// [`AttentionError::NoCommunicator`] when there are several.
    pub fn all_reduce<B: Backend, const D: usize>(
        &self,
        partial: Tensor<B, D>,
    ) -> Result<Tensor<B, D>, AttentionError> {
        match self.ranks {
            1 => Ok(partial),
            ranks => Err(AttentionError::NoCommunicator { rank: self.rank, ranks }),
        }
    }
}
