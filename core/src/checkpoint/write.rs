//! Writes tensors into a safetensors file, int8 matrices as int8.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::int8::{BlockedInt8, Groups};
use super::names::ScaleNames;
use crate::divisor::gcd;
use crate::element::ElementType;
use crate::error::WeightError;
use crate::layout::Orientation;

/// A safetensors file that is being written. A name that is written again is replaced.
#[derive(Debug, Clone, Default)]
pub struct CheckpointWriter {
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug, Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl CheckpointWriter {
    /// Adds a tensor with these elements, row by row, in little-endian bytes.
    pub fn insert(&mut self, name: &str, element: ElementType, shape: Vec<usize>, bytes: Vec<u8>) {
        self.tensors.insert(name.into(), Stored { dtype: stored_type(element), shape, bytes });
    }

    /// Adds an int8 matrix, stored as `orientation` says, and its scales in DeepSpeed's order. Its outputs are those of
    /// `matrices`, counted through all of them, in this order.
    ///
    /// # Errors
    /// [`WeightError::MergeCount`].
    ///
    /// # Panics
    /// If there is no matrix, or if `order` names an output that is not there.
    pub fn int8(
        &mut self,
        name: &str,
        names: &ScaleNames,
        orientation: Orientation,
        (matrices, order): (&[BlockedInt8], &[usize]),
    ) -> Result<(), WeightError> {
        let rows = Rows::new(matrices, order);
        let scales = rows.scales(name, names)?;
        let (elements, shape) = rows.elements(orientation);
        self.insert(name, ElementType::I8, shape.to_vec(), elements);
        let shape = vec![scales.len()];
        self.insert(&names.tensor, ElementType::F32, shape, scales.into_iter().flat_map(f32::to_le_bytes).collect());
        Ok(())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`WeightError::Write`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), WeightError> {
        let path = path.as_ref();
        let failed =
            |cause: safetensors::SafeTensorError| WeightError::Write { path: path.into(), cause: cause.to_string() };
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, Stored { dtype, shape, bytes }) in &self.tensors {
            views.push((name, TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?));
        }
        safetensors::serialize_to_file(views, None, path).map_err(failed)
    }
}

fn stored_type(element: ElementType) -> Dtype {
    match element {
        ElementType::F64 => Dtype::F64,
        ElementType::F32 | ElementType::Flex32 => Dtype::F32,
        ElementType::F16 => Dtype::F16,
        ElementType::BF16 => Dtype::BF16,
        ElementType::I64 => Dtype::I64,
        ElementType::I32 => Dtype::I32,
        ElementType::I16 => Dtype::I16,
        ElementType::I8 => Dtype::I8,
        ElementType::U64 => Dtype::U64,
        ElementType::U32 => Dtype::U32,
        ElementType::U16 => Dtype::U16,
        ElementType::U8 => Dtype::U8,
        ElementType::Bool => Dtype::BOOL,
    }
}

/// Int8 matrices in memory, and the order of their outputs.
struct Rows<'a> {
    matrices: &'a [BlockedInt8],
    /// Matrix and output.
    rows: Vec<(usize, usize)>,
    inputs: usize,
}

impl<'a> Rows<'a> {
    fn new(matrices: &'a [BlockedInt8], order: &[usize]) -> Self {
        let outputs = |(index, matrix): (usize, &BlockedInt8)| (0..matrix.shape[0]).map(move |row| (index, row));
        let all: Vec<(usize, usize)> = matrices.iter().enumerate().flat_map(outputs).collect();
        Self { matrices, rows: order.iter().map(|&row| all[row]).collect(), inputs: matrices[0].shape[1] }
    }

    /// The bytes of a matrix that is stored as `orientation` says, and its shape.
    fn elements(&self, orientation: Orientation) -> (Vec<u8>, [usize; 2]) {
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
    fn scales(&self, name: &str, names: &ScaleNames) -> Result<Vec<f32>, WeightError> {
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
