//! A checkpoint on disk, read tensor by tensor.

mod open;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::data_file::{DataFile, Failure};
use super::float::{Fill, Float, Floats};
use super::gguf::{self, RowOrder};
use super::report::{Conversion, LoadReport, Log};
use super::runs::{self, Run};
use super::scale_format::ScaleFormat;
use super::stored::{Stored, StoredElement};
use crate::block::BlockFormat;
use crate::element::ElementType;
use crate::error::WeightError;
use crate::spelling::nearest;

/// One or several safetensors files, or a GGUF file with its parts, which stay open. A tensor, or the part of it that is wanted, is read and converted in
/// blocks of a megabyte, so loading takes little more memory than the module itself. Every read is recorded for
/// [`report`](Self::report).
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// Whether errors name the path, because other files belong to the same checkpoint.
    one_of_several: bool,
    files: Vec<DataFile>,
    /// By their names without the wrapper.
    tensors: BTreeMap<String, Location>,
    wrapper: String,
    scale_format: Option<ScaleFormat>,
    /// The architecture of a GGUF file that states one.
    gguf: Option<&'static str>,
    log: RefCell<Log>,
}

#[derive(Debug, Clone)]
struct Location {
    file: usize,
    stored: Stored,
    rows: RowOrder,
}

impl Checkpoint {
    /// The architecture of the GGUF file that this is, if it states one.
    pub(super) fn gguf(&self) -> Option<&'static str> {
        self.gguf
    }

    /// What was before every name in the file, and is not part of the names here: `_orig_mod.` of a compiled module, `module.` of a
    /// parallel one, `base_model.model.` of PEFT. Tensors are found with it and without it.
    pub fn wrapper(&self) -> &str {
        &self.wrapper
    }

    /// The same checkpoint with the format of its int8 scales, for the shapes that several formats share.
    pub fn with_scale_format(self, format: ScaleFormat) -> Self {
        Self { scale_format: Some(format), ..self }
    }

    pub(super) fn scale_format(&self) -> Option<ScaleFormat> {
        self.scale_format
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.location(name).is_some()
    }

    /// Where a tensor is, by its name with the wrapper or without it.
    fn location(&self, name: &str) -> Option<&Location> {
        self.tensors.get(self.bare(name))
    }

    /// A name without the wrapper, as the tensors are stored.
    fn bare<'n>(&self, name: &'n str) -> &'n str {
        match name.strip_prefix(self.wrapper.as_str()) {
            Some(bare) if !self.tensors.contains_key(name) => bare,
            _ => name,
        }
    }

    /// The names of all tensors, in order, without the [`wrapper`](Self::wrapper).
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.location(name).map(|location| location.stored.shape.as_slice())
    }

    /// Checks that a tensor is in the checkpoint and has this shape. A matrix may have further dimensions of 1 at the end, as the
    /// kernel of a 1×1 convolution has. Every read checks this before it allocates memory, so a size
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
        let (file, location) = self.locate(name, shape)?;
        let mut values = vec![0; shape.iter().product()];
        let read = match location.rows {
            RowOrder::AsStored => file.integers(&location.stored, &mut values),
            RowOrder::Pairs(_) => Err(Failure::ElementType),
        };
        read.map_err(|failure| self.failed(name, failure, WeightError::INTEGERS))?;
        self.log_loaded(name);
        Ok(values)
    }

    /// Whether a tensor is in the checkpoint and holds 8-bit integers.
    pub(super) fn is_int8(&self, name: &str) -> bool {
        self.location(name).is_some_and(|location| location.stored.element == StoredElement::Plain(Dtype::I8))
    }

    /// Fills `into` with floats of a tensor of this shape. `runs` holds ascending runs, and the distance between the elements of
    /// a run in `into`.
    pub(super) fn read_floats<T: Float>(
        &self,
        (name, shape): (&str, &[usize]),
        runs: (impl IntoIterator<Item = Run>, usize),
        into: &mut [T],
    ) -> Result<(), WeightError> {
        let (file, location) = self.locate(name, shape)?;
        let (runs, stride) = runs;
        let read = match location.rows {
            RowOrder::AsStored => file.floats(&location.stored, (runs, stride), into),
            RowOrder::Pairs(head) => {
                let width = location.stored.shape.iter().skip(1).product();
                file.floats(&location.stored, (gguf::paired(runs, [head, width], stride), stride), into)
            }
        };
        read.map_err(|failure| self.failed(name, failure, WeightError::WEIGHTS))
    }

    /// Fills `into` with 8-bit integers of a tensor of this shape. `runs` holds ascending runs, and the distance between the
    /// elements of a run in `into`.
    pub(super) fn read_int8(
        &self,
        (name, shape): (&str, &[usize]),
        runs: (impl IntoIterator<Item = Run>, usize),
        into: &mut [i8],
    ) -> Result<(), WeightError> {
        let (file, location) = self.locate(name, shape)?;
        file.int8(&location.stored, runs, into).map_err(|failure| self.failed(name, failure, WeightError::WEIGHTS))
    }

    /// The format of floats or blocks in which a tensor is stored.
    pub(super) fn format(&self, name: &str) -> Option<BlockFormat> {
        self.location(name).and_then(|location| location.stored.element.format())
    }

    /// Fills `into` with whole blocks of a tensor of this shape, as they are stored. `runs` ascend, and count in blocks of the tensor and
    /// in bytes of `into`.
    pub(super) fn read_blocks(
        &self,
        (name, shape): (&str, &[usize]),
        format: BlockFormat,
        runs: impl IntoIterator<Item = Run>,
        into: &mut [u8],
    ) -> Result<(), WeightError> {
        let (file, location) = self.locate(name, shape)?;
        let stored = &location.stored;
        let read = match location.rows {
            RowOrder::AsStored => file.whole_blocks(stored, format, runs, into),
            RowOrder::Pairs(head) => {
                let width = stored.shape.iter().skip(1).product::<usize>() / format.elements();
                file.whole_blocks(stored, format, gguf::paired(runs, [head, width], format.bytes()), into)
            }
        };
        read.map_err(|failure| self.failed(name, failure, WeightError::WEIGHTS))
    }

    /// Where a tensor of this shape is.
    fn locate(&self, name: &str, shape: &[usize]) -> Result<(&DataFile, &Location), WeightError> {
        let location = self.location(name).ok_or_else(|| {
            self.log.borrow_mut().missing.insert(name.into());
            let (nearest, held) = (nearest(name, self.tensors.keys()), self.tensors.keys().cloned().collect());
            self.in_this(WeightError::Missing { name: name.into(), nearest, held })
        })?;
        if !same_shape(&location.stored.shape, shape) {
            let (expected, found) = (shape.to_vec(), location.stored.shape.clone());
            return Err(self.in_this(WeightError::Shape { name: name.into(), expected, found }));
        }
        Ok((&self.files[location.file], location))
    }

    fn failed(&self, name: &str, failure: Failure, expected: &'static str) -> WeightError {
        let found = || self.location(name).map_or(String::new(), |location| location.stored.element.to_string());
        match failure {
            Failure::ElementType => {
                self.in_this(WeightError::ElementType { name: name.into(), found: found(), expected })
            }
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
        self.log.borrow_mut().loaded.insert(self.bare(name).into());
    }

    /// Records that elements of a tensor were read and became elements of type `to`, or blocks.
    pub(super) fn log_converted(&self, name: &str, to: impl ToString) {
        self.log_loaded(name);
        let Some(location) = self.location(name) else { return };
        let (from, to) = (location.stored.element.to_string(), to.to_string());
        self.log.borrow_mut().convert(Conversion { name: self.bare(name).into(), from, to });
    }

    /// Marks tensors as not needed (buffers, unused heads), so that they are not reported as unexpected. `unwanted` gets the names
    /// without the [`wrapper`](Self::wrapper).
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

/// Whether a tensor in the file has the shape that is wanted; `[C, C, 1, 1]` is a matrix `[C, C]`.
fn same_shape(found: &[usize], wanted: &[usize]) -> bool {
    match found.strip_prefix(wanted) {
        Some(rest) => rest.is_empty() || (wanted.len() == 2 && rest.iter().all(|&size| size == 1)),
        None => false,
    }
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
