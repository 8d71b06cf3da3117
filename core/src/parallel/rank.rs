//! A rank and its group.

use std::ops::Range;

use crate::error::ConfigError;

/// A rank and the size of its tensor-parallel group; DeepSpeed's `mp_group`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankGroup {
    rank: usize,
    ranks: usize,
}

impl RankGroup {
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

    /// This rank's contiguous part of `count` things, such as the features of an MLP. The parts of the first ranks may be
    /// larger by one.
    ///
    /// ```
    /// # use burn_deepspeed_core::parallel::RankGroup;
    /// assert_eq!(RankGroup::new(1, 3)?.part(10), 4..7);
    /// # Ok::<_, burn_deepspeed_core::error::ConfigError>(())
    /// ```
    pub fn part(&self, count: usize) -> Range<usize> {
        part(count, self.ranks, self.rank)
    }
}

/// Part `index` of `count` things in `parts` contiguous parts; the first may be larger by one. Source: `get_shard_size` in
/// DeepSpeed's `tp_shard.py`.
pub(super) fn part(count: usize, parts: usize, index: usize) -> Range<usize> {
    let start = |index: usize| index * (count / parts) + index.min(count % parts);
    start(index)..start(index + 1)
}
