//! How the units of a cube exchange the sums of rows.

/// How the units of a cube exchange values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Exchange {
    pub units: u32,
    /// Units of a group: a plane, or a part of the cube that acts as one.
    pub lanes: u32,
    /// Rows of the input.
    pub rows: u32,
    pub planes: bool,
}

impl Exchange {
    /// Groups of a cube.
    pub fn groups(self) -> u32 {
        self.units / self.lanes
    }

    /// Sums of the groups for every row, if they are kept, in whole vectors: a compiler may read four together.
    pub fn partial(self) -> u32 {
        if self.folds() { 0 } else { (self.rows * self.groups()).next_multiple_of(4) }
    }

    /// Whether lanes of a plane divide the rows among them.
    pub fn folds(self) -> bool {
        self.planes && self.rows.next_power_of_two() <= self.lanes
    }

    /// Shared memory of the sums of a cube, in bytes.
    pub fn bytes(self) -> usize {
        (self.units + self.partial()) as usize * size_of::<f32>()
    }
}
