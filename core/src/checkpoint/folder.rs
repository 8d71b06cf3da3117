//! Which files of a folder make a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::gguf::Gguf;
use crate::error::WeightError;

/// What a path holds.
#[derive(Debug)]
pub(super) enum Found {
    /// A GGUF file.
    Gguf(PathBuf),
    /// Files of safetensors.
    Safetensors(Folder),
}

/// The files of a checkpoint, and which of them has each tensor.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// At least one.
    pub(super) files: Vec<PathBuf>,
    /// For each tensor of the index, the place of its file in `files`. Empty without an index.
    pub(super) named: BTreeMap<String, usize>,
    /// The index that was read.
    pub(super) index: Option<PathBuf>,
}

impl Folder {
    /// A file, or a folder in the Hugging Face layout, or one with a GGUF file.
    pub(super) fn open(path: &Path) -> Result<Found, WeightError> {
        if Gguf::is_named(path) && !path.is_dir() {
            return Ok(Found::Gguf(path.into()));
        }
        if !path.is_dir() {
            return match other_format(&path.to_string_lossy()) {
                true => Err(WeightError::NoSafetensors {
                    folder: path.parent().unwrap_or(path).into(),
                    files: path.file_name().map(|name| name.to_string_lossy().into()).into_iter().collect(),
                }),
                false => Ok(Found::Safetensors(Self::single(path.into()))),
            };
        }
        let single = path.join("model.safetensors");
        let index = path.join("model.safetensors.index.json");
        match (single.exists(), index.exists()) {
            (true, _) => Ok(Found::Safetensors(Self::single(single))),
            (false, true) => Self::of_index(path, index).map(Found::Safetensors),
            (false, false) => match Gguf::in_path(path) {
                Some(file) => Ok(Found::Gguf(file)),
                None => Err(WeightError::NoSafetensors { folder: path.into(), files: files_of_weights(path) }),
            },
        }
    }

    fn single(file: PathBuf) -> Self {
        Self { files: vec![file], ..Self::default() }
    }

    fn of_index(folder: &Path, index: PathBuf) -> Result<Self, WeightError> {
        let failed = |cause: &dyn fmt::Display| WeightError::File { path: index.clone(), cause: cause.to_string() };
        let text = std::fs::read_to_string(&index).map_err(|cause| failed(&cause))?;
        let record: serde_json::Value = serde_json::from_str(&text).map_err(|cause| failed(&cause))?;
        let map = record.get("weight_map").and_then(|map| map.as_object());
        let map = map.filter(|map| !map.is_empty()).ok_or_else(|| failed(&"it has no `weight_map` with tensors"))?;
        let file = |(name, file): (&String, &serde_json::Value)| {
            let file =
                file.as_str().ok_or_else(|| failed(&format!("`weight_map.{name}` is not the name of a file")))?;
            Ok((name.clone(), file.to_owned()))
        };
        let map = map.iter().map(file).collect::<Result<BTreeMap<_, _>, WeightError>>()?;
        let shards: BTreeSet<&String> = map.values().collect();
        let files: Vec<&String> = shards.into_iter().collect();
        let place = |file: &String| files.partition_point(|other| *other < file);
        Ok(Self {
            named: map.iter().map(|(name, file)| (name.clone(), place(file))).collect(),
            files: files.iter().map(|file| folder.join(file)).collect(),
            index: Some(index),
        })
    }
}

/// Whether the name is that of weights in another format than safetensors.
fn other_format(name: &str) -> bool {
    [".bin", ".bin.index.json", ".pth", ".pt", ".ckpt", ".gguf"].iter().any(|end| name.ends_with(end))
}

/// Files of a folder that look like weights.
fn files_of_weights(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".safetensors") || other_format(name)).collect();
    names.sort();
    names
}
