//! Checks of arguments. Arguments that do not fit together are a programming error: every kernel panics with the same message,
//! on slices and on device buffers, before it does any work.

/// Panics unless each axis of a tensor has the expected size, or 1. The last axis, the keys, may be longer than expected.
#[track_caller]
pub(crate) fn check_broadcast(operation: &str, tensor: &str, expected: &[usize], actual: &[usize]) {
    let last = expected.len() - 1;
    let fits = |(axis, (expected, actual)): (usize, (&usize, &usize))| {
        *actual == 1 || actual == expected || axis == last && actual > expected
    };
    assert!(
        expected.len() == actual.len() && expected.iter().zip(actual).enumerate().all(fits),
        "{operation}: `{tensor}` has shape {actual:?}, expected {expected:?} or 1 in place of any of them; the last may be longer"
    );
}

/// Panics unless a slice has the expected number of elements.
#[track_caller]
pub(crate) fn check_len(operation: &str, slice: &str, actual: usize, expected: usize) {
    assert!(actual == expected, "{operation}: `{slice}` has {actual} elements, expected {expected}");
}

/// The product of sizes; on overflow `usize::MAX`, which is the length of no slice.
pub(crate) fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |product, size| product.saturating_mul(*size))
}

/// The number of elements that a tensor spans, from its first to its last; 0 if an axis is empty, `usize::MAX` on overflow.
pub(crate) fn extent(shape: &[usize], strides: &[usize]) -> usize {
    if shape.contains(&0) {
        return 0;
    }
    let last = shape
        .iter()
        .zip(strides)
        .fold(0usize, |last, (size, stride)| last.saturating_add((size - 1).saturating_mul(*stride)));
    last.saturating_add(1)
}
