//! Safetensors files on disk: the header, and runs of elements by positioned reads.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Element, ElementConversion, TensorData};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use crate::error::WeightError;

/// Bytes that are read and converted at a time: they fit the cache, and a call for them costs nothing beside the copy.
const BLOCK: usize = 1 << 20;

/// Bytes between two runs from which on they are read apart. What lies closer is read through: the system reads whole pages.
const PAGE: usize = 4096;

/// Runs of a block, so that the list of them stays short where they are.
const RUNS: usize = 4096;

/// Longest header that is read, in bytes; the limit of the `safetensors` crate.
const LONGEST_HEADER: u64 = 100_000_000;

/// Elements that lie one behind the other in a tensor, and the place of the first in what is filled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) to: usize,
}

/// What the elements of a tensor are to be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Floats,
    /// Or booleans.
    Integers,
}

/// An open file.
#[derive(Debug)]
pub(super) struct DataFile {
    path: PathBuf,
    file: File,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    _metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

impl DataFile {
    /// Opens a file and reads its header: the tensors, whose offsets count from the byte that is returned, too.
    pub(super) fn open(path: &Path) -> Result<(Self, HashMap<String, TensorInfo>, u64), WeightError> {
        let failed = |cause: &dyn fmt::Display| WeightError::File { path: path.into(), cause: cause.to_string() };
        let mut file = File::open(path).map_err(|cause| failed(&cause))?;
        let length = file.metadata().map_err(|cause| failed(&cause))?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|cause| failed(&cause))?;
        let (size, start) = (u64::from_le_bytes(size), u64::from_le_bytes(size).saturating_add(8));
        if size > LONGEST_HEADER || start > length {
            return Err(failed(&format!("it is no safetensors file: its header would have {size} bytes")));
        }
        let mut header = vec![0; size as usize];
        file.read_exact(&mut header).map_err(|cause| failed(&cause))?;
        let header: Header = serde_json::from_slice(&header).map_err(|cause| failed(&cause))?;
        let mut tensors: Vec<_> = header.tensors.iter().map(|(name, info)| (name.clone(), info.clone())).collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let end = start.saturating_add(tensors.last().map_or(0, |(_, info)| info.data_offsets.1 as u64));
        Metadata::new(None, tensors).map_err(|cause| failed(&cause))?;
        if end != length {
            return Err(failed(&format!("its tensors end at byte {end}, and it has {length}; it is not complete")));
        }
        Ok((Self { path: path.into(), file }, header.tensors, start))
    }

    /// Reads runs of elements of `size` bytes, which ascend; the tensor begins at byte `first`. `take` gets some of them at a
    /// time, and the bytes from the first of these to the last. Elements of a run are `stride` apart where they go.
    fn read(
        &self,
        (first, size): (u64, usize),
        (runs, stride): (impl IntoIterator<Item = Run>, usize),
        mut take: impl FnMut(&[u8], &[Run]),
    ) -> Result<(), WeightError> {
        let (limit, mut block, mut bytes) = (BLOCK / size, Vec::<Run>::new(), Vec::new());
        let mut flush = |block: &mut Vec<Run>| {
            let (Some(from), Some(last)) = (block.first(), block.last()) else { return Ok(()) };
            let len = (last.start + last.len - from.start) * size;
            bytes.resize(len.max(bytes.len()), 0);
            self.read_exact(first + (from.start * size) as u64, &mut bytes[..len])?;
            take(&bytes[..len], block);
            block.clear();
            Ok(())
        };
        for run in runs {
            for done in (0..run.len).step_by(limit) {
                let len = limit.min(run.len - done);
                let part = Run { start: run.start + done, len, to: run.to + done * stride };
                if let (Some(from), Some(last)) = (block.first(), block.last()) {
                    let far = (part.start - (last.start + last.len)) * size >= PAGE;
                    if far || part.start + len - from.start > limit || block.len() == RUNS {
                        flush(&mut block)?;
                    }
                }
                block.push(part);
            }
        }
        flush(&mut block)
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

    /// Reads elements and converts them, each once; `None` if they are not of the kind that is wanted.
    pub(super) fn elements<T: Element>(
        &self,
        kind: Kind,
        (first, dtype): (u64, Dtype),
        (runs, stride): (impl IntoIterator<Item = Run>, usize),
        into: &mut [T],
    ) -> Option<Result<(), WeightError>> {
        let (at, runs) = ((first, dtype.bitsize() / 8), (runs, stride));
        Some(match (kind, dtype) {
            (Kind::Floats, Dtype::F64) => {
                self.read(at, runs, place(stride, into, |raw| f64::from_le_bytes(raw).elem()))
            }
            (Kind::Floats, Dtype::F32) => {
                self.read(at, runs, place(stride, into, |raw| f32::from_le_bytes(raw).elem()))
            }
            (Kind::Floats, Dtype::F16) => {
                self.read(at, runs, place(stride, into, |raw| f16::from_le_bytes(raw).elem()))
            }
            (Kind::Floats, Dtype::BF16) => {
                self.read(at, runs, place(stride, into, |raw| bf16::from_le_bytes(raw).elem()))
            }
            (Kind::Integers, Dtype::BOOL | Dtype::U8) => {
                self.read(at, runs, place(stride, into, |[raw]: [u8; 1]| raw.elem()))
            }
            (Kind::Integers, Dtype::I8) => {
                self.read(at, runs, place(stride, into, |raw| i8::from_le_bytes(raw).elem()))
            }
            (Kind::Integers, Dtype::I16) => {
                self.read(at, runs, place(stride, into, |raw| i16::from_le_bytes(raw).elem()))
            }
            (Kind::Integers, Dtype::I32) => {
                self.read(at, runs, place(stride, into, |raw| i32::from_le_bytes(raw).elem()))
            }
            (Kind::Integers, Dtype::I64) => {
                self.read(at, runs, place(stride, into, |raw| i64::from_le_bytes(raw).elem()))
            }
            _ => return None,
        })
    }
}

/// Puts the values of runs where they go, `stride` apart. Where that is not 1 some columns of all runs go at a time, so that
/// neighbours in memory are written one after the other.
fn place<const N: usize, T>(stride: usize, into: &mut [T], value: impl Fn([u8; N]) -> T) -> impl FnMut(&[u8], &[Run]) {
    const COLUMNS: usize = 16;
    move |bytes, runs| {
        let first = runs.first().map_or(0, |run| run.start);
        let elements = |run: &Run| bytes[(run.start - first) * N..][..run.len * N].as_chunks::<N>().0;
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
}

/// What can fill a slice with elements of any type.
pub(super) trait Fill {
    fn fill<T: Element>(self, into: &mut [T]) -> Result<(), WeightError>;
}

/// A tensor of floats of type `dtype`.
pub(super) fn filled<const D: usize>(
    source: impl Fill,
    shape: [usize; D],
    dtype: DType,
) -> Result<TensorData, WeightError> {
    fn of<T: Element, const D: usize>(source: impl Fill, shape: [usize; D]) -> Result<TensorData, WeightError> {
        let mut values = vec![T::from_elem(0.0f32); shape.iter().product()];
        source.fill(&mut values)?;
        Ok(TensorData::new(values, shape))
    }
    match dtype {
        DType::F64 => of::<f64, D>(source, shape),
        DType::F16 => of::<f16, D>(source, shape),
        DType::BF16 => of::<bf16, D>(source, shape),
        DType::F32 => of::<f32, D>(source, shape),
        _ => Ok(of::<f32, D>(source, shape)?.convert_dtype(dtype)),
    }
}

/// The runs of a block of a tensor of this shape; they go where the block has them, row by row.
pub(super) fn runs_of_block(shape: &[usize], ranges: &[Range<usize>]) -> impl Iterator<Item = Run> {
    // Axes behind the last one that is cut are whole in every run.
    let cut = (0..shape.len()).rev().find(|&axis| ranges[axis].len() != shape[axis]).unwrap_or(0);
    let inner: usize = shape[cut + 1..].iter().product();
    let (first, len) = (ranges[cut].start * inner, ranges[cut].len() * inner);
    let outer = ranges[..cut].iter().map(Range::len).product();
    (0..if len == 0 { 0 } else { outer }).map(move |row| {
        let (mut rest, mut start, mut step) = (row, first, shape[cut] * inner);
        for axis in (0..cut).rev() {
            start += (ranges[axis].start + rest % ranges[axis].len()) * step;
            rest /= ranges[axis].len();
            step *= shape[axis];
        }
        Run { start, len, to: row * len }
    })
}

/// Rows or columns that lie one behind the other in a file and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from: usize,
    pub(super) len: usize,
    pub(super) to: usize,
}

/// The runs of some rows and columns of a matrix of so many columns; both ascend. A step of a row or column is as long as
/// `steps` says where they go.
pub(super) fn runs_of_segments<'a>(
    rows: &'a [Segment],
    columns: &'a [Segment],
    width: usize,
    steps: [usize; 2],
) -> impl Iterator<Item = Run> + 'a {
    let rows = rows.iter().flat_map(|rows| (0..rows.len).map(|at| (rows.from + at, rows.to + at)));
    rows.flat_map(move |(from, to)| {
        columns.iter().map(move |run| Run {
            start: from * width + run.from,
            len: run.len,
            to: to * steps[0] + run.to * steps[1],
        })
    })
}
