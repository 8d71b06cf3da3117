//! A safetensors file on disk: its header, and runs of elements by positioned reads.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use super::float::Float;
use super::runs::Run;
use crate::error::WeightError;

/// Bytes that are read and converted at a time: they fit the cache, and the cost of a call is small compared with the copy.
const BLOCK: usize = 1 << 20;

/// Gap between two runs, in bytes, from which they are read separately. Shorter gaps are read too: the system reads whole pages.
const PAGE: usize = 4096;

/// Most runs of a block: keeps the list of runs short if the runs are short.
const RUNS: usize = 4096;

/// Longest header that is read, in bytes; the limit of the `safetensors` crate.
const LONGEST_HEADER: u64 = 100_000_000;

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

/// Where a tensor starts in the file, in bytes, and the type of its elements.
pub(super) type Stored = (u64, Dtype);

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    _metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

impl DataFile {
    /// Opens a file and reads its header. Returns the tensors, whose offsets count from the byte that is returned last.
    ///
    /// No length that the file states is used before it was checked against the length of the file.
    pub(super) fn open(path: &Path) -> Result<(Self, HashMap<String, TensorInfo>, u64), WeightError> {
        let failed = |cause: &dyn fmt::Display| WeightError::File { path: path.into(), cause: cause.to_string() };
        let mut file = File::open(path).map_err(|cause| failed(&cause))?;
        let length = file.metadata().map_err(|cause| failed(&cause))?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|cause| failed(&cause))?;
        let (size, start) = (u64::from_le_bytes(size), u64::from_le_bytes(size).saturating_add(8));
        if size > LONGEST_HEADER || start > length {
            return Err(failed(&format!("it is not a safetensors file: its header would have {size} bytes")));
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

    /// Reads ascending runs of floats and converts each element once. Elements of a run are `stride` apart in `into`.
    pub(super) fn floats<T: Float>(
        &self,
        (first, dtype): Stored,
        (runs, stride): (impl IntoIterator<Item = Run>, usize),
        into: &mut [T],
    ) -> Result<(), Failure> {
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
        (first, dtype): Stored,
        (runs, stride): (impl IntoIterator<Item = Run>, usize),
        into: &mut [i8],
    ) -> Result<(), Failure> {
        match dtype {
            Dtype::I8 => self.read(first, runs, stride, into, i8::from_le_bytes),
            _ => Err(Failure::ElementType),
        }
    }

    /// Reads contiguous integers of any width, or booleans.
    pub(super) fn integers(&self, (first, dtype): Stored, into: &mut [i64]) -> Result<(), Failure> {
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

    /// Reads ascending runs of elements of `N` bytes; the tensor starts at byte `first`.
    fn read<const N: usize, T>(
        &self,
        first: u64,
        runs: impl IntoIterator<Item = Run>,
        stride: usize,
        into: &mut [T],
        value: impl Fn([u8; N]) -> T,
    ) -> Result<(), Failure> {
        let (limit, mut block, mut bytes) = (BLOCK / N, Vec::<Run>::new(), Vec::new());
        let mut flush = |block: &mut Vec<Run>| {
            let (Some(from), Some(last)) = (block.first(), block.last()) else { return Ok(()) };
            let len = (last.start + last.len - from.start) * N;
            bytes.resize(len.max(bytes.len()), 0);
            self.read_exact(first + (from.start * N) as u64, &mut bytes[..len])?;
            place(stride, into, &value, &bytes[..len], block);
            block.clear();
            Ok(())
        };
        for run in runs {
            for done in (0..run.len).step_by(limit) {
                let len = limit.min(run.len - done);
                let part = Run { start: run.start + done, len, to: run.to + done * stride };
                if let (Some(from), Some(last)) = (block.first(), block.last()) {
                    let far = (part.start - (last.start + last.len)) * N >= PAGE;
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
/// a time, so that neighbours in memory are written in succession. `bytes` holds the file from the first run to the last.
fn place<const N: usize, T>(stride: usize, into: &mut [T], value: impl Fn([u8; N]) -> T, bytes: &[u8], runs: &[Run]) {
    const COLUMNS: usize = 16;
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
