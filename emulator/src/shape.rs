//! The shape of a launch.

use crate::registers::WARP;

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks of the grid, by axis.
    pub grid: [u32; 3],
    /// Threads of a block, by axis.
    pub block: [u32; 3],
    /// Bytes of shared memory in addition to those that the kernel declares.
    pub dynamic_shared: usize,
    /// Decides in which order the warps of a block run.
    pub seed: u64,
    /// Whether the kernel may read global memory that nothing has written, its blocks may race with each other there, and lanes of a
    /// warp in shared memory.
    pub lenient: bool,
    /// Runs about as many blocks, spread over the grid, and counts sectors that blocks share; runs all if `None`.
    pub sample: Option<u64>,
}

impl Launch {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// Warps of a block.
    pub fn warps(&self) -> usize {
        (self.threads() as usize).div_ceil(WARP)
    }

    /// Blocks of the grid.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|size| u64::from(*size)).product()
    }

    /// Position of a block in the grid.
    pub(crate) fn position(&self, number: u64) -> [u32; 3] {
        let [width, height, _] = self.grid.map(u64::from);
        [number % width, number / width % height, number / width / height].map(|axis| axis as u32)
    }
}
