//! A safetensors checkpoint on disk, read tensor by tensor.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Element, Int, Tensor, TensorData, backend::Backend};
use safetensors::Dtype;

use super::read::{DataFile, Fill, Kind, Run, filled, runs_of_block};
use crate::error::WeightError;
use burn_deepspeed_core::spelling::nearest;

/// One or several safetensors files, which stay open. What is wanted of a tensor is read and converted some of it at a time, so
/// loading takes little more than the module itself; what was read is written down for [`report`](Self::report).
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// Whether errors name the path: others belong to the same checkpoint.
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

#[derive(Debug, Default)]
struct Log {
    loaded: BTreeSet<String>,
    ignored: BTreeSet<String>,
    missing: BTreeSet<String>,
    converted: Vec<Conversion>,
}

/// A tensor whose element type was changed on load.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conversion {
    /// The tensor.
    pub name: String,
    /// Element type in the file.
    pub from: String,
    /// Element type in the module.
    pub to: String,
}

/// What became of every tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadReport {
    /// Read into a module.
    pub loaded: Vec<String>,
    /// Asked for and not in the checkpoint.
    pub missing: Vec<String>,
    /// In the checkpoint, never asked for and not ignored.
    pub unexpected: Vec<String>,
    /// Those of the loaded ones whose element type was changed.
    pub converted: Vec<Conversion>,
}

impl LoadReport {
    /// Itself, if nothing is unexpected.
    pub(super) fn complete(self) -> Result<Self, WeightError> {
        match self.unexpected.is_empty() {
            true => Ok(self),
            false => Err(WeightError::Unused(self.unexpected)),
        }
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} loaded, {} missing, {} unexpected, {} converted",
            self.loaded.len(),
            self.missing.len(),
            self.unexpected.len(),
            self.converted.len()
        )?;
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            for name in names {
                write!(f, "\n  {what}: {name}")?;
            }
        }
        Ok(())
    }
}

impl Checkpoint {
    /// Opens a file, or a folder in the Hugging Face layout: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`WeightError::File`] if a file is not there or is not safetensors.
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

    /// [`open`](Self::open), of one of several files that make a checkpoint: errors say which.
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

    /// Reads a tensor of floats, converted to `dtype`.
    ///
    /// # Errors
    /// [`WeightError::Missing`] with the nearest name, [`WeightError::Shape`], [`WeightError::ElementType`] if it does not hold
    /// floats, or [`WeightError::File`] if it cannot be read.
    pub fn tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dtype: DType,
        device: &B::Device,
    ) -> Result<Tensor<B, D>, WeightError> {
        self.slice(name, shape, shape.map(|size| 0..size), dtype, device)
    }

    /// Reads a block of a tensor of floats and nothing else of the file, converted to `dtype`: what a rank has of a matrix that
    /// is cut.
    ///
    /// ```no_run
    /// # use burn::tensor::{DType, Tensor};
    /// # use burn_deepspeed::load::Checkpoint;
    /// # use burn_ndarray::NdArray;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let checkpoint = Checkpoint::open("gpt2")?;
    /// // the second half of the outputs of an MLP of 768 inputs and 3072 outputs, `[in, out]`
    /// let name = "h.0.mlp.c_fc.weight";
    /// let half: Tensor<NdArray, 2> =
    ///     checkpoint.slice(name, [768, 3072], [0..768, 1536..3072], DType::F32, &Default::default())?;
    /// # let _ = half;
    /// # Ok(()) }
    /// ```
    ///
    /// # Shapes
    /// - shape: that of the whole tensor
    /// - output: the lengths of `ranges`
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor).
    ///
    /// # Panics
    /// If a range is not inside of the shape.
    pub fn slice<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        ranges: [Range<usize>; D],
        dtype: DType,
        device: &B::Device,
    ) -> Result<Tensor<B, D>, WeightError> {
        for (axis, range) in ranges.iter().enumerate() {
            assert!(
                range.start <= range.end && range.end <= shape[axis],
                "Checkpoint::slice: `{name}` has shape {shape:?}, and {range:?} of axis {axis} is not inside"
            );
        }
        let source = Block { checkpoint: self, name, shape: &shape, ranges: &ranges };
        let data = filled(source, ranges.each_ref().map(Range::len), dtype)?;
        self.log_converted(name, dtype);
        Ok(Tensor::from_data(data, (device, dtype)))
    }

    /// Reads a tensor of integers of any width, or of booleans, as `i64`.
    ///
    /// # Errors
    /// [`WeightError::Missing`] with the nearest name, [`WeightError::Shape`], [`WeightError::ElementType`] if it does not hold
    /// integers, or [`WeightError::File`] if it cannot be read.
    pub fn int_tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &B::Device,
    ) -> Result<Tensor<B, D, Int>, WeightError> {
        let mut values = vec![0i64; shape.iter().product()];
        let all = shape.map(|size| 0..size);
        self.elements(Kind::Integers, (name, &shape), (runs_of_block(&shape, &all), 1), &mut values)?;
        self.log_loaded(name);
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Whether a tensor is there and of int8.
    pub(super) fn is_int8(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|location| location.dtype == Dtype::I8)
    }

    /// Fills `into` with elements of a tensor of this shape. Runs ascend; elements of one are so far apart where they go.
    pub(super) fn elements<T: Element>(
        &self,
        kind: Kind,
        (name, shape): (&str, &[usize]),
        runs: (impl IntoIterator<Item = Run>, usize),
        into: &mut [T],
    ) -> Result<(), WeightError> {
        let location = self.locate(name, shape)?;
        let read = self.files[location.file].elements(kind, (location.start, location.dtype), runs, into);
        read.unwrap_or_else(|| {
            let found = format!("{:?}", location.dtype);
            Err(self.in_this(WeightError::ElementType { name: name.into(), found }))
        })
    }

    /// Where a tensor of this shape is.
    fn locate(&self, name: &str, shape: &[usize]) -> Result<&Location, WeightError> {
        let location = self.tensors.get(name).ok_or_else(|| {
            self.log.borrow_mut().missing.insert(name.into());
            self.in_this(WeightError::Missing { name: name.into(), nearest: nearest(name, self.tensors.keys()) })
        })?;
        if location.shape != shape {
            let (expected, found) = (shape.to_vec(), location.shape.clone());
            return Err(self.in_this(WeightError::Shape { name: name.into(), expected, found }));
        }
        Ok(location)
    }

    /// The error of a tensor, with the path where others belong to the same checkpoint.
    pub(super) fn in_this(&self, error: WeightError) -> WeightError {
        match self.one_of_several {
            true => WeightError::InFile { path: self.path.clone(), error: Box::new(error) },
            false => error,
        }
    }

    /// Writes down that a tensor was read.
    pub(super) fn log_loaded(&self, name: &str) {
        self.log.borrow_mut().loaded.insert(name.into());
    }

    /// Writes down that elements of a tensor were read and became elements of type `to`.
    pub(super) fn log_converted(&self, name: &str, to: DType) {
        self.log_loaded(name);
        let Some(location) = self.tensors.get(name) else { return };
        let (from, to) = (format!("{:?}", location.dtype), format!("{to:?}"));
        let conversion = Conversion { name: name.into(), from, to };
        let converted = &mut self.log.borrow_mut().converted;
        if conversion.from != conversion.to && !converted.contains(&conversion) {
            converted.push(conversion);
        }
    }

    /// Marks tensors that are not wanted (buffers, heads that are not used), so that they are not reported as unexpected.
    pub fn ignore(&self, unwanted: impl Fn(&str) -> bool) {
        let names = self.tensors.keys().filter(|name| unwanted(name)).cloned();
        self.log.borrow_mut().ignored.extend(names);
    }

    /// What was loaded so far, and what was not.
    pub fn report(&self) -> LoadReport {
        let log = self.log.borrow();
        let unexpected = self.tensors.keys().filter(|name| !log.loaded.contains(*name) && !log.ignored.contains(*name));
        LoadReport {
            loaded: log.loaded.iter().cloned().collect(),
            missing: log.missing.iter().cloned().collect(),
            unexpected: unexpected.cloned().collect(),
            converted: log.converted.clone(),
        }
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
    fn fill<T: Element>(self, into: &mut [T]) -> Result<(), WeightError> {
        let Self { checkpoint, name, shape, ranges } = self;
        checkpoint.elements(Kind::Floats, (name, shape), (runs_of_block(shape, ranges), 1), into)
    }
}
