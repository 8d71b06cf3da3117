//! How a checkpoint packs queries, keys and values into one matrix.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData, backend::Backend};

use crate::parallel::HeadShard;

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
    /// tensor-parallel training run.
    PerRank(usize),
}

impl QkvLayout {
    /// The fused outputs of whole queries, keys and values: the way back from [`split`](Self::split) with all heads.
    ///
    /// # Shapes
    /// - parts: `[rows, all N·H, columns]` and twice `[rows, all K·H, columns]`
    /// - output: `[rows, (all N + 2 all K)·H, columns]`
    pub fn merge<B: Backend>(self, parts: [Tensor<B, 3>; 3], head_dim: usize) -> Tensor<B, 3> {
        let [heads, kv_heads] = [0, 1].map(|part: usize| parts[part].dims()[1] / head_dim);
        let blocks = self.blocks(heads, kv_heads);
        let [rows, _, columns] = parts[0].dims();
        let blocked = parts.map(|part| -> Tensor<B, 4> {
            let width = part.dims()[1] / blocks;
            part.reshape([rows, blocks, width, columns])
        });
        Tensor::cat(blocked.into(), 2).reshape([rows, (heads + 2 * kv_heads) * head_dim, columns])
    }

    /// How many blocks of queries, keys and values stand behind each other.
    fn blocks(self, heads: usize, kv_heads: usize) -> usize {
        let blocks = match self {
            Self::Concat => 1,
            Self::PerHead => {
                assert!(
                    heads == kv_heads,
                    "QkvLayout::PerHead: {heads} query heads and {kv_heads} key/value heads, expected as many"
                );
                heads
            }
            Self::PerGroup => kv_heads,
            Self::PerRank(ranks) => ranks,
        };
        assert!(
            blocks > 0 && heads.is_multiple_of(blocks) && kv_heads.is_multiple_of(blocks),
            "QkvLayout: {heads} query heads and {kv_heads} key/value heads do not split into {blocks} blocks"
        );
        blocks
    }

    /// Queries, keys and values of the heads of `shard`, taken out of the fused outputs of the whole model.
    ///
    /// # Shapes
    /// - fused: `[rows, (all N + 2 all K)·H, columns]`
    /// - output: `[rows, N·H, columns]` and twice `[rows, K·H, columns]`
    ///
    /// # Panics
    /// If the heads do not fit the layout: [`PerHead`](Self::PerHead) needs a key/value head for every query head,
    /// [`PerRank`](Self::PerRank) a rank count that divides both.
    pub fn split<B: Backend>(self, fused: Tensor<B, 3>, shard: &HeadShard, head_dim: usize) -> [Tensor<B, 3>; 3] {
        self.rows(shard, head_dim).map(|rows| picked(fused.clone(), 1, &rows))
    }

    /// Which of the fused outputs the queries, keys and values of the heads of `shard` are, in order.
    ///
    /// # Panics
    /// As [`split`](Self::split).
    pub(super) fn rows(self, shard: &HeadShard, head_dim: usize) -> [Vec<usize>; 3] {
        let blocks = self.blocks(shard.total, shard.kv_total);
        let (queries, keys) = (shard.total / blocks, shard.kv_total / blocks);
        let part = |start: usize, count: usize, own: Range<usize>| {
            let place = |head| (head / count * (queries + 2 * keys) + start + head % count) * head_dim;
            own.map(place).flat_map(|first| first..first + head_dim).collect()
        };
        let own = shard.kv_start..shard.kv_start + shard.kv_len;
        [
            part(0, queries, shard.start..shard.start + shard.len),
            part(queries, keys, own.clone()),
            part(queries + keys, keys, own),
        ]
    }
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
