//! What every layer of a step needs on the device.

#[cfg(feature = "cubecl")]
use burn::tensor::{DType, Int, TensorData};
use burn::tensor::{Tensor, backend::Backend};

use crate::position::factor::on_device;
use crate::position::rotary::{Rotary, RotaryTable};
use crate::position::{Positions, QueryFactor};

/// What every layer of a step needs on the device, copied there once per step.
#[derive(Debug)]
pub(super) struct StepTables<B: Backend> {
    rotary: Vec<(Rotary, RotaryTable<B>)>,
    factors: Vec<(QueryFactor, Tensor<B, 2>)>,
    #[cfg(feature = "cubecl")]
    pub(super) bounds: Option<Tensor<B, 2, Int>>,
    #[cfg(feature = "cubecl")]
    pub(super) slopes: Option<(Vec<f32>, Tensor<B, 1>)>,
}

impl<B: Backend> Default for StepTables<B> {
    fn default() -> Self {
        Self {
            rotary: Vec::new(),
            factors: Vec::new(),
            #[cfg(feature = "cubecl")]
            bounds: None,
            #[cfg(feature = "cubecl")]
            slopes: None,
        }
    }
}

impl<B: Backend> StepTables<B> {
    pub(super) fn rotary(&mut self, rotary: &Rotary, positions: &Positions, device: &B::Device) -> RotaryTable<B> {
        if let Some((_, table)) = self.rotary.iter().find(|(known, _)| known == rotary) {
            return table.clone();
        }
        let table = RotaryTable::new(rotary, positions, device);
        self.rotary.push((rotary.clone(), table.clone()));
        table
    }

    pub(super) fn factors(&mut self, factor: QueryFactor, positions: &Positions, device: &B::Device) -> Tensor<B, 2> {
        if let Some((_, factors)) = self.factors.iter().find(|(known, _)| *known == factor) {
            return factors.clone();
        }
        let factors = on_device(factor, positions, device);
        self.factors.push((factor, factors.clone()));
        factors
    }
}

/// First new slot and end of each row as a tensor, `[B, 2]` of i32.
#[cfg(feature = "cubecl")]
pub(crate) fn bounds_on_device<B: Backend>(starts: &[usize], ends: &[usize], device: &B::Device) -> Tensor<B, 2, Int> {
    let pairs = starts.iter().zip(ends).flat_map(|(&start, &end)| [start as i32, end as i32]);
    let data = TensorData::new(pairs.collect::<Vec<_>>(), [starts.len(), 2]);
    Tensor::from_data(data, (device, DType::I32))
}
