//! Panics about shapes.

/// Panics on a wrong shape, naming the operation, the tensor, and the expected and actual shapes.
#[track_caller]
pub fn check_shape(operation: &str, tensor: &str, expected: &[usize], actual: &[usize]) {
    assert!(expected == actual, "{operation}: `{tensor}` has shape {actual:?}, expected {expected:?}");
}

/// [`check_shape`], but a 1 in `actual` matches any size (broadcasting).
#[track_caller]
pub fn check_broadcast(operation: &str, tensor: &str, expected: &[usize], actual: &[usize]) {
    let fits = expected.len() == actual.len() && expected.iter().zip(actual).all(|(e, a)| e == a || *a == 1);
    assert!(fits, "{operation}: `{tensor}` has shape {actual:?}, expected {expected:?} or 1 in place of any of them");
}
