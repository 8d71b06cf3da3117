//! How a checkpoint packs queries, keys and values into one matrix.

use burn::tensor::{Tensor, backend::Backend};

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
        let [rows, _, columns] = fused.dims();
        let (heads, kv_heads) = (shard.total, shard.kv_total);
        let blocks = self.blocks(heads, kv_heads);
        let (queries, keys) = (heads / blocks, kv_heads / blocks);
        let blocked: Tensor<B, 5> = fused.reshape([rows, blocks, queries + 2 * keys, head_dim, columns]);
        let part = |start: usize, count: usize, first: usize, own: usize| -> Tensor<B, 3> {
            let all = blocked.clone().narrow(2, start, count);
            let all: Tensor<B, 4> = all.reshape([rows, blocks * count, head_dim, columns]);
            all.narrow(1, first, own).reshape([rows, own * head_dim, columns])
        };
        [
            part(0, queries, shard.start, shard.len),
            part(queries, keys, shard.kv_start, shard.kv_len),
            part(queries + keys, keys, shard.kv_start, shard.kv_len),
        ]
    }
}
