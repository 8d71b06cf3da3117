//! Which blocks of a grid run, where some of them stand for all.

use crate::shape::Launch;

/// The blocks of a launch that run.
///
/// They are chosen in slices: blocks that differ in x alone, or single blocks if the grid is a line. The kernels of a model put
/// independent problems along y and z, so a slice is one problem with all its tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Places of the slices along y and z, or of the blocks of a line.
    slices: Places,
    /// Places of the blocks of a slice.
    blocks: Places,
    /// Blocks that a slice has.
    width: u64,
}

/// Places along a line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Places {
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

/// Multiples of this, without their integer parts, are spread evenly over 0 to 1.
const GOLDEN: f64 = 0.618_033_988_749_894_9;
/// Fewest slices: two show what slices share.
const FEWEST_SLICES: u64 = 2;

impl Sample {
    /// About as many blocks as the launch asks for, spread over the grid; every one if it does not ask.
    pub fn new(launch: &Launch) -> Self {
        let [x, y, z] = launch.grid.map(u64::from);
        let (slices, width) = if y * z > 1 { (y * z, x) } else { (x, 1) };
        let Some(wanted) = launch.sample else {
            return Self { slices: Places::All(slices), blocks: Places::All(width), width };
        };
        let each = width.min(wanted.div_ceil(FEWEST_SLICES));
        // Equal distances: the mean of what grows along x is exact.
        let blocks = Places::Chosen((0..each).map(|at| (2 * at + 1) * width / (2 * each)).collect());
        let wanted = wanted.div_ceil(each).max(FEWEST_SLICES);
        let slices = if wanted >= slices {
            Places::All(slices)
        } else {
            let place = |at: u64| ((at as f64 + 0.5) * GOLDEN).fract() * slices as f64;
            let mut chosen: Vec<_> = (0..wanted).map(|at| place(at) as u64).collect();
            chosen.sort_unstable();
            chosen.dedup();
            Places::Chosen(chosen)
        };
        Self { slices, blocks, width }
    }

    /// How many blocks run.
    pub fn count(&self) -> u64 {
        self.slices.count() * self.blocks.count()
    }

    /// Whether slices run whole.
    pub fn has_whole_slices(&self) -> bool {
        self.blocks.count() == self.width
    }

    /// Number in the grid, and slice, of one that runs.
    pub fn block(&self, at: u64) -> (u64, u64) {
        let each = self.blocks.count();
        let slice = self.slices.at(at / each);
        (slice * self.width + self.blocks.at(at % each), slice)
    }
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
    fn long_slices_run_in_part() {
        let chosen = sample([100, 3, 1], Some(10));
        assert_eq!(chosen[..5], [10, 30, 50, 70, 90].map(|x| chosen[0] / 100 * 100 + x));
        assert_eq!(chosen.len(), 10);
        let mean = chosen.iter().map(|block| block % 100).sum::<u64>() as f64 / 10.0;
        assert_eq!(mean, 50.0);
    }
}
