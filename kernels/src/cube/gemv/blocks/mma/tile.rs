//! The sizes that the tensor-core kernel is compiled for, and how they are chosen.

use burn_deepspeed_core::block::{BlockFormat, UNIT_BYTES};
use cubecl::prelude::*;

use crate::cube::blocks::{CheckedBlocks, has_minimum, offset};
use crate::cube::bytes::BYTES;
use crate::cube::fragment::LANES;
use crate::cube::gemv::exchange::Exchange;
use crate::cube::gemv::problem::Extents;
use crate::cube::machine::{Machine, Unsupported};

/// Outputs of a cube: the rows of a fragment.
pub(super) const OUTPUTS: u32 = 16;
/// Elements of an output that a plane multiplies in a step: those of the largest blocks.
pub(super) const SPAN: usize = 256;
/// Elements that two products of 16 multiply: those of the smallest blocks.
pub(super) const UNIT: usize = 32;
/// Units of a span.
pub(super) const UNITS: usize = SPAN / UNIT;
/// Floats between the sums of one row of the input and those of the next: the lanes of a fragment write to different banks.
pub(super) const SUMS_ROW: u32 = OUTPUTS + 8;
/// What the last bit of an f16 below 2^-14 counts.
pub(super) const SMALL: f32 = 1.0 / 16_777_216.0;
/// What an element in the upper half of a byte counts, in one of the lower half.
pub(super) const UPPER: f32 = 16.0;
/// Columns of a fragment.
const COLUMNS: u32 = 8;
/// Most planes of a cube.
const PLANES: usize = 8;
/// Most rows of the input for which a multiprocessor has two cubes. Each makes all rows operands, which takes more time than a strip of outputs
/// does if there are more.
const FEW_ROWS: usize = 2;
/// Bytes of shared memory that the inputs of several steps of few rows take, so that two cubes stay resident on a multiprocessor.
const INPUT_BYTES: usize = 80 * 1024;
/// Fewest strips of a cube for which it takes fewer instructions to add up the inputs of units once than with each strip.
const MANY_STRIPS: usize = 3;
/// Most strips whose sums a cube saves while it fills in other inputs.
const STRIPS: usize = 4;

/// What inputs are, and how they become operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::cube::gemv) enum Read {
    /// f16 as they are, two at a time.
    F16,
    /// bf16 as they are, two at a time.
    Bf16,
    /// bf16 that a norm changes: one f16, which has three bits more than they.
    NormedBf16,
    /// f32, or f16 that a norm changes: two f16 for each.
    Parts,
}

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::cube::gemv) struct Tile {
    pub format: BlockFormat,
    /// Rows begin at a multiple of this many bytes, a power of two up to 16.
    row_unit: u32,
    /// Planes of a cube. Each has a span of a step.
    pub planes: u32,
    /// Rows of the input.
    pub rows: u32,
    pub read: Read,
    /// Spans of the inputs that shared memory holds, a multiple of the planes.
    pub spans: u32,
    /// Whether a row has a whole number of spans.
    pub even: bool,
    /// Whether it is a whole number of steps.
    pub whole_steps: bool,
    /// Whether it fills shared memory a whole number of times.
    pub full: bool,
    /// Most strips of a cube, if shared memory does not hold all inputs; otherwise 0.
    strips: usize,
    /// Whether the cube adds up the inputs of units once, and not in each strip.
    pub keeps_sums: bool,
}

impl Tile {
    /// The tile for a problem: as many planes as have a span each, or fewer if shared memory does not hold what they read.
    pub fn new<R: Runtime>(
        machine: &Machine,
        extents: Extents,
        blocks: &CheckedBlocks<'_, R>,
        read: Read,
    ) -> Result<Self, Unsupported> {
        let spans = extents.inputs.div_ceil(SPAN);
        let mut tile = Self {
            format: blocks.format,
            row_unit: blocks.row_unit() as u32,
            planes: spans.next_power_of_two().min(PLANES) as u32,
            rows: extents.rows as u32,
            read,
            spans: 0,
            even: extents.inputs.is_multiple_of(SPAN),
            whole_steps: false,
            full: false,
            strips: 0,
            keeps_sums: false,
        };
        let strips = tile.strips_of_cube(machine, extents.outputs);
        tile.keeps_sums = tile.multiplies_minima() && strips >= MANY_STRIPS;
        let wanted = strips.min(STRIPS);
        loop {
            tile.whole_steps = tile.even && spans.is_multiple_of(tile.planes as usize);
            // All inputs, or as many as go with the sums of several strips.
            for strips in [0, wanted, 1] {
                tile.strips = strips;
                tile.spans = tile.most_spans(machine, spans);
                let fits = if tile.single() { spans } else { 1 };
                if tile.spans as usize >= fits {
                    tile.full = tile.even && spans.is_multiple_of(tile.spans as usize);
                    return Ok(tile);
                }
            }
            // Fewer planes do with less, but steps must begin where loads do.
            tile.planes /= 2;
            if tile.planes == 0 || !(tile.planes * tile.span_bytes()).is_multiple_of(UNIT_BYTES as u32) {
                let needed = tile.fixed_bytes() + tile.span_memory() * tile.planes.max(1) as usize;
                return Err(Unsupported::SharedMemory { needed, limit: machine.shared_bytes });
            }
        }
    }

    /// Spans of the inputs, in whole steps, that shared memory has room for, up to all.
    fn most_spans(self, machine: &Machine, spans: usize) -> u32 {
        let step = self.planes as usize * self.span_memory();
        let rest = machine.shared_bytes.saturating_sub(self.fixed_bytes());
        let most = if self.rows as usize > FEW_ROWS { rest } else { rest.min(INPUT_BYTES.max(step)) };
        (most / step).min(spans.div_ceil(self.planes as usize)) as u32 * self.planes
    }

    /// Strips of 16 outputs of a cube, if there are as many cubes as multiprocessors have at a time, with equal numbers of strips.
    fn strips_of_cube(self, machine: &Machine, outputs: usize) -> usize {
        let cubes = machine.processors as usize * if self.rows as usize > FEW_ROWS { 1 } else { 2 };
        outputs.div_ceil(OUTPUTS as usize).div_ceil(cubes)
    }

    /// Cubes for this many outputs.
    pub fn cubes(self, machine: &Machine, outputs: usize) -> usize {
        let wanted = self.strips_of_cube(machine, outputs);
        let strips = if self.single() { wanted } else { wanted.min(self.strips) };
        outputs.div_ceil(OUTPUTS as usize).div_ceil(strips)
    }

    /// Whether shared memory holds all inputs.
    pub fn single(self) -> bool {
        self.strips == 0
    }

    /// Numbers of 16 bits that make an input.
    pub fn parts(self) -> u32 {
        if self.read == Read::Parts { 2 } else { 1 }
    }

    /// The least exponent of the largest input of a row, as an f32 has it, for which its power of two is below 2^126, or one that an f16 has.
    /// If the inputs of a row are f16 and smaller, they keep all bits nevertheless.
    pub fn least_exponent(self) -> u32 {
        if self.read == Read::F16 { 125 } else { 16 }
    }

    /// Whether inputs are compared and scaled as they are stored, in pairs of 16 bits.
    pub fn has_pairs(self) -> bool {
        matches!(self.read, Read::F16 | Read::Bf16)
    }

    /// Units of the cube.
    pub fn units(self) -> u32 {
        self.planes * LANES
    }

    pub fn exchange(self) -> Exchange {
        Exchange { units: self.units(), lanes: LANES, rows: self.rows, planes: true }
    }

    /// Bytes of a span of a row.
    pub fn span_bytes(self) -> u32 {
        (SPAN / self.format.elements() * self.format.bytes()) as u32
    }

    /// Bytes of a step of a row.
    pub fn step_bytes(self) -> u32 {
        self.planes * self.span_bytes()
    }

    /// Whether what a lane reads begins at a word.
    pub fn has_whole_words(self) -> bool {
        [self.row_unit, self.span_bytes()].iter().all(|bytes| bytes.is_multiple_of(BYTES as u32))
    }

    /// Whether rows begin where loads do.
    pub fn has_whole_loads(self) -> bool {
        self.row_unit as usize == UNIT_BYTES
    }

    /// Loads of 16 bytes that have a step of a row, wherever it begins. Where bytes are moved to whole words, two more are read.
    pub fn loads(self) -> u32 {
        let after = if self.has_whole_words() { 0 } else { 2 * BYTES as u32 };
        (self.step_bytes() + after + UNIT_BYTES as u32 - self.row_unit).div_ceil(UNIT_BYTES as u32)
    }

    /// Units of the cube that load a row together.
    pub fn row_units(self) -> u32 {
        self.units() / OUTPUTS
    }

    /// Loads of a unit of the cube.
    pub fn unit_loads(self) -> usize {
        self.loads().div_ceil(self.row_units()) as usize
    }

    /// Loads from one row in shared memory to the next: an odd number, so that rows begin at different banks.
    pub fn pitch(self) -> u32 {
        self.loads() | 1
    }

    /// Columns of the right operand that are there: one for each part of each row.
    pub fn columns(self) -> u32 {
        self.rows * self.parts()
    }

    /// Whether columns are exchanged inside of a matrix alone.
    pub fn has_whole_matrices(self) -> bool {
        self.columns().is_multiple_of(8)
    }

    /// Fragments of sums.
    pub fn fragments(self) -> usize {
        self.columns().div_ceil(COLUMNS) as usize
    }

    /// Rows of the input whose columns a lane has, in each fragment: two neighbouring columns are two rows, or the two parts of one.
    pub fn lane_columns(self) -> u32 {
        2 / self.parts()
    }

    /// Those of which there are sums.
    pub fn lane_rows(self) -> usize {
        self.lane_columns().min(self.rows) as usize
    }

    /// Sums of a lane.
    pub fn sums(self) -> usize {
        2 * self.fragments() * self.lane_rows()
    }

    /// Sums of an output in a plane: four lanes have a part each.
    pub fn parts_of_sums(self) -> u32 {
        4 * (self.fragments() * self.lane_rows()) as u32
    }

    /// Elements that have a scale.
    pub fn run(self) -> usize {
        if self.format == BlockFormat::Q6_K { UNIT / 2 } else { UNIT }
    }

    /// Whether shared memory has the sums of the inputs of each run, for minima, or for what is subtracted from the bits of an element.
    pub fn has_totals(self) -> bool {
        self.total_factor() != 0.0 && !self.multiplies_totals() && !self.multiplies_minima()
    }

    /// Whether these sums are products too, of a left operand with equal elements. With one row, or with two parts, it takes fewer
    /// instructions to add the inputs up before they are stored.
    pub fn multiplies_totals(self) -> bool {
        self.total_factor() != 0.0 && self.parts() == 1 && self.rows > 1 && !self.multiplies_minima()
    }

    /// Whether minima are a left operand themselves, of the sums of units: integers of a block that is a span.
    pub fn multiplies_minima(self) -> bool {
        matches!(self.format, BlockFormat::Q4_K | BlockFormat::Q5_K)
    }

    /// The left operand of the sums in product `product` of unit `unit`.
    pub fn total_pair(self, unit: usize, product: usize) -> u32 {
        let factor = self.total_factor() / self.element_unit();
        let sign = if factor < 0.0 { 0x8000_8000 } else { 0 };
        let upper = if self.has_upper(unit * UNIT + product * UNIT / 2) { UPPER as u32 } else { 1 };
        sign | (factor.abs() as u32 * upper * 0x1_0001)
    }

    /// Whether input `at` of a span is that of an element in the upper half of its byte.
    pub fn has_upper(self, at: usize) -> bool {
        self.upper_after().is_some_and(|after| at / after as usize % 2 == 1)
    }

    /// What the sum of the inputs of a run is multiplied with.
    pub fn total_factor(self) -> f32 {
        if has_minimum(self.format) {
            self.element_unit()
        } else if self.format == BlockFormat::MXFP4 {
            0.0
        } else {
            -offset(self.format) * self.element_unit()
        }
    }

    /// What the left operand has for an element of 1.
    pub fn element_unit(self) -> f32 {
        // The exponent of E2M1 counts from 1, and that of f16 from 15. The scale is half of what it should be.
        if self.format == BlockFormat::MXFP4 { 2f32.powi(-15) } else { SMALL }
    }

    /// Inputs from one whose element is in the lower half of a byte to that in the upper half, where it counts [`UPPER`] times as much.
    pub fn upper_after(self) -> Option<u32> {
        use BlockFormat::{MXFP4, Q4_K, Q5_K, Q6_K, Q8_0};
        match self.format {
            Q8_0 | MXFP4 => None,
            Q4_K | Q5_K => Some(32),
            Q6_K => Some(64),
            _ => Some(16),
        }
    }

    /// Vectors of 8 f16 that the inputs take in shared memory.
    pub fn input_vectors(self) -> usize {
        self.spans as usize * UNITS * 4 * self.columns() as usize
    }

    /// Sums of runs of a row, and one more, so that rows begin at different banks.
    pub fn totals_row(self) -> u32 {
        self.spans * (SPAN / self.run()) as u32 + 1
    }

    /// Sums of units that are kept: two registers of every lane for each fragment of a span.
    pub fn unit_sums(self) -> usize {
        if self.keeps_sums { self.spans as usize * self.fragments() * LANES as usize } else { 2 }
    }

    /// Sums of runs, in whole vectors.
    pub fn totals(self) -> usize {
        if self.has_totals() { (self.totals_row() * self.rows).next_multiple_of(4) as usize } else { 4 }
    }

    /// Vectors of 4 words that the matrix takes.
    pub fn staged(self) -> usize {
        (OUTPUTS * self.pitch()) as usize
    }

    /// Floats of the partial sums.
    pub fn partial(self) -> usize {
        (self.planes * self.parts_of_sums() * SUMS_ROW) as usize
    }

    /// Sums of strips that wait for other inputs, or one vector.
    pub fn saved(self) -> usize {
        (self.strips * self.sums() * self.units() as usize).max(4)
    }

    /// Bytes of shared memory besides those of the inputs.
    fn fixed_bytes(self) -> usize {
        self.staged() * UNIT_BYTES
            + (self.partial() + self.saved() + 2 * COLUMNS as usize) * size_of::<f32>()
            + self.exchange().bytes()
    }

    /// Bytes of shared memory for each span of the inputs.
    fn span_memory(self) -> usize {
        let one = Self { spans: 1, ..self };
        one.input_vectors() * UNIT_BYTES + one.unit_sums() * 2 * size_of::<u32>() + one.totals() * size_of::<f32>()
    }
}
