//! Which elements of a stored tensor are read, and where they go.

use std::ops::Range;

/// Contiguous elements of a stored tensor, and the place of the first in the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First element in the stored tensor.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
    /// Place of the first element in the destination.
    pub to: usize,
}

/// Contiguous rows, columns or features of a stored tensor, and the place of the first in the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First one in the stored tensor.
    pub from: usize,
    /// Number of them.
    pub len: usize,
    /// Place of the first in the destination.
    pub to: usize,
}

impl Segment {
    /// The first `len`, in place.
    pub fn whole(len: usize) -> Self {
        Self { from: 0, len, to: 0 }
    }
}

/// The runs of a block of a tensor of shape `shape`; the destination is the block, row by row.
pub fn of_block(shape: &[usize], ranges: &[Range<usize>]) -> impl Iterator<Item = Run> {
    // Axes after the last one that is cut are whole in every run.
    let cut = (0..shape.len()).rev().find(|&axis| ranges[axis].len() != shape[axis]).unwrap_or(0);
    let whole = (0..1, 1); // a scalar is one run of one element
    let (range, size) = shape.get(cut).map_or(whole, |&size| (ranges[cut].clone(), size));
    let inner: usize = shape.iter().skip(cut + 1).product();
    let (first, len) = (range.start * inner, range.len() * inner);
    let outer = ranges[..cut].iter().map(Range::len).product();
    (0..if len == 0 { 0 } else { outer }).map(move |row| {
        let (mut rest, mut start, mut step) = (row, first, size * inner);
        for axis in (0..cut).rev() {
            start += (ranges[axis].start + rest % ranges[axis].len()) * step;
            rest /= ranges[axis].len();
            step *= shape[axis];
        }
        Run { start, len, to: row * len }
    })
}

/// The runs of some rows and columns of a matrix of `width` columns; both ascend. In the destination, rows and columns are
/// `steps` elements apart.
pub fn of_segments<'a>(
    rows: &'a [Segment],
    columns: &'a [Segment],
    width: usize,
    steps: [usize; 2],
) -> impl Iterator<Item = Run> + 'a {
    let rows = rows.iter().flat_map(|rows| (0..rows.len).map(|at| (rows.from + at, rows.to + at)));
    rows.flat_map(move |(from, to)| {
        columns.iter().map(move |run| Run {
            start: from * width + run.from,
            len: run.len,
            to: to * steps[0] + run.to * steps[1],
        })
    })
}
