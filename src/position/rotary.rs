//! Rotary position embedding (RoPE), <https://arxiv.org/abs/2104.09864>, on tensors.

pub use burn_deepspeed_core::position::rotary::{CosinesAndSines, RopeScaling, Rotary, RotaryLayout};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::position::Positions;

/// Cosine and sine of a step, in f32; both are `[B, 1, T, rotary_dim / 2]`, or `[1, 1, T, rotary_dim / 2]` for rows at the same positions.
#[derive(Debug, Clone)]
pub struct RotaryTable<B: Backend> {
    layout: RotaryLayout,
    /// Cosines, times the amplitude of the scaling family.
    pub cos: Tensor<B, 4>,
    /// Sines, times the same.
    pub sin: Tensor<B, 4>,
}

impl<B: Backend> RotaryTable<B> {
    /// Cosine and sine for every new token of a step, computed on the host and put on the device.
    pub fn new(rotary: &Rotary, positions: &Positions, device: &B::Device) -> Self {
        let CosinesAndSines { shape: [batch, tokens, pairs], cosines, sines, .. } = rotary.cosines_and_sines(positions);
        let shape = [batch, 1, tokens, pairs];
        let tensor = |values: Vec<f32>| Tensor::from_data(TensorData::new(values, shape), (device, DType::F32));
        Self { layout: rotary.layout, cos: tensor(cosines), sin: tensor(sines) }
    }

    /// Which features of a head form a pair.
    pub fn layout(&self) -> RotaryLayout {
        self.layout
    }

    /// The part of these tokens.
    ///
    /// # Panics
    /// If the table has fewer tokens.
    pub fn narrow(&self, start: usize, tokens: usize) -> Self {
        let part = |table: &Tensor<B, 4>| table.clone().narrow(2, start, tokens);
        Self { layout: self.layout, cos: part(&self.cos), sin: part(&self.sin) }
    }

    /// The same for `batch` rows, which share one row of the table.
    #[cfg(feature = "cpu")]
    pub(crate) fn of_rows(&self, batch: usize) -> Self {
        let [_, one, tokens, half] = self.cos.dims();
        let rows = |table: &Tensor<B, 4>| table.clone().expand([batch, one, tokens, half]);
        Self { layout: self.layout, cos: rows(&self.cos), sin: rows(&self.sin) }
    }

    /// Rotates the first `rotary_dim` features of every head.
    ///
    /// # Shapes
    /// - heads, output: `[B, N, T, H]`, the output in f32
    pub fn apply(&self, heads: Tensor<B, 4>) -> Tensor<B, 4> {
        let heads = heads.cast(DType::F32);
        let [batch, count, tokens, head_dim] = heads.dims();
        let half = self.cos.dims()[3];
        let dim = 2 * half;
        let rotating = heads.clone().slice([0..batch, 0..count, 0..tokens, 0..dim]);
        let full = [batch, count, tokens, half];
        let (cos, sin) = (self.cos.clone().expand(full), self.sin.clone().expand(full));
        let pair = |parts: [Tensor<B, 4>; 2]| {
            let [a, b] = parts;
            [a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos.clone() + a * sin.clone()]
        };
        let rotated = match self.layout {
            RotaryLayout::Half => {
                let a = rotating.clone().slice([0..batch, 0..count, 0..tokens, 0..half]);
                let b = rotating.slice([0..batch, 0..count, 0..tokens, half..dim]);
                Tensor::cat(pair([a, b]).into(), 3)
            }
            RotaryLayout::Interleaved => {
                let pairs: Tensor<B, 5> = rotating.reshape([batch, count, tokens, half, 2]);
                let side = |at: usize| {
                    let side = pairs.clone().slice([0..batch, 0..count, 0..tokens, 0..half, at..at + 1]);
                    side.reshape(full)
                };
                Tensor::stack::<5>(pair([side(0), side(1)]).into(), 4).reshape([batch, count, tokens, dim])
            }
        };
        if dim == head_dim {
            return rotated;
        }
        let copied = heads.slice([0..batch, 0..count, 0..tokens, dim..head_dim]);
        Tensor::cat(vec![rotated, copied], 3)
    }
}
