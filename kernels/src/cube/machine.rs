//! What a device can do, and what the kernels cannot.

use burn_deepspeed_core::block::BlockFormat;
use cubecl::ir::features::Plane;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

/// What the launchers need to know of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Units of a plane (a warp, a subgroup): 32 on CUDA, 8 on lavapipe. 1 where it is not fixed.
    pub plane_size: u32,
    /// Whether units of a plane exchange values directly; otherwise they go through shared memory.
    pub plane_operations: bool,
    /// Most units of a cube.
    pub max_units: u32,
    /// Shared memory of a cube, in bytes.
    pub shared_bytes: usize,
    /// Streaming multiprocessors, or a guess where the device does not say.
    pub processors: u32,
    /// Most cubes along each axis.
    pub max_cubes: [u32; 3],
    /// Whether `2^x` in fast arithmetic keeps a NaN and makes 0 of `-inf`, as on CUDA. Others promise neither.
    pub power_of_two: bool,
    /// Whether every f16 becomes f32 in one instruction, subnormal ones as well, as on CUDA. Others have no f16, or may flush these to 0.
    pub halves: bool,
    /// Whether `fma` rounds once, as on CUDA. Others may round the product as well.
    pub fused: bool,
    /// Whether the units of a plane can wait for each other and for what they wrote to shared memory, as on CUDA. WGSL has no such barrier, and
    /// that of CubeCL's SPIR-V does not wait for memory.
    pub plane_barrier: bool,
    /// Whether tensor cores are used, where the device has them for the elements.
    pub tensor_cores: bool,
    /// Whether memory can be read and written in vectors of any width, as on CUDA. CubeCL's other compilers have one width for each tensor.
    pub any_width: bool,
}

/// `f16` as an element type.
pub(crate) fn f16_type() -> StorageType {
    StorageType::Scalar(ElemType::Float(FloatKind::F16))
}

/// The name of CubeCL's runtime for CUDA.
const CUDA: &str = "cuda";
/// Multiprocessors that are assumed of a device that does not say.
const UNKNOWN_PROCESSORS: u32 = 32;

impl Machine {
    /// The device of a client.
    pub fn new<R: Runtime>(client: &ComputeClient<R>) -> Self {
        let properties = client.properties();
        let hardware = &properties.hardware;
        let fixed = hardware.plane_size_min == hardware.plane_size_max;
        let (x, y, z) = hardware.max_cube_count;
        Self {
            plane_size: if fixed { hardware.plane_size_min.max(1) } else { 1 },
            plane_operations: fixed && properties.features.plane.contains(Plane::Ops),
            max_units: hardware.max_units_per_cube.min(hardware.max_cube_dim.0),
            shared_bytes: hardware.max_shared_memory_size,
            processors: hardware.num_streaming_multiprocessors.unwrap_or(UNKNOWN_PROCESSORS),
            max_cubes: [x, y, z],
            power_of_two: R::name(client) == CUDA,
            halves: R::name(client) == CUDA && properties.supports_type(f16_type()),
            fused: R::name(client) == CUDA,
            plane_barrier: R::name(client) == CUDA && fixed,
            tensor_cores: true,
            any_width: R::name(client) == CUDA,
        }
    }

    /// Plane operations forced on or off: cubecl hides them on adapters of the type CPU, where they do work.
    pub fn with_plane_operations(self, plane_operations: bool) -> Self {
        Self { plane_operations, ..self }
    }

    /// Units of a cube: `wanted`, in whole planes, as far as the device allows.
    pub(crate) fn units(&self, wanted: u32) -> u32 {
        wanted.min(self.max_units).max(self.plane_size)
    }

    /// Units of a cube: `wanted`, a power of two, or the largest power of two below that the device allows.
    pub(crate) fn even_units(&self, wanted: u32) -> u32 {
        1 << self.units(wanted).ilog2()
    }

    /// Checks the number of cubes.
    pub(crate) fn cubes(&self, count: [usize; 3]) -> Result<CubeCount, Unsupported> {
        let fits = count.iter().zip(self.max_cubes).all(|(count, limit)| *count <= limit as usize);
        match fits {
            true => Ok(CubeCount::Static(count[0] as u32, count[1] as u32, count[2] as u32)),
            false => Err(Unsupported::TooManyCubes { count, limit: self.max_cubes }),
        }
    }

    /// Cubes for `items`, `each` of them to a cube, in one line that is folded over the axes of the grid: a kernel finds its
    /// place in the line in `CUBE_POS`, and does nothing after the last item.
    pub(crate) fn folded(&self, items: usize, each: usize) -> Result<CubeCount, Unsupported> {
        countable(items)?;
        let count = items.div_ceil(each).max(1);
        let [x, y, _] = self.max_cubes.map(|limit| limit as usize);
        let depth = count.div_ceil(x.saturating_mul(y));
        let rows = count.div_ceil(depth).div_ceil(x);
        self.cubes([count.div_ceil(depth * rows), rows, depth])
    }
}

/// Most rows, slots or vectors that a kernel counts.
pub(crate) const MOST_ITEMS: usize = 1 << 31;

/// Checks that a kernel can count this many items: half of what 32 bits count, so that numbers after the last one do not wrap.
pub(crate) fn countable(items: usize) -> Result<(), Unsupported> {
    if items > MOST_ITEMS { Err(Unsupported::TooLarge { elements: items }) } else { Ok(()) }
}

/// Checks that a size consists of whole loads.
pub(crate) fn whole(what: &'static str, size: usize, multiple: usize) -> Result<(), Unsupported> {
    if size.is_multiple_of(multiple) { Ok(()) } else { Err(Unsupported::Multiple { what, size, multiple }) }
}

/// Why a kernel does not take a problem. Nothing was launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// The elements of a tensor cannot be reached with 32-bit indices.
    #[error("a tensor spans {elements} elements, and the kernels address 4294967295")]
    TooLarge {
        /// From the first to the last.
        elements: usize,
    },
    /// The grid is larger than the device's.
    #[error("{count:?} cubes, and the device has {limit:?}")]
    TooManyCubes {
        /// Cubes along each axis.
        count: [usize; 3],
        /// Most cubes along each axis.
        limit: [u32; 3],
    },
    /// A head has too many features.
    #[error("heads of {head_dim} features; the kernel takes up to {limit}")]
    HeadDim {
        /// Features of a head.
        head_dim: usize,
        /// The most that the kernel takes.
        limit: usize,
    },
    /// A head has a number of features that does not fill the columns of a product.
    #[error("heads of {head_dim} features; the kernel takes multiples of {multiple}")]
    HeadMultiple {
        /// Features of a head.
        head_dim: usize,
        /// Of which they must be a multiple.
        multiple: usize,
    },
    /// Values have another number of features than keys.
    #[error("heads of {head_dim} features with values of {value_dim}; the kernel takes equal ones")]
    ValueDim {
        /// Features of queries and keys.
        head_dim: usize,
        /// Features of values.
        value_dim: usize,
    },
    /// The tiles of the kernel are larger than the shared memory of a cube.
    #[error("{needed} bytes of shared memory; the device has {limit}")]
    SharedMemory {
        /// Bytes that the kernel needs.
        needed: usize,
        /// Bytes that the device has.
        limit: usize,
    },
    /// The features of a row are not contiguous.
    #[error("the last axis of `{tensor}` has a stride of {stride}, expected 1")]
    Stride {
        /// The tensor.
        tensor: &'static str,
        /// Its last stride.
        stride: usize,
    },
    /// The kernel keeps the sums of all rows in registers, and there are too many.
    #[error("{rows} rows; the kernel takes up to {limit}")]
    Rows {
        /// Rows of the input.
        rows: usize,
        /// The most that the kernel takes.
        limit: usize,
    },
    /// There are too few rows for the kernel to be worth it.
    #[error("{rows} rows; the kernel takes at least {least}")]
    FewRows {
        /// Rows of the input.
        rows: usize,
        /// The fewest that the kernel takes.
        least: usize,
    },
    /// Queries of one key head see different keys, whose values may be anything, and the kernel multiplies with all of them.
    #[error("queries of a key head see different keys; the kernel takes those that see the same")]
    MixedVisibility,
    /// The outputs of a matrix are contiguous, and the kernel reads along the inputs.
    #[error("the matrix is [in, out]; the kernel takes [out, in]")]
    Orientation,
    /// The kernel does not read blocks of this format as they are stored.
    #[error("blocks of {0}; the kernel reads Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K and MXFP4")]
    BlockFormat(BlockFormat),
    /// A size does not consist of whole loads.
    #[error("{what}: {size}; the kernel takes multiples of {multiple}")]
    Multiple {
        /// What has the size.
        what: &'static str,
        /// The size, in elements.
        size: usize,
        /// Of which it must be a multiple.
        multiple: usize,
    },
    /// Two tensors that need the same element type have different ones.
    #[error("the elements of `{tensor}` are {given:?}, expected {expected:?}")]
    MixedTypes {
        /// The tensor.
        tensor: &'static str,
        /// Its elements.
        given: StorageType,
        /// Those of the tensor that it goes with.
        expected: StorageType,
    },
    /// The device has no tensor cores for these elements.
    #[error("the device has no tensor cores for elements of {0:?}")]
    TensorCores(StorageType),
    /// The device cannot compute with this element type.
    #[error("the device cannot compute with elements of {0:?}")]
    ElementType(StorageType),
}
