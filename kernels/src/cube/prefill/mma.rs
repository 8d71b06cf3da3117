//! Flash attention (<https://arxiv.org/abs/2307.08691>) on tensor cores.

mod fragment;
mod kernel;
mod stage;

use cubecl::ir::features::MmaConfig;
use cubecl::prelude::*;

use self::fragment::{EXCHANGED, LANES, Layout};
use self::kernel::{SizesLaunch, attend};
use crate::cube::attention::{Attention, AttentionSizes, head_strides};
use crate::cube::machine::{Machine, Unsupported, array, vector_size};

/// Largest head.
pub const LARGEST_HEAD: usize = 256;
/// Largest head of which a plane keeps 16 queries in registers.
const RESIDENT_HEAD: usize = 128;
/// Most keys of a step where int8 does not lie evenly over the units: the places of each unit take registers.
const UNEVEN_KEYS: u32 = 16;
/// Features of which a head must have a multiple: columns of a product.
const COLUMNS: usize = 8;

/// Who multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Tensor cores, through fragments of `mma.m16n8k16`.
    TensorCores {
        /// Whether keys and values are copied while the ones before are multiplied, where their rows allow it.
        asynchronous: bool,
    },
    /// Plain loops over the same fragments, for devices and element types without tensor cores: slow, and a check of
    /// everything but the instructions.
    Emulated,
}

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    emulate: bool,
    asynchronous: bool,
    /// Planes of a cube, 16 rows each.
    planes: u32,
    /// Keys of a step.
    keys: u32,
    /// Steps in shared memory: 1, or 2 if one is filled while the other is read.
    stages: u32,
    head_dim: u32,
    /// Elements of a vector.
    vector: u32,
    /// Whether the queries stay in registers, and their shared memory goes to keys.
    resident: bool,
    /// Whether only ranges of keys are hidden and nothing is added to the scores.
    plain: bool,
    /// Whether the context is written in pairs.
    pairs: bool,
    /// Whether keys or values become floats on their way to shared memory.
    int8: bool,
}

impl Tile {
    fn rows(&self) -> u32 {
        self.planes * 16
    }

    fn units(&self) -> u32 {
        self.planes * LANES
    }

    /// Vectors of a row in memory.
    fn vectors(&self) -> u32 {
        self.head_dim / self.vector
    }

    /// Whether every unit copies the same part of each row that it comes to.
    fn even(&self) -> bool {
        self.units().is_multiple_of(self.vectors())
    }

    /// Features with the zeros behind them.
    fn padded(&self) -> u32 {
        self.head_dim.next_multiple_of(16)
    }

    /// Rows are an odd number of 16 bytes, in 16-bit elements: eight of them are on different banks.
    fn layout(&self) -> Layout {
        let chunk = 8 / self.vector;
        Layout { width: (self.padded() / 8 + 1) * chunk, chunk, vector: self.vector, emulate: self.emulate }
    }

    /// Registers of the queries, all of them or those of one product.
    fn query_registers(&self) -> usize {
        if self.resident { self.padded() as usize / 4 } else { 4 }
    }

    /// Registers of the context, with those behind the features.
    fn result_registers(&self) -> usize {
        self.padded() as usize / 4
    }

    fn stage_rows(&self) -> u32 {
        let keys = self.stages * 2 * self.keys;
        if self.resident { keys.max(self.query_row() + self.rows()) } else { keys + self.rows() }
    }

    /// The first row of the queries: behind the keys, or where the second step of keys will be.
    fn query_row(&self) -> u32 {
        let stages = if self.resident { self.stages - 1 } else { self.stages };
        stages * 2 * self.keys
    }

    fn query_origin(&self) -> u32 {
        self.query_row() * self.layout().width
    }

    fn stage_vectors(&self) -> u32 {
        self.stage_rows() * self.layout().width
    }

    /// Floats that the lanes exchange.
    fn scratch(&self) -> u32 {
        if self.emulate { self.planes * EXCHANGED } else { 1 }
    }

    fn shared_bytes(&self, element: usize) -> usize {
        (self.stage_vectors() * self.vector) as usize * element + self.scratch() as usize * size_of::<f32>()
    }
}

impl Tile {
    fn check(&self, machine: &Machine, element: usize) -> Result<(), Unsupported> {
        let (needed, limit) = (self.shared_bytes(element), machine.shared_bytes);
        if needed > limit { Err(Unsupported::SharedMemory { needed, limit }) } else { Ok(()) }
    }
}

impl Engine {
    /// Tensor cores if the device has them for these elements, and room for heads of this size.
    ///
    /// # Errors
    /// [`Unsupported`] says what is missing.
    pub fn tensor_cores<R: Runtime>(
        client: &ComputeClient<R>,
        machine: &Machine,
        elements: StorageType,
        head_dim: usize,
    ) -> Result<Self, Unsupported> {
        check_head(head_dim)?;
        let features = client.features();
        let float = f32::as_type_native_unchecked().storage_type();
        let config = MmaConfig { a_type: elements, b_type: elements, cd_type: float, m: 16, n: 8, k: 16 };
        let whole = machine.plane_size == LANES && machine.plane_operations;
        let known = features.matmul.mma.contains(&config) && features.matmul.ldmatrix.contains(&elements);
        if !(whole && known && elements.size() == 2) {
            return Err(Unsupported::TensorCores(elements));
        }
        let one_stage = Self::TensorCores { asynchronous: false };
        one_stage.tile(head_dim, COLUMNS).check(machine, elements.size())?;
        Ok(Self::TensorCores { asynchronous: features.copy_async })
    }

    /// The tile for heads of this size, read in vectors of `vector` elements.
    fn tile(self, head_dim: usize, vector: usize) -> Tile {
        let asynchronous = self == Self::TensorCores { asynchronous: true };
        let (planes, keys, stages) = match self {
            Self::TensorCores { .. } => (4, if head_dim <= 128 { 64 } else { 32 }, if asynchronous { 2 } else { 1 }),
            // Small enough for 32 KiB of shared memory in f32.
            Self::Emulated if head_dim <= 40 => (2, 32, 2),
            Self::Emulated => (1, 16, 1),
        };
        Tile {
            emulate: self == Self::Emulated,
            asynchronous,
            planes,
            keys,
            stages,
            head_dim: head_dim as u32,
            vector: vector as u32,
            resident: head_dim <= RESIDENT_HEAD,
            plain: false,
            pairs: false,
            int8: false,
        }
    }
}

fn check_head(head_dim: usize) -> Result<(), Unsupported> {
    match head_dim.is_multiple_of(COLUMNS) {
        true if head_dim > LARGEST_HEAD => Err(Unsupported::HeadDim { head_dim, limit: LARGEST_HEAD }),
        true => Ok(()),
        false => Err(Unsupported::HeadMultiple { head_dim, multiple: COLUMNS }),
    }
}

/// Attends: one launch.
///
/// # Errors
/// [`Unsupported`]; nothing was launched.
pub fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: Attention<'_, R>,
    engine: Engine,
) -> Result<(), Unsupported> {
    let Attention { query, key, value, context, scale, masks, .. } = problem;
    let sizes = problem.check(client, LARGEST_HEAD)?;
    let AttentionSizes { batch, heads, kv_heads, tokens, head_dim } = sizes;
    check_head(head_dim)?;
    let group = sizes.group();
    let int8 = problem.key_scales.is_some() || problem.value_scales.is_some();
    let vector = vector_size(client, &[query, key, value], COLUMNS);
    let context_vector = vector_size(client, &[context], 2);
    let element = query.dtype.size();
    let engine = match engine {
        Engine::TensorCores { asynchronous } => {
            Engine::tensor_cores(client, machine, query.dtype, head_dim)?;
            // Asynchronous copies move 16 bytes as they are, and need room for two steps.
            let copies = asynchronous && client.features().copy_async && vector * element == 16 && !int8;
            let two_stages = Engine::TensorCores { asynchronous: true }.tile(head_dim, vector);
            Engine::TensorCores { asynchronous: copies && two_stages.check(machine, element).is_ok() }
        }
        Engine::Emulated => Engine::Emulated,
    };
    let plain = masks.is_range() && scale > 0.0;
    let tile = Tile { plain, pairs: context_vector == 2, int8, ..engine.tile(head_dim, vector) };
    let tile = if int8 && !tile.even() { Tile { keys: tile.keys.min(UNEVEN_KEYS), ..tile } } else { tile };
    tile.check(machine, element)?;
    let tiles = (group * tokens).div_ceil(tile.rows() as usize);
    let cubes = machine.cubes([tiles, kv_heads, batch])?;
    if heads == 0 || tokens == 0 || batch == 0 {
        return Ok(());
    }
    let sizes = SizesLaunch::new(
        tiles as u32,
        tokens as u32,
        group as u32,
        scale,
        head_strides(query, vector),
        head_strides(context, context_vector),
    );
    // SAFETY: every index is below the bounds that `Sizes` and `Tile` describe, which are those of the tensors.
    unsafe {
        attend::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(tile.units()),
            vector,
            context_vector,
            array(query),
            problem.keys().launch(vector),
            problem.values().launch(vector),
            masks.launch(),
            array(context),
            sizes,
            tile,
            query.dtype,
            key.dtype,
            value.dtype,
            masks.mask_type(),
            masks.bias_type(),
        );
    }
    Ok(())
}
