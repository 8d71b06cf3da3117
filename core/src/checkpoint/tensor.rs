//! A tensor in memory, as a file is to store it.

use super::stored::StoredElement;
use crate::error::WeightError;

/// A tensor that is written: elements or blocks in little-endian bytes, row by row.
#[derive(Debug, Clone)]
pub(super) struct NewTensor {
    pub(super) element: StoredElement,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

impl NewTensor {
    /// An error unless the bytes are those of the shape.
    pub(super) fn check(&self, name: &str) -> Result<(), WeightError> {
        let Self { element, shape, bytes } = self;
        let (elements, size) = element.unit();
        let rows = shape.last().copied().unwrap_or(1).is_multiple_of(elements);
        let all = shape.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
        let expected = all.filter(|_| rows).and_then(|all| (all / elements).checked_mul(size));
        match expected == Some(bytes.len()) {
            true => Ok(()),
            false => {
                let (name, shape, element) = (name.into(), shape.clone(), element.to_string());
                Err(WeightError::ByteCount { name, shape, element, bytes: bytes.len() })
            }
        }
    }
}
