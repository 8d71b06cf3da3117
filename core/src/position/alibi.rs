//! ALiBi slopes, <https://arxiv.org/abs/2108.12409>.

use crate::parallel::HeadShard;

/// The slope of every head of a model, for any head count.
///
/// For a power of two the slopes are `2^(-8 (h + 1) / heads)`. Otherwise the largest power of two below comes first,
/// and the rest are every second slope of the next power of two, as the paper's authors and BLOOM do.
///
/// ```
/// use burn_deepspeed_core::position::alibi::slopes;
/// assert_eq!(slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
/// assert_eq!(slopes(3)[2], 0.5f32.powi(2));
/// ```
pub fn slopes(heads: usize) -> Vec<f32> {
    if heads == 0 {
        return Vec::new();
    }
    let below = 1usize << heads.ilog2();
    let geometric = |count: usize, index: usize| 2f64.powf(-8.0 * (index + 1) as f64 / count as f64) as f32;
    let first = (0..below).map(|h| geometric(below, h));
    let rest = (0..heads - below).map(|h| geometric(2 * below, 2 * h));
    first.chain(rest).collect()
}

/// The slopes of the heads of one rank. Heads are counted over the whole model.
pub fn shard_slopes(shard: &HeadShard) -> Vec<f32> {
    slopes(shard.total)[shard.start..shard.start + shard.len].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_six_heads_are_blooms() {
        // 2^-2, 2^-4, 2^-6, 2^-8 of four heads, then the first and third of eight heads
        assert_eq!(slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
    }

    #[test]
    fn slopes_fall_within_each_part_for_every_head_count() {
        for heads in 1..=128usize {
            let all = slopes(heads);
            let below = 1usize << heads.ilog2();
            assert_eq!(all.len(), heads);
            assert!((all[below - 1] - 2f32.powi(-8)).abs() < 1e-9, "{heads}");
            for part in [&all[..below], &all[below..]] {
                assert!(part.windows(2).all(|pair| pair[1] < pair[0]), "{heads}");
            }
        }
    }
}
