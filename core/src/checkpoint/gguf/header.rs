//! The header of a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::directory;
use super::metadata::Metadata;
use super::source::{Problem, Source};
use crate::checkpoint::stored::Stored;
use crate::error::WeightError;

/// Multiple of bytes at which tensors begin, if the file does not say.
const ALIGNMENT: u64 = 32;

/// Least bytes of an entry of metadata: the length of its key, its type, and a value of one byte.
const ENTRY: u64 = 13;

/// The header of a GGUF file: metadata, and where the tensors are.
#[derive(Debug, Clone)]
pub struct Gguf {
    path: PathBuf,
    metadata: BTreeMap<String, Metadata>,
    pub(in crate::checkpoint) tensors: BTreeMap<String, Stored>,
}

impl Gguf {
    /// Reads the header. No count or length that the file states is used before it was checked against the length of the file.
    ///
    /// # Errors
    /// [`WeightError::File`] if it is no GGUF of version 2 or 3 in little-endian order, is one of several parts, or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightError> {
        let path = path.as_ref();
        let read = || -> Result<Self, Problem> {
            let file = File::open(path).map_err(|cause| cause.to_string())?;
            let length = file.metadata().map_err(|cause| cause.to_string())?.len();
            let (metadata, tensors) = read(&mut Source::of_file(file, length))?;
            Ok(Self { path: path.into(), metadata, tensors })
        };
        read().map_err(|cause| WeightError::File { path: path.into(), cause })
    }

    /// Whether a path has the name of such a file.
    pub fn is_named(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    }

    /// The file that a path names, if it is a GGUF: the path itself, or the only one in a folder without safetensors.
    pub fn in_path(path: &Path) -> Option<PathBuf> {
        if !path.is_dir() {
            return Self::is_named(path).then(|| path.into());
        }
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let files: Vec<PathBuf> = entries.collect();
        let mut own = files.iter().filter(|file| Self::is_named(file));
        let others = files.iter().any(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
        match (own.next(), own.next()) {
            (Some(one), None) if !others => Some(one.clone()),
            _ => None,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
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
        self.tensors.get(name).map(|stored| stored.shape.as_slice())
    }
}

type Header = (BTreeMap<String, Metadata>, BTreeMap<String, Stored>);

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
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(&Metadata::Integer(size @ 1..=0x1_0000_0000)) if (size as u64).is_power_of_two() => size as u64,
        Some(other) => return Err(format!("`general.alignment` is {other:?}; it must be a power of two")),
    };
    if let Some(Metadata::Integer(parts @ 2..)) = metadata.get("split.count") {
        return Err(format!("it is one of {parts} parts; join them with `llama-gguf-split --merge`"));
    }
    let tensors = directory::read(source, tensors, alignment)?;
    Ok((metadata, tensors))
}
