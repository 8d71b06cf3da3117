//! Vectors that every rank holds in full: norms, and the bias of the output projection.

use super::files::Checkpoint;
use super::float::Floats;
use super::runs::Run;
use crate::element::ElementType;
use crate::error::WeightError;

/// A vector that every file holds in full. It is read from the first file, and the others must hold the same values.
///
/// # Errors
/// A [`WeightError`] that names the tensor; [`WeightError::Replicas`] if two files differ.
pub fn vector(files: &[Checkpoint], name: &str, size: usize, element: ElementType) -> Result<Floats, WeightError> {
    let (first, others) = files.split_first().ok_or(WeightError::NoFiles)?;
    let vector = first.floats(name, &[size], std::slice::from_ref(&(0..size)), element)?;
    if !others.is_empty() {
        let expected = bits(first, name, size)?;
        for other in others {
            if bits(other, name, size)? != expected {
                let (name, files) = (name.into(), [first, other].map(|file| file.path().to_path_buf()));
                return Err(WeightError::Replicas { name, files });
            }
        }
    }
    Ok(vector)
}

/// The values of a vector in one file, as the bits of f64.
fn bits(file: &Checkpoint, name: &str, size: usize) -> Result<Vec<u64>, WeightError> {
    file.check_shape(name, &[size])?;
    let mut values = vec![0.0f64; size];
    file.read_floats((name, &[size]), ([Run { start: 0, len: size, to: 0 }], 1), &mut values)?;
    file.log_loaded(name);
    Ok(values.into_iter().map(f64::to_bits).collect())
}

/// An error if a file holds this tensor, which the module has no place for: a bias is never dropped.
///
/// # Errors
/// [`WeightError::Unexpected`] with `remedy`.
pub fn refuse(files: &[Checkpoint], name: &str, remedy: &str) -> Result<(), WeightError> {
    match files.iter().find(|file| file.contains(name)) {
        Some(file) => Err(file.in_this(WeightError::Unexpected { name: name.into(), remedy: remedy.into() })),
        None => Ok(()),
    }
}
