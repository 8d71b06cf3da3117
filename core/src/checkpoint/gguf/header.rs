//! The header of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::directory;
use super::metadata::Metadata;
use super::source::{Problem, Source};
use super::split::{Split, first_part};
use crate::checkpoint::stored::Stored;
use crate::error::WeightError;

/// Multiple of bytes at which tensors begin, if the file does not say.
pub(super) const ALIGNMENT: u32 = 32;

pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// Least bytes of an entry of metadata: the length of its key, its type, and a value of one byte.
const ENTRY: u64 = 13;

/// The header of a GGUF file: metadata, and where the tensors are. Of a model in several parts it is that of the first, with the tensors of
/// all.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// At least one.
    files: Vec<PathBuf>,
    metadata: BTreeMap<String, Metadata>,
    pub(in crate::checkpoint) tensors: BTreeMap<String, Place>,
}

/// Where a tensor is.
#[derive(Debug, Clone)]
pub(in crate::checkpoint) struct Place {
    /// The place of its file in [`Gguf::files`].
    pub(in crate::checkpoint) file: usize,
    pub(in crate::checkpoint) stored: Stored,
}

impl Gguf {
    /// Reads the header. No count or length that the file states is used before it was checked against the length of the file. If it is the
    /// first of several parts, `NAME-00001-of-00003.gguf`, the headers of the others are read, too.
    ///
    /// # Errors
    /// [`WeightError::File`] if a file is no GGUF of version 2 or 3 in little-endian order, or is damaged; if it is a part and not the first,
    /// if a part is missing or of another model, or if two have the same tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightError> {
        let path = path.as_ref();
        let (metadata, tensors) = header(path)?;
        let split = Split::of(&metadata).map_err(|cause| failed(path, cause))?;
        let mut gguf = Self { files: Vec::new(), metadata, tensors: BTreeMap::new() };
        gguf.add(path.into(), tensors)?;
        if let Some(split) = split {
            for part in split.others(path)? {
                let (metadata, tensors) = header(&part.path)?;
                part.check(&metadata, &gguf.metadata).map_err(|cause| failed(&part.path, cause))?;
                gguf.add(part.path, tensors)?;
            }
            split.check(gguf.tensors.len()).map_err(|cause| failed(path, cause))?;
        }
        Ok(gguf)
    }

    /// Adds a file with its tensors.
    fn add(&mut self, path: PathBuf, tensors: BTreeMap<String, Stored>) -> Result<(), WeightError> {
        let file = self.files.len();
        self.files.push(path);
        for (name, stored) in tensors {
            if let Some(other) = self.tensors.get(&name) {
                let other = self.files[other.file].display();
                return Err(failed(
                    &self.files[file],
                    format!("`{name}` is in it and in {other}; one of them is of another model"),
                ));
            }
            self.tensors.insert(name, Place { file, stored });
        }
        Ok(())
    }

    /// Whether a path has the name of such a file.
    pub fn is_named(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    }

    /// The file that a path names, if it is a GGUF: the path itself, or the only one in a folder without safetensors. Several parts of a
    /// model count as one, and the first of them is returned.
    pub fn in_path(path: &Path) -> Option<PathBuf> {
        if !path.is_dir() {
            return Self::is_named(path).then(|| path.into());
        }
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let files: Vec<PathBuf> = entries.collect();
        let own: BTreeSet<PathBuf> = files.iter().filter(|file| Self::is_named(file)).map(first_part).collect();
        let others = files.iter().any(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
        own.first().filter(|_| own.len() == 1 && !others).cloned()
    }

    /// The file, or the first part of several.
    pub fn path(&self) -> &Path {
        &self.files[0]
    }

    /// The file, or all parts in their order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The value of a key, such as `general.architecture`.
    pub fn value(&self, key: &str) -> Option<&Metadata> {
        self.metadata.get(key)
    }

    /// Every key with its value, in order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Metadata)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The shape of a tensor under its name in the file, row by row.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|place| place.stored.shape.as_slice())
    }
}

type Header = (BTreeMap<String, Metadata>, BTreeMap<String, Stored>);

/// The header of one file.
fn header(path: &Path) -> Result<Header, WeightError> {
    let open = || -> Result<Header, Problem> {
        let file = File::open(path).map_err(|cause| cause.to_string())?;
        let length = file.metadata().map_err(|cause| cause.to_string())?.len();
        read(&mut Source::of_file(file, length))
    };
    open().map_err(|cause| failed(path, cause))
}

fn failed(path: &Path, cause: Problem) -> WeightError {
    WeightError::File { path: path.into(), cause }
}

fn read(source: &mut Source<impl Read>) -> Result<Header, Problem> {
    if source.bytes()? != *b"GGUF" {
        return Err("it is not a GGUF file: it does not begin with `GGUF`".into());
    }
    match source.u32()? {
        2 | 3 => {}
        1 => return Err("it is GGUF of version 1, whose lengths have 32 bits; convert it to version 3".into()),
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err("it is in big-endian order; convert it to little-endian".into());
        }
        version => return Err(format!("it is GGUF of version {version}; versions 2 and 3 are read")),
    }
    let (tensors, entries) = (source.u64()?, source.u64()?);
    source.expect(entries, ENTRY, "entries of metadata")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = source.text()?;
        let value = Metadata::read(source).map_err(|problem| format!("`{key}`: {problem}"))?;
        if metadata.contains_key(&key) {
            return Err(format!("it has two values of `{key}`"));
        }
        metadata.insert(key, value);
    }
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => ALIGNMENT.into(),
        Some(&Metadata::Integer(size @ 1..=0x1_0000_0000)) if (size as u64).is_power_of_two() => size as u64,
        Some(other) => return Err(format!("`{ALIGNMENT_KEY}` is {other:?}; it must be a power of two")),
    };
    let tensors = directory::read(source, tensors, alignment)?;
    Ok((metadata, tensors))
}
