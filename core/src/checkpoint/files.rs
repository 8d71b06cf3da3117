//! A safetensors checkpoint on disk, read tensor by tensor.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::data_file::{DataFile, Failure, Stored};
use super::float::{Fill, Float, Floats};
use super::report::{Conversion, LoadReport, Log};
use super::runs::{self, Run};
use crate::element::ElementType;
use crate::error::WeightError;
use crate::spelling::nearest;

/// One or several safetensors files, which stay open. A tensor, or the part of it that is wanted, is read and converted in
/// blocks of a megabyte, so loading takes little more memory than the module itself. Every read is recorded for
/// [`report`](Self::report).
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// Whether errors name the path, because other files belong to the same checkpoint.
    one_of_several: bool,
    files: Vec<DataFile>,
    tensors: BTreeMap<String, Location>,
    log: RefCell<Log>,
}

#[derive(Debug, Clone)]
struct Location {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// First byte in the file.
    start: u64,
}

impl Checkpoint {
    /// Opens a file, or a folder in the Hugging Face layout: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`WeightError::File`] if a file is missing or is not safetensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightError> {
        let path = path.as_ref();
        let files = match path.is_dir() {
            true => files_of_folder(path)?,
            false => vec![path.to_path_buf()],
        };
        let mut checkpoint = Self {
            path: path.into(),
            one_of_several: false,
            files: Vec::new(),
            tensors: BTreeMap::new(),
            log: RefCell::default(),
        };
        for path in files {
            let (file, tensors, data) = DataFile::open(&path)?;
            for (name, info) in tensors {
                let (file, start) = (checkpoint.files.len(), data + info.data_offsets.0 as u64);
                checkpoint.tensors.insert(name, Location { file, dtype: info.dtype, shape: info.shape, start });
            }
            checkpoint.files.push(file);
        }
        Ok(checkpoint)
    }

    /// [`open`](Self::open), for one of several files that make a checkpoint: errors name the file.
    pub(super) fn open_one_of_several(path: &Path) -> Result<Self, WeightError> {
        Ok(Self { one_of_several: true, ..Self::open(path)? })
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|location| location.shape.as_slice())
    }

    /// Checks that a tensor is in the checkpoint and has this shape. Every read checks this before it allocates memory, so a size
    /// that only a configuration states is never allocated.
    ///
    /// # Errors
    /// [`WeightError::Missing`] with the nearest name, or [`WeightError::Shape`].
    pub fn check_shape(&self, name: &str, shape: &[usize]) -> Result<(), WeightError> {
        self.locate(name, shape).map(|_| ())
    }

    /// Reads a block of a float tensor, and nothing else in the file. Elements become `element`, or f32 if that is not a float type.
    ///
    /// # Shapes
    /// - shape: that of the whole tensor
    /// - output: the lengths of `ranges`, row by row
    ///
    /// # Errors
    /// [`WeightError::Missing`] with the nearest name, [`WeightError::Shape`], [`WeightError::ElementType`] if the tensor does
    /// not hold floats, or [`WeightError::File`] if it cannot be read.
    ///
    /// # Panics
    /// If there is not one range for each axis, inside the shape.
    pub fn floats(
        &self,
        name: &str,
        shape: &[usize],
        ranges: &[Range<usize>],
        element: ElementType,
    ) -> Result<Floats, WeightError> {
        assert!(
            shape.len() == ranges.len(),
            "Checkpoint::slice: `{name}` has shape {shape:?} and {ranges:?} is wanted"
        );
        for (axis, range) in ranges.iter().enumerate() {
            assert!(
                range.start <= range.end && range.end <= shape[axis],
                "Checkpoint::slice: `{name}` has shape {shape:?}, and {range:?} of axis {axis} is not inside"
            );
        }
        self.check_shape(name, shape)?;
        let source = Block { checkpoint: self, name, shape, ranges };
        let values = Floats::filled(source, ranges.iter().map(Range::len).product(), element)?;
        self.log_converted(name, element);
        Ok(values)
    }

    /// Reads a tensor of integers of any width, or of booleans, as `i64`, row by row.
    ///
    /// # Errors
    /// [`WeightError::Missing`] with the nearest name, [`WeightError::Shape`], [`WeightError::ElementType`] if the tensor does
    /// not hold integers, [`WeightError::IntegerTooLarge`] if one is above `i64::MAX`, or [`WeightError::File`] if it cannot be
    /// read.
    pub fn integers(&self, name: &str, shape: &[usize]) -> Result<Vec<i64>, WeightError> {
        let (file, stored) = self.locate(name, shape)?;
        let mut values = vec![0; shape.iter().product()];
        file.integers(stored, &mut values).map_err(|failure| self.failed(name, failure))?;
        self.log_loaded(name);
        Ok(values)
    }

    /// Whether a tensor is in the checkpoint and holds 8-bit integers.
    pub(super) fn is_int8(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|location| location.dtype == Dtype::I8)
    }

    /// Fills `into` with floats of a tensor of this shape. `runs` holds ascending runs, and the distance between the elements of
    /// a run in `into`.
    pub(super) fn read_floats<T: Float>(
        &self,
        (name, shape): (&str, &[usize]),
        runs: (impl IntoIterator<Item = Run>, usize),
        into: &mut [T],
    ) -> Result<(), WeightError> {
        let (file, stored) = self.locate(name, shape)?;
        file.floats(stored, runs, into).map_err(|failure| self.failed(name, failure))
    }

    /// Fills `into` with 8-bit integers of a tensor of this shape. `runs` holds ascending runs, and the distance between the
    /// elements of a run in `into`.
    pub(super) fn read_int8(
        &self,
        (name, shape): (&str, &[usize]),
        runs: (impl IntoIterator<Item = Run>, usize),
        into: &mut [i8],
    ) -> Result<(), WeightError> {
        let (file, stored) = self.locate(name, shape)?;
        file.int8(stored, runs, into).map_err(|failure| self.failed(name, failure))
    }

    /// Where a tensor of this shape is.
    fn locate(&self, name: &str, shape: &[usize]) -> Result<(&DataFile, Stored), WeightError> {
        let location = self.tensors.get(name).ok_or_else(|| {
            self.log.borrow_mut().missing.insert(name.into());
            self.in_this(WeightError::Missing { name: name.into(), nearest: nearest(name, self.tensors.keys()) })
        })?;
        if location.shape != shape {
            let (expected, found) = (shape.to_vec(), location.shape.clone());
            return Err(self.in_this(WeightError::Shape { name: name.into(), expected, found }));
        }
        Ok((&self.files[location.file], (location.start, location.dtype)))
    }

    fn failed(&self, name: &str, failure: Failure) -> WeightError {
        let found = || self.tensors.get(name).map_or(String::new(), |location| format!("{:?}", location.dtype));
        match failure {
            Failure::ElementType => self.in_this(WeightError::ElementType { name: name.into(), found: found() }),
            Failure::TooLarge(value) => self.in_this(WeightError::IntegerTooLarge { name: name.into(), value }),
            Failure::File(error) => error,
        }
    }

    /// The error of a tensor, with the path where others belong to the same checkpoint.
    pub(super) fn in_this(&self, error: WeightError) -> WeightError {
        match self.one_of_several {
            true => WeightError::InFile { path: self.path.clone(), error: Box::new(error) },
            false => error,
        }
    }

    /// Records that a tensor was read.
    pub(super) fn log_loaded(&self, name: &str) {
        self.log.borrow_mut().loaded.insert(name.into());
    }

    /// Records that elements of a tensor were read and became elements of type `to`.
    pub(super) fn log_converted(&self, name: &str, to: ElementType) {
        self.log_loaded(name);
        let Some(location) = self.tensors.get(name) else { return };
        let (from, to) = (format!("{:?}", location.dtype), to.to_string());
        self.log.borrow_mut().convert(Conversion { name: name.into(), from, to });
    }

    /// Marks tensors as not needed (buffers, unused heads), so that they are not reported as unexpected.
    pub fn ignore(&self, unwanted: impl Fn(&str) -> bool) {
        let names = self.tensors.keys().filter(|name| unwanted(name)).cloned();
        self.log.borrow_mut().ignored.extend(names);
    }

    /// What was loaded so far, and what was not.
    pub fn report(&self) -> LoadReport {
        self.log.borrow().report(self.tensors.keys())
    }

    /// The report, if every tensor was loaded or ignored.
    ///
    /// # Errors
    /// [`WeightError::Unused`] with the names of the others.
    pub fn finish(&self) -> Result<LoadReport, WeightError> {
        self.report().complete()
    }
}

fn files_of_folder(folder: &Path) -> Result<Vec<PathBuf>, WeightError> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.exists() || !index.exists() {
        return Ok(vec![single]);
    }
    let failed = |cause: &dyn fmt::Display| WeightError::File { path: index.clone(), cause: cause.to_string() };
    let text = std::fs::read_to_string(&index).map_err(|cause| failed(&cause))?;
    let index_record: serde_json::Value = serde_json::from_str(&text).map_err(|cause| failed(&cause))?;
    let map = index_record.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| failed(&"it has no `weight_map`"))?;
    let shards: BTreeSet<&str> = map.values().filter_map(|file| file.as_str()).collect();
    Ok(shards.into_iter().map(|file| folder.join(file)).collect())
}

/// A block of a tensor.
struct Block<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    shape: &'a [usize],
    ranges: &'a [Range<usize>],
}

impl Fill for Block<'_> {
    type Error = WeightError;

    fn fill<T: Float>(self, into: &mut [T]) -> Result<(), WeightError> {
        let Self { checkpoint, name, shape, ranges } = self;
        checkpoint.read_floats((name, shape), (runs::of_block(shape, ranges), 1), into)
    }
}
