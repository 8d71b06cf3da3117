//! Flash attention (<https://arxiv.org/abs/2307.08691>) on tensor cores.

mod kernel;
mod pipeline;
mod scores;
mod stage;
mod step;
mod sums;
mod tile;

use burn_deepspeed_core::path::LARGEST_TILED_HEAD;
use cubecl::prelude::*;

use self::kernel::attend;
use self::tile::{Scoring, SizesLaunch, Tile};
use crate::cube::attention::{Attention, AttentionSizes, CheckedAttention};
use crate::cube::fragment::check_tensor_cores;
use crate::cube::machine::{Machine, Unsupported, f16_type};
use crate::cube::mask_arguments::Adds;
use crate::cube::sinks;
use crate::cube::tensors::{array, head_strides, vector_size};

/// Largest head size, times the pieces of 16 rows, for which a plane keeps its queries in registers.
const RESIDENT_FEATURES: usize = 128;
/// Largest head size for which emulated planes take 32 rows, in 32 KiB of shared memory.
const TALL_EMULATED_HEAD: usize = 40;
/// Least cubes for each multiprocessor, which holds two at once, for planes of 32 rows: otherwise planes of 16 make more cubes.
const TALL_CUBES: usize = 2;
/// Scales from here on divide the slopes of ALiBi, and scores, without overflow.
const SMALLEST_SCALE: f32 = 1e-6;
/// Most keys of a step where rows of int8 do not divide evenly over the units: the addresses of each unit take registers.
const UNEVEN_KEYS: u32 = 16;
/// Keys of a step with a bias of 16 bits and planes of 32 rows.
const WIDE_KEYS: u32 = 48;
/// Largest head size for which these leave registers on every device. For larger heads ptxas spills 60 bytes for sm_80, and for sm_90 up to 48 if
/// rows have bounds of their own or there is a window.
const LIGHT_FEATURES: u32 = 96;
/// Shared memory that devices of sm_90 have, and those of sm_80 have not.
const SHARED_OF_SM_90: usize = 200 << 10;
/// A head size must be a multiple of this: the columns of a product.
const COLUMNS: usize = 8;

/// The units that multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Tensor cores, through fragments of `mma.m16n8k16`.
    TensorCores {
        /// Whether keys and values are copied while the previous ones are multiplied, if their rows allow it.
        asynchronous: bool,
    },
    /// Plain loops over the same fragments, for devices and element types without tensor cores: slow, and a check of
    /// everything but the instructions.
    Emulated,
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
        check_tensor_cores(client, machine, elements)?;
        let features = client.features();
        if !features.matmul.ldmatrix.contains(&elements) {
            return Err(Unsupported::TensorCores(elements));
        }
        let one_stage = Self::TensorCores { asynchronous: false };
        one_stage.tile(head_dim, COLUMNS, 1).check(machine, elements.size())?;
        Ok(Self::TensorCores { asynchronous: features.copy_async })
    }

    /// The tile for heads of this size, read in vectors of `vector` elements, with planes of `pieces` times 16 rows.
    fn tile(self, head_dim: usize, vector: usize, pieces: usize) -> Tile {
        let asynchronous = self == Self::TensorCores { asynchronous: true };
        let (planes, keys, stages) = match self {
            Self::TensorCores { .. } => (4, if head_dim <= 128 { 64 } else { 32 }, if asynchronous { 2 } else { 1 }),
            // Small enough for 32 KiB of shared memory in f32.
            Self::Emulated if head_dim <= TALL_EMULATED_HEAD => (2, 32, 2),
            Self::Emulated => (1, 16, 1),
        };
        Tile {
            emulate: self == Self::Emulated,
            asynchronous,
            planes,
            pieces: pieces as u32,
            keys,
            stages,
            head_dim: head_dim as u32,
            vector: vector as u32,
            resident: head_dim * pieces <= RESIDENT_FEATURES,
            scoring: Scoring::Range,
            quads: false,
            written: 1,
            int8: false,
            wide: false,
            distances: false,
            heads_first: false,
        }
    }

    /// The same with planes of 32 rows, if there are registers for them: steps have fewer keys where the context of a head, and
    /// what is added to scores, leave few.
    fn tall_tile(self, head_dim: usize, vector: usize, scoring: Scoring, int8: bool, grouped: bool) -> Option<Tile> {
        let tile = self.tile(head_dim, vector, 2);
        let keys = match (scoring, head_dim) {
            _ if self == Self::Emulated => (head_dim <= TALL_EMULATED_HEAD).then_some(tile.keys)?,
            (_, 129..) | (Scoring::Masked { interior: false }, 65..) => return None,
            // The places of biases depend on head and token of a row.
            (Scoring::Masked { .. }, 33..=64) if grouped => 48,
            (_, ..=64) | (Scoring::Range, ..=96) => 64,
            (Scoring::Range, _) if !int8 => 48,
            _ => 32,
        };
        Some(Tile { keys, ..tile })
    }

    /// The tile for `heads` of keys, each with a `group` of heads of queries. Planes take 32 rows if these fit, fill the device and are not mostly
    /// beyond the last row.
    fn tile_for(
        self,
        machine: &Machine,
        element: usize,
        [head_dim, vector]: [usize; 2],
        [heads, group, tokens]: [usize; 3],
        scoring: Scoring,
        int8: bool,
    ) -> Tile {
        let rows = group * tokens;
        let short = self.tile(head_dim, vector, 1);
        let cubes = |tile: &Tile| rows.div_ceil(tile.rows() as usize);
        let tall = self.tall_tile(head_dim, vector, scoring, int8, group > 1).filter(|tall| {
            let fills = heads * cubes(tall) >= TALL_CUBES * machine.processors as usize;
            let full = cubes(tall) * 8 <= cubes(&short) * 5;
            fills && full && tall.check(machine, element).is_ok()
        });
        Tile { scoring, int8, ..tall.unwrap_or(short) }
    }
}

/// The same for a bias of 16 bits alone: with steps of 48 keys, and twice the planes, so that one cube of a multiprocessor copies half of what two do.
/// If registers and shared memory suffice, and few planes are beyond the last of the `rows`.
fn widened(tile: Tile, machine: &Machine, element: usize, rows: usize, ranges: bool) -> Tile {
    let registers = tile.head_dim <= LIGHT_FEATURES || !ranges && machine.shared_bytes >= SHARED_OF_SM_90;
    let planes = |tile: &Tile| rows.div_ceil(tile.rows() as usize) * tile.planes as usize;
    let wide = Tile { keys: WIDE_KEYS, planes: 2 * tile.planes, ..tile };
    let fits = registers && tile.pieces == 2 && planes(&wide) * 8 <= planes(&tile) * 9;
    if fits && tile.keys < WIDE_KEYS && wide.check(machine, element).is_ok() { wide } else { tile }
}

fn check_head(head_dim: usize) -> Result<(), Unsupported> {
    match head_dim.is_multiple_of(COLUMNS) {
        true if head_dim > LARGEST_TILED_HEAD => Err(Unsupported::HeadDim { head_dim, limit: LARGEST_TILED_HEAD }),
        true => Ok(()),
        false => Err(Unsupported::HeadMultiple { head_dim, multiple: COLUMNS }),
    }
}

/// Attends: one launch. Weights are up to `exp(27)` before they are divided by their sum, so with bf16 values beyond 2^64 may make the context infinite.
///
/// # Errors
/// [`Unsupported`]; nothing was launched.
///
/// # Panics
/// If shapes do not fit together, with the tensor, the expected and the actual shape; nothing was launched.
#[track_caller]
pub fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: Attention<'_, R>,
    engine: Engine,
) -> Result<(), Unsupported> {
    let scale = problem.scale;
    let checked = problem.check("prefill::mma", client)?;
    let CheckedAttention { query, key, value, context, sinks, masks, sizes } = checked;
    let AttentionSizes { batch, kv_heads, tokens, head_dim, .. } = sizes;
    sizes.equal()?;
    check_head(head_dim)?;
    if sizes.is_empty() {
        return Ok(());
    }
    let group = sizes.group();
    let int8 = key.is_int8() || value.is_int8();
    let vector = vector_size(client, &[query, key.elements, value.elements], COLUMNS);
    let element = query.dtype.size();
    let engine = match engine {
        Engine::TensorCores { asynchronous } => {
            Engine::tensor_cores(client, machine, query.dtype, head_dim)?;
            // Asynchronous copies move 16 bytes as they are, and need room for two steps.
            let copies = asynchronous && client.features().copy_async && vector * element == 16 && !int8;
            let two_stages = Engine::TensorCores { asynchronous: true }.tile(head_dim, vector, 1);
            Engine::TensorCores { asynchronous: copies && two_stages.check(machine, element).is_ok() }
        }
        Engine::Emulated => Engine::Emulated,
    };
    let context_vector = vector_size(client, &[context], if engine == Engine::Emulated { 2 } else { 4 });
    let scoring = match masks.adds() {
        Adds::Nothing if scale >= SMALLEST_SCALE => Scoring::Range,
        Adds::Slopes if scale >= SMALLEST_SCALE => Scoring::Slopes,
        _ => Scoring::Masked { interior: !masks.hides_some() },
    };
    let quads = engine != Engine::Emulated && masks.has_bias_vectors(4);
    let rows = group * tokens;
    let tile = engine.tile_for(machine, element, [head_dim, vector], [batch * kv_heads, group, tokens], scoring, int8);
    let light_bias = quads && !int8 && masks.adds() == Adds::Bias && masks.bias_type().size() == 2;
    let tile = if light_bias { widened(tile, machine, element, rows, masks.has_ranges()) } else { tile };
    let tiles = rows.div_ceil(tile.rows() as usize);
    // Devices have fewer cubes along y than along x.
    let heads_first = masks.is_causal() && tiles <= machine.max_cubes[1] as usize;
    let wide = query.dtype != f16_type();
    let adds = matches!(masks.adds(), Adds::Nothing | Adds::Slopes | Adds::Bias);
    let distances = adds && scale >= SMALLEST_SCALE && engine != Engine::Emulated;
    let tile = Tile { quads, written: context_vector as u32, wide, distances, heads_first, ..tile };
    let tile = if int8 && !tile.even() { Tile { keys: tile.keys.min(UNEVEN_KEYS), ..tile } } else { tile };
    tile.check(machine, element)?;
    // With 64 bits the compiler adds what it knows of an index to the address, in the instruction that reads: see `step_vectors`.
    let addresses = if tile.asynchronous { AddressType::U64 } else { AddressType::U32 };
    let cubes = machine.cubes(if heads_first { [kv_heads, tiles, batch] } else { [tiles, kv_heads, batch] })?;
    let (key_loads, value_loads) = (key.loads(vector), value.loads(vector));
    let sizes = SizesLaunch::new(
        tiles as u32,
        tokens as u32,
        group as u32,
        group as u32,
        scale,
        tile.reach() / scale,
        tile.step_vectors(),
        head_strides(query, vector),
        head_strides(context, context_vector),
    );
    // SAFETY: the tensors were checked against each other, so rows, heads, tokens and features that `Sizes` and `Tile` count are
    // in all of them. The kernel reads keys, values, scales and masks only at slots before `masks.end`, which is at most `keys`,
    // and they hold that many.
    unsafe {
        attend::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(tile.units()),
            addresses,
            vector,
            key_loads.vector,
            value_loads.vector,
            context_vector,
            array(query),
            key.launch_loads(vector),
            value.launch_loads(vector),
            masks.launch(),
            sinks::launch(sinks),
            array(context),
            sizes,
            tile,
            query.dtype,
            key_loads.elements,
            value_loads.elements,
            masks.mask_type(),
            masks.bias_type(),
        );
    }
    Ok(())
}
