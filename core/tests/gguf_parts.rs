//! GGUF files in several parts, made of files of `tests/golden/gguf`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use burn_deepspeed_core::checkpoint::{Checkpoint, Floats, Gguf, HuggingFaceConfig};
use burn_deepspeed_core::element::ElementType;
use burn_deepspeed_core::error::{ConfigError, WeightError};

/// A file of `tests/golden/gguf`.
fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/gguf")).join(name).join("model.gguf")
}

/// A GGUF file in pieces.
struct Pieces {
    /// The entries of its metadata.
    entries: Vec<Vec<u8>>,
    /// The entry of each tensor without its offset, and its bytes.
    tensors: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Takes integers and texts off the front.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn size(&mut self, bytes: usize) -> usize {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&self.bytes[self.at..self.at + bytes]);
        self.at += bytes;
        u64::from_le_bytes(value) as usize
    }

    fn text(&mut self) {
        self.at += self.size(8);
    }

    fn value(&mut self, kind: usize) {
        match kind {
            8 => self.text(),
            9 => {
                let (kind, count) = (self.size(4), self.size(8));
                (0..count).for_each(|_| self.value(kind));
            }
            kind => self.at += [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][kind],
        }
    }
}

impl Pieces {
    fn of(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut reader = Reader { bytes: &bytes, at: 8 };
        let (tensors, entries) = (reader.size(8), reader.size(8));
        let entries = (0..entries).map(|_| {
            let start = reader.at;
            reader.text();
            let kind = reader.size(4);
            reader.value(kind);
            bytes[start..reader.at].to_vec()
        });
        let entries = entries.collect();
        let infos = (0..tensors).map(|_| {
            let start = reader.at;
            reader.text();
            let axes = reader.size(4);
            reader.at += 8 * axes + 4;
            let info = bytes[start..reader.at].to_vec();
            (info, reader.size(8))
        });
        let infos: Vec<_> = infos.collect();
        let data = reader.at.next_multiple_of(32);
        let ends = infos[1..].iter().map(|(_, offset)| *offset).chain([bytes.len() - data]);
        let ends: Vec<usize> = ends.collect();
        let tensors =
            infos.into_iter().zip(ends).map(|((info, start), end)| (info, bytes[data..][start..end].to_vec()));
        Self { entries, tensors: tensors.collect() }
    }

    /// Writes the tensors of a range. The first part has all entries.
    fn write(&self, path: &Path, range: std::ops::Range<usize>, split: &[(&str, u32)], all: bool) {
        let tensors = &self.tensors[range];
        let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let integer =
            |key: &str, value: u32| [text(key), 4u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat();
        let mut entries: Vec<Vec<u8>> = split.iter().map(|(key, value)| integer(key, *value)).collect();
        if all {
            entries.extend(self.entries.iter().cloned());
        }
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((entries.len() as u64).to_le_bytes());
        bytes.extend(entries.concat());
        let mut data = Vec::new();
        for (info, own) in tensors {
            bytes.extend(info);
            bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(own);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data);
        std::fs::write(path, bytes).unwrap();
    }

    /// Writes three parts as `llama-gguf-split` does. The first may have no tensors.
    fn split(&self, folder: &Path, first: usize) -> [PathBuf; 3] {
        let all = self.tensors.len();
        let ends = [0, first, first.midpoint(all), all];
        [0, 1, 2].map(|part| {
            let path = folder.join(format!("tiny-{:05}-of-00003.gguf", part + 1));
            self.write(&path, ends[part]..ends[part + 1], &keys(part, all), part == 0);
            path
        })
    }
}

fn keys(part: usize, tensors: usize) -> [(&'static str, u32); 3] {
    [("split.no", part as u32), ("split.count", 3), ("split.tensors.count", tensors as u32)]
}

#[track_caller]
fn refused(path: &Path, named: &Path, expected: &str) {
    let error = Gguf::open(path).unwrap_err();
    assert!(matches!(&error, WeightError::File { path, .. } if path == named), "{error}");
    assert!(error.to_string().contains(expected), "{error}, expected {expected}");
    // The configuration says the same.
    let other = HuggingFaceConfig::from_json_file(path).unwrap_err();
    assert!(matches!(&other, ConfigError::File { path, .. } if path == named), "{other}");
}

#[test]
fn parts_are_read_as_the_whole() {
    // The factors of the second are read by the configuration, from the last part.
    for (name, first) in [("llama", 0), ("llama_rope_factors", 7), ("gemma3", 2)] {
        let folder = tempfile::tempdir().unwrap();
        let paths = Pieces::of(&golden(name)).split(folder.path(), first);
        let whole = Checkpoint::open(golden(name)).unwrap();
        let gguf = Gguf::open(&paths[0]).unwrap();
        assert_eq!((gguf.path(), gguf.files()), (paths[0].as_path(), &paths[..]));
        assert_eq!(Gguf::in_path(folder.path()), Some(paths[0].clone()));
        let config = HuggingFaceConfig::from_json_file(&paths[0]).unwrap();
        assert_eq!(config.record, HuggingFaceConfig::from_json_file(golden(name)).unwrap().record);
        for path in [folder.path(), &paths[0]] {
            let parts = Checkpoint::open(path).unwrap();
            config.check(&parts).unwrap();
            assert!(whole.names().eq(parts.names()));
            for tensor in whole.names() {
                let shape = whole.shape(tensor).unwrap();
                let ranges: Vec<_> = shape.iter().map(|&size| 0..size).collect();
                let read = |checkpoint: &Checkpoint| -> Floats {
                    checkpoint.floats(tensor, shape, &ranges, ElementType::F32).unwrap()
                };
                assert_eq!(read(&parts), read(&whole), "{tensor} of {name}");
            }
        }
    }
}

#[test]
fn another_part_than_the_first_says_which_to_open() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Pieces::of(&golden("llama")).split(folder.path(), 0);
    refused(&paths[1], &paths[1], &format!("it is part 2 of 3; open the first, {}", paths[0].display()));
    refused(&paths[2], &paths[2], "it is part 3 of 3; open the first");
    let renamed = folder.path().join("second.gguf");
    std::fs::copy(&paths[1], &renamed).unwrap();
    refused(&renamed, &renamed, "open the first, the one with 0 as `split.no`");
    // A folder with two models has no file of its own.
    assert_eq!(Gguf::in_path(folder.path()), None);
}

#[test]
fn a_part_that_is_missing_or_has_another_name_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Pieces::of(&golden("llama")).split(folder.path(), 3);
    let renamed = folder.path().join("tiny.gguf");
    std::fs::copy(&paths[0], &renamed).unwrap();
    refused(&renamed, &renamed, "its own must end with `-00001-of-00003.gguf`");
    let renamed = folder.path().join("tiny-00001-of-00004.gguf");
    std::fs::copy(&paths[0], &renamed).unwrap();
    refused(&renamed, &renamed, "its own must end with `-00001-of-00003.gguf`");
    std::fs::remove_file(&paths[2]).unwrap();
    refused(&paths[0], &paths[2], "it is part 3 of 3, and is not there");
    assert!(matches!(Checkpoint::open(&paths[0]), Err(WeightError::File { path, .. }) if path == paths[2]));
    std::fs::write(&paths[2], b"GGML").unwrap();
    refused(&paths[0], &paths[2], "does not begin with `GGUF`");
    std::fs::remove_file(&paths[0]).unwrap();
    std::fs::remove_file(folder.path().join("tiny.gguf")).unwrap();
    std::fs::remove_file(folder.path().join("tiny-00001-of-00004.gguf")).unwrap();
    // The others of a folder lead to the first.
    assert!(matches!(Checkpoint::open(folder.path()), Err(WeightError::File { path, .. }) if path == paths[0]));
}

#[test]
fn a_part_of_another_model_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let llama = Pieces::of(&golden("llama"));
    let paths = llama.split(folder.path(), 3);
    let (all, middle) = (llama.tensors.len(), 3usize.midpoint(llama.tensors.len()));
    let write = |range: std::ops::Range<usize>, keys: &[(&str, u32)]| llama.write(&paths[1], range, keys, false);
    let other = Pieces::of(&golden("qwen2"));
    other.write(&paths[1], 3..middle, &keys(1, other.tensors.len()), false);
    let expected = "it is a part of another model: `split.tensors.count` is ";
    refused(&paths[0], &paths[1], expected);
    write(3..middle, &[("split.no", 1), ("split.count", 4), ("split.tensors.count", all as u32)]);
    refused(&paths[0], &paths[1], "`split.count` is 4, and 3 in the first part");
    write(3..middle, &[("split.no", 1), ("split.tensors.count", all as u32)]);
    refused(&paths[0], &paths[1], "`split.count` is absent, and 3 in the first part");
    write(3..middle, &[&keys(1, all)[..], &[("llama.block_count", 9)]].concat());
    refused(&paths[0], &paths[1], "`llama.block_count` is 9, and 3 in the first part");
    write(3..middle, &keys(2, all));
    refused(&paths[0], &paths[1], "it has the name of part 2 of 3, but `split.no` is 2, not 1");
    write(3..middle, &[]);
    refused(&paths[0], &paths[1], "`split.no` is absent, not 1");
    write(2..middle, &keys(1, all));
    refused(&paths[0], &paths[1], "is in it and in ");
    write(4..middle, &keys(1, all));
    refused(&paths[0], &paths[0], &format!("its 3 parts have {} tensors, and `split.tensors.count` is {all}", all - 1));
    write(3..middle, &keys(1, all));
    assert!(Gguf::open(&paths[0]).is_ok());
}

#[test]
fn keys_of_parts_have_the_right_type() {
    let folder = tempfile::tempdir().unwrap();
    let llama = Pieces::of(&golden("llama"));
    let all = llama.tensors.len();
    let path = folder.path().join("tiny-00001-of-00003.gguf");
    let write = |keys: &[(&str, u32)]| llama.write(&path, 0..all, keys, true);
    write(&[("split.count", 3), ("split.tensors.count", 7)]);
    refused(&path, &path, "it is one of 3 parts, and has no `split.no`");
    write(&[("split.count", 3), ("split.no", 0)]);
    refused(&path, &path, "it is one of 3 parts, and has no `split.tensors.count`");
    // One part is the whole.
    write(&[("split.count", 1), ("split.no", 0), ("split.tensors.count", all as u32)]);
    assert_eq!(Gguf::open(&path).unwrap().files().len(), 1);
    // The type of the first key, a float.
    write(&[("split.count", 3)]);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(11).position(|window| window == b"split.count").unwrap() + 11;
    bytes[at] = 6;
    std::fs::write(&path, bytes).unwrap();
    refused(&path, &path, "it must be a whole number");
}
