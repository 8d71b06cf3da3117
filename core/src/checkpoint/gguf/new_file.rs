//! A file that is written: the inverse of `header` and `directory`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::directory::AXES;
use super::element;
use super::header::{ALIGNMENT, ALIGNMENT_KEY};
use super::metadata::{Metadata, text};
use super::source::LONGEST_HEADER;
use super::split;
use crate::checkpoint::stored::StoredElement;
use crate::checkpoint::tensor::NewTensor;
use crate::error::WeightError;

/// The version of the format.
const VERSION: u32 = 3;

/// The version of the blocks, which a file with blocks states.
const BLOCKS_KEY: &str = "general.quantization_version";
const BLOCKS_VERSION: u32 = 2;

/// Most bytes of the name of a tensor: `ggml` ends it with a zero in 64 bytes.
const NAME: usize = 63;

/// Most bytes of a key.
const KEY: usize = 65535;

/// Alignments that are written.
const ALIGNMENTS: std::ops::RangeInclusive<i64> = 8..=65536;

/// A GGUF file of version 3. The tensors follow each other in the order of their names, each from a multiple of the alignment on.
pub(in crate::checkpoint) struct NewFile<'a> {
    /// Everything before the data.
    header: Vec<u8>,
    alignment: usize,
    tensors: &'a BTreeMap<String, NewTensor>,
}

impl<'a> NewFile<'a> {
    /// Makes the header, and checks everything that it says. `general.alignment` is 32 unless `metadata` has it, and a file with blocks
    /// gets `general.quantization_version`.
    ///
    /// # Errors
    /// [`WeightError::GgufAxes`], [`WeightError::GgufElement`] and [`WeightError::GgufName`] for a tensor; [`WeightError::Metadata`].
    pub(in crate::checkpoint) fn new(
        metadata: &BTreeMap<String, Metadata>,
        tensors: &'a BTreeMap<String, NewTensor>,
    ) -> Result<Self, WeightError> {
        let mut metadata = metadata.clone();
        let alignment = alignment(metadata.entry(ALIGNMENT_KEY.into()).or_insert_with(|| ALIGNMENT.into()))?;
        if tensors.values().any(|tensor| matches!(tensor.element, StoredElement::Blocks(_))) {
            metadata.entry(BLOCKS_KEY.into()).or_insert_with(|| BLOCKS_VERSION.into());
        }
        let mut header = b"GGUF".to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in &metadata {
            check(key, value)?;
            text(&mut header, key);
            value.write(&mut header);
        }
        let mut start = 0u64;
        for (name, tensor) in tensors {
            entry(&mut header, (name, tensor), start)?;
            start += (tensor.bytes.len() as u64).next_multiple_of(alignment as u64);
        }
        if header.len() as u64 > LONGEST_HEADER {
            return Err(WeightError::GgufHeader { bytes: header.len() as u64, limit: LONGEST_HEADER });
        }
        Ok(Self { header, alignment, tensors })
    }

    /// Writes the file, tensor by tensor.
    pub(in crate::checkpoint) fn write(&self, into: &mut impl Write) -> io::Result<()> {
        for bytes in std::iter::once(&self.header).chain(self.tensors.values().map(|tensor| &tensor.bytes)) {
            into.write_all(bytes)?;
            into.write_all(&vec![0; bytes.len().next_multiple_of(self.alignment) - bytes.len()])?;
        }
        Ok(())
    }
}

/// The alignment that a value states.
fn alignment(value: &Metadata) -> Result<usize, WeightError> {
    match value {
        &Metadata::Integer(size) if ALIGNMENTS.contains(&size) && (size as u64).is_power_of_two() => Ok(size as usize),
        other => Err(wrong(
            ALIGNMENT_KEY,
            other,
            "the alignment of tensors is a power of two from 8 to 65536; the default is 32",
        )),
    }
}

/// Checks a key and its value.
fn check(key: &str, value: &Metadata) -> Result<(), WeightError> {
    if key.is_empty() || !key.is_ascii() || key.len() > KEY {
        return Err(wrong(key, value, "a key of GGUF has 1 to 65535 bytes of ASCII"));
    }
    match (key, value) {
        (split::COUNT, value) if !matches!(value, Metadata::Integer(0 | 1)) => {
            Err(wrong(key, value, "all tensors are written into one file; leave out the keys `split.…`"))
        }
        ("general.architecture", value) if !matches!(value, Metadata::Text(_)) => {
            Err(wrong(key, value, "the architecture is a text"))
        }
        _ => Ok(()),
    }
}

fn wrong(key: &str, value: &Metadata, expected: &'static str) -> WeightError {
    WeightError::Metadata { key: key.into(), value: value.to_string(), expected }
}

/// Adds the entry of a tensor whose data begin at byte `start`.
fn entry(header: &mut Vec<u8>, (name, tensor): (&str, &NewTensor), start: u64) -> Result<(), WeightError> {
    let NewTensor { element, shape, .. } = tensor;
    if name.len() > NAME {
        return Err(WeightError::GgufName { name: name.into(), limit: NAME });
    }
    if shape.len() > AXES as usize {
        return Err(WeightError::GgufAxes { name: name.into(), shape: shape.clone(), limit: AXES as usize });
    }
    let number = element::number(*element);
    let number = number.ok_or_else(|| WeightError::GgufElement { name: name.into(), element: element.to_string() })?;
    text(header, name);
    header.extend((shape.len() as u32).to_le_bytes());
    // The contiguous axis comes first.
    shape.iter().rev().for_each(|&size| header.extend((size as u64).to_le_bytes()));
    header.extend(number.to_le_bytes());
    header.extend(start.to_le_bytes());
    Ok(())
}
