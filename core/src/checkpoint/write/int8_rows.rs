//! Int8 matrices that are written as one.

use crate::checkpoint::int8::{BlockedInt8, Groups};
use crate::checkpoint::names::ScaleNames;
use crate::divisor::gcd;
use crate::error::WeightError;
use crate::layout::Orientation;

/// Int8 matrices in memory, and the order of their outputs.
pub(super) struct Rows<'a> {
    matrices: &'a [BlockedInt8],
    /// Matrix and output.
    rows: Vec<(usize, usize)>,
    inputs: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(matrices: &'a [BlockedInt8], order: &[usize]) -> Self {
        let outputs = |(index, matrix): (usize, &BlockedInt8)| (0..matrix.shape[0]).map(move |row| (index, row));
        let all: Vec<(usize, usize)> = matrices.iter().enumerate().flat_map(outputs).collect();
        Self { matrices, rows: order.iter().map(|&row| all[row]).collect(), inputs: matrices[0].shape[1] }
    }

    /// The bytes of a matrix that is stored as `orientation` says, and its shape.
    pub(super) fn elements(&self, orientation: Orientation) -> (Vec<u8>, [usize; 2]) {
        let (outputs, inputs) = (self.rows.len(), self.inputs);
        let mut bytes = Vec::with_capacity(outputs * inputs);
        let row = |&(index, row): &(usize, usize)| &self.matrices[index].elements[row * inputs..][..inputs];
        match orientation {
            Orientation::OutputInput => {
                for place in &self.rows {
                    bytes.extend(row(place).iter().map(|&element| element as u8));
                }
            }
            Orientation::InputOutput => {
                for input in 0..inputs {
                    bytes.extend(self.rows.iter().map(|place| row(place)[input] as u8));
                }
            }
        }
        (bytes, orientation.shape(inputs, outputs))
    }

    /// The scales in DeepSpeed's order: one for each block where whole outputs share one, and otherwise for blocks of one output
    /// that divide the inputs.
    pub(super) fn scales(&self, name: &str, names: &ScaleNames) -> Result<Vec<f32>, WeightError> {
        let (outputs, inputs) = (self.rows.len(), self.inputs);
        let parts = Groups::parts(name, inputs, names.merge_count)?;
        let narrow = self.matrices.iter().map(|matrix| matrix.blocks[1]).filter(|&wide| wide < inputs);
        let wide = narrow.fold(inputs / parts, gcd);
        let block = |&(index, row): &(usize, usize)| (index, row / self.matrices[index].blocks[0]);
        let tall = match wide == inputs / parts {
            true => (1..outputs).filter(|&at| block(&self.rows[at]) != block(&self.rows[at - 1])).fold(outputs, gcd),
            false => 1,
        };
        let mut scales = vec![0.0; (outputs / tall.max(1)) * (inputs / wide)];
        let groups = Groups::new(name, [outputs, inputs], names, scales.len())?;
        for (output, &(index, row)) in self.rows.iter().enumerate().step_by(tall.max(1)) {
            let BlockedInt8 { scales: all, blocks: [own_tall, own_wide], .. } = &self.matrices[index];
            let own = &all[row / own_tall * inputs.div_ceil(*own_wide)..];
            for input in (0..inputs).step_by(wide) {
                scales[groups.scale_of(output, input)] = own[input / own_wide];
            }
        }
        Ok(scales)
    }
}
