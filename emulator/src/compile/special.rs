//! Special registers: what a thread is. PTX ISA, "Special Registers".

/// A special register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Position in the block, by axis.
    Thread(usize),
    /// Size of the block.
    Threads(usize),
    /// Position of the block in the grid.
    Block(usize),
    /// Size of the grid.
    Blocks(usize),
    Lane,
    Warp,
    Warps,
    /// Lanes before this one.
    LanesBelow,
    /// This lane.
    LaneBit,
    /// This lane and those before it.
    LanesUpTo,
    /// Bytes of shared memory that the launch added.
    DynamicShared,
    Zero,
}

impl Special {
    /// The special register of this name.
    pub fn parse(name: &str) -> Option<Self> {
        let axis = |suffix: &str| ["x", "y", "z"].iter().position(|axis| *axis == suffix);
        Some(match name.strip_prefix('%')? {
            "laneid" => Self::Lane,
            "warpid" => Self::Warp,
            "nwarpid" => Self::Warps,
            "lanemask_lt" => Self::LanesBelow,
            "lanemask_eq" => Self::LaneBit,
            "lanemask_le" => Self::LanesUpTo,
            "dynamic_smem_size" => Self::DynamicShared,
            // Time does not pass, so a wait never gives up.
            "globaltimer" | "clock" | "clock64" => Self::Zero,
            // Of a grid without clusters.
            "cluster_ctaid.x" | "cluster_ctaid.y" | "cluster_ctaid.z" => Self::Zero,
            other => {
                let (register, suffix) = other.split_once('.')?;
                let axis = axis(suffix)?;
                match register {
                    "tid" => Self::Thread(axis),
                    "ntid" => Self::Threads(axis),
                    "ctaid" => Self::Block(axis),
                    "nctaid" => Self::Blocks(axis),
                    _ => return None,
                }
            }
        })
    }

    /// The value in one lane of a warp.
    pub fn value(self, launch: &crate::shape::Launch, block: [u32; 3], warp: usize, lane: usize) -> u32 {
        let [width, height, _] = launch.block;
        let thread = (warp * crate::registers::WARP + lane) as u32;
        let position = [thread % width, thread / width % height, thread / width / height];
        let lane = lane as u32;
        match self {
            Self::Thread(axis) => position[axis],
            Self::Threads(axis) => launch.block[axis],
            Self::Block(axis) => block[axis],
            Self::Blocks(axis) => launch.grid[axis],
            Self::Lane => lane,
            Self::Warp => warp as u32,
            Self::Warps => launch.warps() as u32,
            Self::LanesBelow => (1 << lane) - 1,
            Self::LaneBit => 1 << lane,
            Self::LanesUpTo => (1u32 << lane) | ((1 << lane) - 1),
            Self::DynamicShared => launch.dynamic_shared as u32,
            Self::Zero => 0,
        }
    }
}
