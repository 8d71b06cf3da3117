//! The order of rows in a file.

use crate::checkpoint::runs::Run;

/// The order of the rows of a tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) enum RowOrder {
    /// That of the family.
    AsStored,
    /// In heads of this many rows, the two rows that rotate together follow each other. In the family one is in the first half of the
    /// head and the other in the second.
    Pairs(usize),
}

/// The runs of a tensor in [`RowOrder::Pairs`], ascending in the file, for those of the tensor in the order of the family. Elements of a
/// run are `stride` apart in the destination. A head has `head` rows of `width` elements.
pub(in crate::checkpoint) fn paired(
    runs: impl IntoIterator<Item = Run>,
    [head, width]: [usize; 2],
    stride: usize,
) -> Vec<Run> {
    let mut rows = Vec::new();
    for run in runs {
        let mut done = 0;
        while done < run.len {
            let start = run.start + done;
            let (row, column) = (start / width, start % width);
            let len = (width - column).min(run.len - done);
            let (first, feature) = (row / head * head, row % head);
            let stored = first + feature % (head / 2) * 2 + feature / (head / 2);
            rows.push(Run { start: stored * width + column, len, to: run.to + done * stride });
            done += len;
        }
    }
    rows.sort_unstable_by_key(|run| run.start);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_pairs_are_put_back() {
        // Two heads of 6 rows and 3 columns: rows 0 and 3 of a head are 0 and 1 in the file.
        let all = Run { start: 0, len: 36, to: 0 };
        let rows: Vec<_> = paired([all], [6, 3], 1).iter().map(|run| (run.start / 3, run.to / 3)).collect();
        assert_eq!(rows[..6], [(0, 0), (1, 3), (2, 1), (3, 4), (4, 2), (5, 5)]);
        assert_eq!(rows[6..], [(6, 6), (7, 9), (8, 7), (9, 10), (10, 8), (11, 11)]);
        // Two columns of row 7, which is row 8 of the file, 5 apart in the destination.
        let two = Run { start: 7 * 3 + 1, len: 2, to: 40 };
        assert_eq!(paired([two], [6, 3], 5), [Run { start: 8 * 3 + 1, len: 2, to: 40 }]);
    }
}
