//! A range of slots.

/// The slots from `start` up to `end`, which is excluded; none if `end` is not above `start`. `std`'s range is not `Copy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interval {
    pub start: usize,
    pub end: usize,
}

impl Interval {
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    pub fn len(self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// The intersection.
    pub fn and(self, other: Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    /// The smallest interval that contains all of these; empty if there are none.
    pub fn around(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self { start: usize::MAX, end: 0 }, |around, one| Self {
            start: around.start.min(one.start),
            end: around.end.max(one.end),
        })
    }

    pub fn slots(self) -> std::ops::Range<usize> {
        self.start..self.end
    }
}
