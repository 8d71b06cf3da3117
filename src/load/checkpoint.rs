//! A safetensors checkpoint on disk, read tensor by tensor.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use crate::config::nearest;
use crate::error::WeightError;

/// One or several safetensors files, mapped into memory. Tensors are read and converted one at a time, so loading takes
/// little more than the module itself; what was read is written down for [`report`](Self::report).
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Mmap>,
    tensors: BTreeMap<String, Location>,
    log: RefCell<Log>,
}

#[derive(Debug, Clone)]
struct Location {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

#[derive(Debug, Default)]
struct Log {
    loaded: BTreeSet<String>,
    ignored: BTreeSet<String>,
    missing: BTreeSet<String>,
    converted: Vec<Conversion>,
}

/// A tensor whose element type was changed on load.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new(), log: RefCell::default() };
        for file in files {
            checkpoint.map(&file)?;
        }
        Ok(checkpoint)
    }

    fn map(&mut self, path: &Path) -> Result<(), WeightError> {
        let failed = |cause: &dyn fmt::Display| WeightError::File { path: path.into(), cause: cause.to_string() };
        let file = File::open(path).map_err(|cause| failed(&cause))?;
        // SAFETY: the map is read only. A process that truncates the file meanwhile would take us down, as with every
        // memory-mapped checkpoint; nothing else is assumed of its content, which is checked by the parser.
        let map = unsafe { Mmap::map(&file) }.map_err(|cause| failed(&cause))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|cause| failed(&cause))?;
        let data = header + 8; // the header stands behind its own length, 8 bytes
        for (name, info) in metadata.tensors() {
            let location = Location {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data + info.data_offsets.0,
                end: data + info.data_offsets.1,
            };
            self.tensors.insert(name, location);
        }
        self.files.push(map);
        Ok(())
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
    /// [`WeightError::Missing`] with the nearest name, [`WeightError::Shape`], or [`WeightError::ElementType`] if it does
    /// not hold floats.
    pub fn tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dtype: DType,
        device: &B::Device,
    ) -> Result<Tensor<B, D>, WeightError> {
        let (location, bytes) = self.locate(name, &shape)?;
        let data = floats(bytes, location.dtype, &location.shape)
            .ok_or_else(|| WeightError::ElementType { name: name.into(), found: format!("{:?}", location.dtype) })?;
        let mut log = self.log.borrow_mut();
        log.loaded.insert(name.into());
        if data.dtype != dtype {
            let (from, to) = (format!("{:?}", data.dtype), format!("{dtype:?}"));
            log.converted.push(Conversion { name: name.into(), from, to });
        }
        Ok(Tensor::from_data(data.convert_dtype(dtype), (device, dtype)))
    }

    /// Reads a tensor of integers of any width, or of booleans, as `i64`.
    ///
    /// # Errors
    /// [`WeightError::Missing`] with the nearest name, [`WeightError::Shape`], or [`WeightError::ElementType`] if it does
    /// not hold integers.
    pub fn int_tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &B::Device,
    ) -> Result<Tensor<B, D, Int>, WeightError> {
        let (location, bytes) = self.locate(name, &shape)?;
        let values = integers(bytes, location.dtype)
            .ok_or_else(|| WeightError::ElementType { name: name.into(), found: format!("{:?}", location.dtype) })?;
        self.log.borrow_mut().loaded.insert(name.into());
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Whether a tensor is there and of int8.
    pub(super) fn is_int8(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|location| location.dtype == Dtype::I8)
    }

    /// The bytes of a tensor of int8, which become elements of type `to`.
    pub(super) fn int8(&self, name: &str, shape: [usize; 2], to: DType) -> Result<&[u8], WeightError> {
        let (_, bytes) = self.locate(name, &shape)?;
        let mut log = self.log.borrow_mut();
        log.loaded.insert(name.into());
        if to != DType::I8 {
            log.converted.push(Conversion { name: name.into(), from: "I8".into(), to: format!("{to:?}") });
        }
        Ok(bytes)
    }

    /// A tensor of floats of any shape, as f32.
    pub(super) fn numbers(&self, name: &str) -> Result<(Vec<f32>, &[usize]), WeightError> {
        let shape = self.shape(name).unwrap_or_default();
        let (location, bytes) = self.locate(name, shape)?;
        let data = floats(bytes, location.dtype, shape)
            .ok_or_else(|| WeightError::ElementType { name: name.into(), found: format!("{:?}", location.dtype) })?;
        self.log.borrow_mut().loaded.insert(name.into());
        Ok((data.iter().collect(), shape))
    }

    /// Where a tensor of this shape is, and its bytes.
    fn locate(&self, name: &str, shape: &[usize]) -> Result<(&Location, &[u8]), WeightError> {
        let location = self.tensors.get(name).ok_or_else(|| {
            self.log.borrow_mut().missing.insert(name.into());
            WeightError::Missing { name: name.into(), nearest: nearest(name, self.tensors.keys()) }
        })?;
        if location.shape != shape {
            let (expected, found) = (shape.to_vec(), location.shape.clone());
            return Err(WeightError::Shape { name: name.into(), expected, found });
        }
        Ok((location, &self.files[location.file][location.start..location.end]))
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
        let report = self.report();
        match report.unexpected.is_empty() {
            true => Ok(report),
            false => Err(WeightError::Unused(report.unexpected)),
        }
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

fn read<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
}

/// The values of an integer tensor; `None` for other types.
fn integers(bytes: &[u8], dtype: Dtype) -> Option<Vec<i64>> {
    Some(match dtype {
        Dtype::BOOL | Dtype::U8 => bytes.iter().map(|&byte| byte.into()).collect(),
        Dtype::I8 => read(bytes, |raw| i8::from_le_bytes(raw).into()),
        Dtype::I16 => read(bytes, |raw| i16::from_le_bytes(raw).into()),
        Dtype::I32 => read(bytes, |raw| i32::from_le_bytes(raw).into()),
        Dtype::I64 => read(bytes, i64::from_le_bytes),
        _ => return None,
    })
}

/// The values of a float tensor, in the type that they are stored in; `None` for other types.
fn floats(bytes: &[u8], dtype: Dtype, shape: &[usize]) -> Option<TensorData> {
    Some(match dtype {
        Dtype::F64 => TensorData::new(read(bytes, f64::from_le_bytes), shape),
        Dtype::F32 => TensorData::new(read(bytes, f32::from_le_bytes), shape),
        Dtype::F16 => TensorData::new(read(bytes, f16::from_le_bytes), shape),
        Dtype::BF16 => TensorData::new(read(bytes, bf16::from_le_bytes), shape),
        _ => return None,
    })
}
