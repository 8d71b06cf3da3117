//! Which blocks of a grid run, where some of them stand for all.

use crate::shape::Launch;

/// The blocks of a launch that run.
///
/// A slice of the grid are blocks that differ in x alone, or a single block if the grid is a line. The kernels of a model put
/// independent problems along y and z, so a slice is mostly one problem with all its tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sample {
    /// Whole slices.
    Slices {
        /// Places of the slices along y and z, or of the blocks of a line.
        slices: Places,
        /// Blocks that a slice has.
        width: u64,
    },
    /// Blocks of different slices: their numbers in the grid, and their slices.
    Blocks(Vec<(u64, u64)>),
}

/// Places along a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places {
    /// As many as there are.
    All(u64),
    Chosen(Vec<u64>),
}

impl Places {
    fn count(&self) -> u64 {
        match self {
            Self::All(count) => *count,
            Self::Chosen(places) => places.len() as u64,
        }
    }

    fn at(&self, index: u64) -> u64 {
        match self {
            Self::All(_) => index,
            Self::Chosen(places) => places[index as usize],
        }
    }
}

/// Multiples of about this part of a number, modulo the number, are spread evenly.
const GOLDEN: f64 = 0.618_033_988_749_894_9;
/// Fewest slices: two show what slices share.
const FEWEST_SLICES: u64 = 2;
/// Slices next to each other that may differ in what they do, and a number without a common divisor.
const NEAR: u64 = 12;
const NEAR_STEP: u64 = 5;
/// A grid of so many times the blocks that are asked for runs whole.
const FEW: u64 = 4;

impl Sample {
    /// About as many blocks as the launch asks for, spread over the grid; every one if it does not ask.
    pub fn new(launch: &Launch) -> Self {
        let [x, y, z] = launch.grid.map(u64::from);
        let (slices, width) = if y * z > 1 { (y * z, x) } else { (x, 1) };
        match launch.sample {
            None => Self::Slices { slices: Places::All(slices), width },
            Some(wanted) if slices * width <= wanted * FEW => Self::Slices { slices: Places::All(slices), width },
            Some(wanted) if width <= wanted.div_ceil(FEWEST_SLICES) => {
                let wanted = wanted.div_ceil(width).max(FEWEST_SLICES);
                Self::Slices { slices: spread(wanted, slices), width }
            }
            Some(wanted) => Self::Blocks(scattered(wanted.min(width), slices, width)),
        }
    }

    /// How many blocks run.
    pub fn count(&self) -> u64 {
        match self {
            Self::Slices { slices, width } => slices.count() * width,
            Self::Blocks(blocks) => blocks.len() as u64,
        }
    }

    /// Whether slices run whole.
    pub fn has_whole_slices(&self) -> bool {
        matches!(self, Self::Slices { .. })
    }

    /// Number in the grid, and slice, of one that runs.
    pub fn block(&self, at: u64) -> (u64, u64) {
        match self {
            Self::Slices { slices, width } => {
                let slice = slices.at(at / width);
                (slice * width + at % width, slice)
            }
            Self::Blocks(blocks) => blocks[at as usize],
        }
    }
}

/// Some of the slices: one of each of `wanted` equal runs, in another part of each. So the means of what grows along the line, and
/// along each of several problems on it, are near those of all. What repeats after few slices is met in each of its places.
fn spread(wanted: u64, slices: u64) -> Places {
    if wanted >= slices {
        return Places::All(slices);
    }
    let (run, step) = (slices / wanted, step(wanted));
    let within = |at: u64| ((2 * (at * step % wanted) + 1) * run / (2 * wanted) + at * NEAR_STEP % NEAR) % run;
    Places::Chosen((0..wanted).map(|at| at * slices / wanted + within(at)).collect())
}

/// A number of which the first `count` multiples are in all places modulo `count`, neighbours far from each other.
fn step(count: u64) -> u64 {
    (1..=count).rev().find(|step| *step as f64 <= GOLDEN * count as f64 && coprime(*step, count)).unwrap_or(1)
}

/// Blocks of which each is in another place along x, at equal distances, and so are their slices: the mean of what grows along
/// either is exact. Neighbours along x are in distant slices. `count` is at most `width`.
fn scattered(count: u64, slices: u64, width: u64) -> Vec<(u64, u64)> {
    let step = step(count);
    let place = |at: u64, of: u64| (2 * at + 1) * of / (2 * count);
    let blocks = (0..count).map(|at| {
        let slice = place(at * step % count, slices);
        (slice * width + place(at, width), slice)
    });
    blocks.collect()
}

fn coprime(a: u64, b: u64) -> bool {
    if b == 0 { a == 1 } else { coprime(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(grid: [u32; 3], sample: Option<u64>) -> Vec<u64> {
        let launch = Launch { grid, block: [32, 1, 1], dynamic_shared: 0, seed: 0, lenient: false, sample };
        let sample = Sample::new(&launch);
        (0..sample.count()).map(|at| sample.block(at).0).collect()
    }

    #[test]
    fn all_blocks_run_if_nothing_is_asked() {
        assert_eq!(sample([3, 2, 2], None), (0..12).collect::<Vec<_>>());
        assert_eq!(sample([5, 1, 1], Some(9)), [0, 1, 2, 3, 4]);
        assert_eq!(sample([3, 2, 2], Some(3)), (0..12).collect::<Vec<_>>(), "few blocks");
    }

    #[test]
    fn slices_are_whole_and_spread() {
        let chosen = sample([4, 8, 8], Some(10));
        assert_eq!(chosen.len(), 12, "3 slices of 4");
        assert!(chosen.chunks(4).all(|slice| slice[0].is_multiple_of(4) && slice[3] == slice[0] + 3));
        let line = sample([1000, 1, 1], Some(50));
        let middle = line.iter().filter(|block| (250..750).contains(*block)).count();
        assert!((20..=30).contains(&middle), "{middle} of {} in the middle half", line.len());
    }

    #[test]
    fn a_line_of_problems_has_nearly_the_mean_of_all() {
        // 32 problems of 512 blocks, which do more the later they are in theirs.
        let chosen = sample([32 * 512, 1, 1], Some(16));
        let mean = |of: fn(u64) -> u64| chosen.iter().map(|block| of(*block)).sum::<u64>() as f64 / 16.0;
        assert_eq!((mean(|block| block), mean(|block| block % 512)), (8197.25, 261.25));
        // Three blocks for each token, for queries, keys and values.
        let chosen = sample([4096 * 3, 1, 1], Some(16));
        let kinds = [0, 1, 2].map(|kind| chosen.iter().filter(|block| *block % 3 == kind).count());
        assert_eq!(kinds, [6, 5, 5]);
    }

    #[test]
    fn long_slices_run_in_part() {
        let chosen = sample([100, 40, 1], Some(10));
        assert_eq!(chosen.len(), 10);
        let mean = |of: fn(u64) -> u64| chosen.iter().map(|block| of(*block)).sum::<u64>() as f64 / 10.0;
        assert_eq!((mean(|block| block % 100), mean(|block| block / 100)), (50.0, 20.0));
        assert!(
            chosen.windows(2).all(|two| two[0] / 100 != two[1] / 100),
            "neighbours are in different slices: {chosen:?}"
        );
        let few = sample([100, 3, 1], Some(10));
        assert_eq!(few.iter().map(|block| block % 100).collect::<Vec<_>>(), [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]);
    }
}
