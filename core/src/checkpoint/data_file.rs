//! Runs of elements of an open file, by positioned reads.

use std::cell::Cell;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;

use super::float::Float;
use super::runs::Run;
use super::stored::{Stored, StoredElement};
use crate::block::BlockFormat;
use crate::error::WeightError;

/// Bytes that are read and converted at a time: they fit the cache, and the cost of a call is small compared with the copy.
const BLOCK: usize = 1 << 20;

/// Gap between two runs, in bytes, from which they are read separately. Shorter gaps are read too: the system reads whole pages.
const PAGE: usize = 4096;

/// Most runs of a block: keeps the list of runs short if the runs are short.
const RUNS: usize = 4096;

/// An open file.
#[derive(Debug)]
pub(super) struct DataFile {
    path: PathBuf,
    file: File,
}

/// Why elements could not be read.
#[derive(Debug)]
pub(super) enum Failure {
    /// The elements have another type than the one that was asked for.
    ElementType,
    /// An integer does not fit `i64`.
    TooLarge(u64),
    /// The file could not be read.
    File(WeightError),
}

/// What cannot be divided in the file: an element, or a block of them.
#[derive(Clone, Copy)]
struct Unit {
    elements: usize,
    bytes: usize,
}

impl DataFile {
    /// Opens a file.
    pub(super) fn open(path: &Path) -> Result<Self, WeightError> {
        let failed = |cause: std::io::Error| WeightError::File { path: path.into(), cause: cause.to_string() };
        Ok(Self { path: path.into(), file: File::open(path).map_err(failed)? })
    }

    /// Reads ascending runs of floats and converts each element once. Elements of a run are `stride` apart in `into`.
    pub(super) fn floats<T: Float>(
        &self,
        stored: &Stored,
        (runs, stride): (impl IntoIterator<Item = Run>, usize),
        into: &mut [T],
    ) -> Result<(), Failure> {
        let (first, dtype) = match stored.element {
            StoredElement::Plain(dtype) => (stored.start, dtype),
            StoredElement::Blocks(format) => return self.blocks((stored.start, format), runs, stride, into),
        };
        match dtype {
            Dtype::F64 => self.read(first, runs, stride, into, |raw| T::from_f64(f64::from_le_bytes(raw))),
            Dtype::F32 => self.read(first, runs, stride, into, |raw| T::from_f32(f32::from_le_bytes(raw))),
            Dtype::F16 => self.read(first, runs, stride, into, |raw| T::from_f16(f16::from_le_bytes(raw))),
            Dtype::BF16 => self.read(first, runs, stride, into, |raw| T::from_bf16(bf16::from_le_bytes(raw))),
            _ => Err(Failure::ElementType),
        }
    }

    /// Reads ascending runs of 8-bit integers. Elements of a run are `stride` apart in `into`.
    pub(super) fn int8(
        &self,
        stored: &Stored,
        (runs, stride): (impl IntoIterator<Item = Run>, usize),
        into: &mut [i8],
    ) -> Result<(), Failure> {
        match stored.element {
            StoredElement::Plain(Dtype::I8) => self.read(stored.start, runs, stride, into, i8::from_le_bytes),
            _ => Err(Failure::ElementType),
        }
    }

    /// Reads ascending runs of whole blocks as they are stored. Runs count in blocks of the file and in bytes of `into`.
    pub(super) fn whole_blocks(
        &self,
        stored: &Stored,
        format: BlockFormat,
        runs: impl IntoIterator<Item = Run>,
        into: &mut [u8],
    ) -> Result<(), Failure> {
        let size = format.bytes();
        let unit = Unit { elements: 1, bytes: size };
        self.each_block(stored.start, unit, (runs, size), |bytes, start, runs| {
            for run in runs {
                let len = run.len * size;
                into[run.to..][..len].copy_from_slice(&bytes[(run.start - start) * size..][..len]);
            }
        })
    }

    /// Reads contiguous integers of any width, or booleans.
    pub(super) fn integers(&self, stored: &Stored, into: &mut [i64]) -> Result<(), Failure> {
        let StoredElement::Plain(dtype) = stored.element else { return Err(Failure::ElementType) };
        let first = stored.start;
        let all = [Run { start: 0, len: into.len(), to: 0 }];
        match dtype {
            Dtype::BOOL | Dtype::U8 => self.read(first, all, 1, into, |[raw]: [u8; 1]| raw.into()),
            Dtype::I8 => self.read(first, all, 1, into, |raw| i8::from_le_bytes(raw).into()),
            Dtype::I16 => self.read(first, all, 1, into, |raw| i16::from_le_bytes(raw).into()),
            Dtype::U16 => self.read(first, all, 1, into, |raw| u16::from_le_bytes(raw).into()),
            Dtype::I32 => self.read(first, all, 1, into, |raw| i32::from_le_bytes(raw).into()),
            Dtype::U32 => self.read(first, all, 1, into, |raw| u32::from_le_bytes(raw).into()),
            Dtype::I64 => self.read(first, all, 1, into, i64::from_le_bytes),
            Dtype::U64 => {
                let too_large = Cell::new(None);
                self.read(first, all, 1, into, |raw| {
                    let value = u64::from_le_bytes(raw);
                    i64::try_from(value).unwrap_or_else(|_| {
                        too_large.set(Some(value));
                        0
                    })
                })?;
                too_large.get().map_or(Ok(()), |value| Err(Failure::TooLarge(value)))
            }
            _ => Err(Failure::ElementType),
        }
    }

    /// Reads ascending runs of elements in blocks. A run may begin and end inside of a block.
    fn blocks<T: Float>(
        &self,
        (first, format): (u64, BlockFormat),
        runs: impl IntoIterator<Item = Run>,
        stride: usize,
        into: &mut [T],
    ) -> Result<(), Failure> {
        let unit = Unit { elements: format.elements(), bytes: format.bytes() };
        let mut values = Vec::new();
        self.each_block(first, unit, (runs, stride), |bytes, start, runs| {
            values.resize(bytes.len() / unit.bytes * unit.elements, 0.0);
            format.dequantise(bytes, &mut values);
            place(stride, into, T::from_f32, &values, (start, runs));
        })
    }

    /// Reads ascending runs of elements of `N` bytes; the tensor starts at byte `first`.
    fn read<const N: usize, T>(
        &self,
        first: u64,
        runs: impl IntoIterator<Item = Run>,
        stride: usize,
        into: &mut [T],
        value: impl Fn([u8; N]) -> T,
    ) -> Result<(), Failure> {
        self.each_block(first, Unit { elements: 1, bytes: N }, (runs, stride), |bytes, start, runs| {
            place(stride, into, &value, bytes.as_chunks::<N>().0, (start, runs));
        })
    }

    /// Reads ascending runs, some at a time. `place` gets the bytes of whole units, the element that they begin with, and the runs.
    fn each_block(
        &self,
        first: u64,
        unit: Unit,
        (runs, stride): (impl IntoIterator<Item = Run>, usize),
        mut place: impl FnMut(&[u8], usize, &[Run]),
    ) -> Result<(), Failure> {
        // Elements as they are stored, and as f32, are a block at most.
        let limit = (BLOCK / unit.bytes.max(unit.elements * 4)).max(1) * unit.elements;
        let (mut block, mut bytes) = (Vec::<Run>::new(), Vec::new());
        let mut flush = |block: &mut Vec<Run>| {
            let (Some(from), Some(last)) = (block.first(), block.last()) else { return Ok(()) };
            let start = from.start / unit.elements;
            let len = ((last.start + last.len).div_ceil(unit.elements) - start) * unit.bytes;
            bytes.resize(len.max(bytes.len()), 0);
            self.read_exact(first + (start * unit.bytes) as u64, &mut bytes[..len])?;
            place(&bytes[..len], start * unit.elements, block);
            block.clear();
            Ok(())
        };
        for run in runs {
            for done in (0..run.len).step_by(limit) {
                let len = limit.min(run.len - done);
                let part = Run { start: run.start + done, len, to: run.to + done * stride };
                if let (Some(from), Some(last)) = (block.first(), block.last()) {
                    let far = (part.start - (last.start + last.len)) / unit.elements * unit.bytes >= PAGE;
                    if far || part.start + len - from.start > limit || block.len() == RUNS {
                        flush(&mut block).map_err(Failure::File)?;
                    }
                }
                block.push(part);
            }
        }
        flush(&mut block).map_err(Failure::File)
    }

    fn read_exact(&self, at: u64, into: &mut [u8]) -> Result<(), WeightError> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(into)).map_err(|cause| WeightError::File {
            path: self.path.clone(),
            cause: match cause.kind() {
                ErrorKind::UnexpectedEof => "it ends inside of a tensor that its header lists; it was cut short".into(),
                _ => cause.to_string(),
            },
        })
    }
}

/// Writes the values of runs to their destination, `stride` apart. Where that is not 1, some columns of all runs are written at
/// a time, so that neighbours in memory are written in succession. `stored` begins with element `first`.
fn place<R: Copy, T>(
    stride: usize,
    into: &mut [T],
    value: impl Fn(R) -> T,
    stored: &[R],
    (first, runs): (usize, &[Run]),
) {
    const COLUMNS: usize = 16;
    let elements = |run: &Run| &stored[run.start - first..][..run.len];
    if stride == 1 {
        for run in runs {
            let places = into[run.to..][..run.len].iter_mut();
            places.zip(elements(run)).for_each(|(place, raw)| *place = value(*raw));
        }
        return;
    }
    let longest = runs.iter().map(|run| run.len).max().unwrap_or(0);
    for start in (0..longest).step_by(COLUMNS) {
        for run in runs.iter().filter(|run| run.len > start) {
            let some = start..run.len.min(start + COLUMNS);
            for (at, raw) in some.clone().zip(&elements(run)[some]) {
                into[run.to + at * stride] = value(*raw);
            }
        }
    }
}
