//! The header of a safetensors file.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use super::stored::{Stored, StoredElement};
use crate::error::WeightError;

/// Longest header that is read, in bytes; the limit of the `safetensors` crate.
const LONGEST: u64 = 100_000_000;

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    _metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

/// The tensors of a file, by name.
///
/// No length that the file states is used before it was checked against the length of the file.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Stored>, WeightError> {
    let failed = |cause: &dyn fmt::Display| WeightError::File { path: path.into(), cause: cause.to_string() };
    let mut file = File::open(path).map_err(|cause| failed(&cause))?;
    let length = file.metadata().map_err(|cause| failed(&cause))?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(|cause| failed(&cause))?;
    let (size, start) = (u64::from_le_bytes(size), u64::from_le_bytes(size).saturating_add(8));
    if size > LONGEST || start > length {
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
    let stored = |info: TensorInfo| Stored {
        element: StoredElement::Plain(info.dtype),
        shape: info.shape,
        start: start + info.data_offsets.0 as u64,
    };
    Ok(header.tensors.into_iter().map(|(name, info)| (name, stored(info))).collect())
}
