//! What a device allows. CUDA C++ Programming Guide, "Compute Capabilities".

use crate::compile::Kernel;
use crate::memory::MOST_BLOCKS;
use crate::shape::Launch;

/// The limits of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Compute capability: ten times the major number plus the minor one.
    pub capability: u32,
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory of a block whose kernel asks for more than [`Self::SHARED`].
    pub most_shared: usize,
}

impl Limits {
    /// Most threads of a block.
    pub const THREADS: u32 = 1024;
    /// Most threads of a block, by axis.
    pub const BLOCK: [u32; 3] = [1024, 1024, 64];
    /// Most blocks of a grid, by axis.
    pub const GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
    /// Bytes of shared memory of a block whose kernel does not ask for more.
    pub const SHARED: usize = 48 << 10;

    /// Those of an A100 for capabilities below 90, and of an H100 from there on.
    pub const fn of(capability: u32) -> Self {
        match capability {
            0..90 => Self { capability, multiprocessors: 108, most_shared: 163 << 10 },
            90.. => Self { capability, multiprocessors: 132, most_shared: 227 << 10 },
        }
    }

    /// Whether a program may allow a kernel so many bytes of shared memory in addition to those that it declares.
    pub fn allows_shared(&self, kernel: &Kernel, dynamic: usize) -> bool {
        kernel.shared_bytes.checked_add(dynamic).is_some_and(|bytes| bytes <= self.most_shared)
    }

    /// Whether the device would accept the launch.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, kernel: &Kernel, launch: &Launch) -> Result<(), String> {
        let Launch { grid, block, dynamic_shared, .. } = launch;
        if launch.threads() == 0 || launch.blocks() == 0 {
            return Err(format!("a grid of {grid:?} blocks of {block:?} threads is empty"));
        }
        let most = kernel.most_threads.unwrap_or(Self::THREADS).min(Self::THREADS);
        if launch.threads() > most {
            return Err(format!("{} threads in a block; {most} are possible", launch.threads()));
        }
        let above = |sizes: &[u32; 3], most: [u32; 3]| sizes.iter().zip(most).any(|(size, most)| *size > most);
        if above(block, Self::BLOCK) {
            return Err(format!("a block of {block:?} threads; {:?} are possible", Self::BLOCK));
        }
        if above(grid, Self::GRID) || launch.blocks() > MOST_BLOCKS {
            return Err(format!("a grid of {grid:?} blocks; {:?} are possible, {MOST_BLOCKS} in all", Self::GRID));
        }
        let allowed = kernel.allowed_dynamic_shared().max(Self::SHARED.saturating_sub(kernel.shared_bytes));
        if *dynamic_shared > allowed {
            return Err(format!("{dynamic_shared} bytes of dynamic shared memory; the kernel may have {allowed}"));
        }
        Ok(())
    }
}
