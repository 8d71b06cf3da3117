//! The learned bias of each head for the distance between a query and a key.

use burn::module::{Module, Param};
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData, backend::Backend};

use super::param::{INITIAL_DEVIATION, given, lazy};
use crate::error::check_shape;
use crate::position::RelativeBuckets;

/// T5's relative positions: a learned bias of each head for each [bucket](RelativeBuckets) of distances. The layers of a stack share it, so
/// compute it once for a step and add it to every mask.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_deepspeed::AttentionMask;
/// use burn_deepspeed::position::RelativeBuckets;
/// use burn_deepspeed::weight::RelativeBias;
/// use burn_ndarray::NdArray;
///
/// # fn main() -> Result<(), burn_deepspeed::ConfigError> {
/// let buckets = RelativeBuckets::new(4, 8, false)?;
/// let table = Tensor::<NdArray, 2>::from_data([[0.0], [0.1], [0.2], [0.3]], &Default::default()); // one head
/// let bias = RelativeBias::new(table, buckets).bias(&[2], 1, 3); // the third token, and the keys up to it
/// bias.to_data().assert_eq(&[[[[0.2f32, 0.1, 0.0]]]].into(), true);
/// let mask = AttentionMask::none().with_bias(bias);
/// # let _ = mask;
/// # Ok(()) }
/// ```
#[derive(Module, Debug)]
pub struct RelativeBias<B: Backend> {
    table: Param<Tensor<B, 2>>,
    #[module(skip)]
    buckets: RelativeBuckets,
}

impl<B: Backend> RelativeBias<B> {
    /// A fresh table for this number of heads, normally distributed.
    pub fn init(buckets: RelativeBuckets, heads: usize, dtype: DType, device: &B::Device) -> Self {
        let shape = [buckets.count(), heads];
        let normal = Distribution::Normal(0.0, INITIAL_DEVIATION);
        let draw = move |device: &B::Device| Tensor::random(shape, normal, (device, DType::F32));
        Self { table: lazy(shape, dtype, device, draw), buckets }
    }

    /// The bias with this table.
    ///
    /// # Shapes
    /// - table: `[buckets, N]`
    ///
    /// # Panics
    /// If the table has another number of rows.
    pub fn new(table: Tensor<B, 2>, buckets: RelativeBuckets) -> Self {
        let [_, heads] = table.dims();
        check_shape("RelativeBias::new", "table", &[buckets.count(), heads], &table.dims());
        Self { table: given(table), buckets }
    }

    /// The table, `[buckets, N]`.
    pub fn table(&self) -> Tensor<B, 2> {
        self.table.val()
    }

    /// How distances are counted.
    pub fn buckets(&self) -> RelativeBuckets {
        self.buckets
    }

    /// The bias of `queries` queries for the first `keys` keys, where the first query of row `b` is in slot `starts[b]`.
    ///
    /// # Shapes
    /// - starts: one for each row, or one for all
    /// - output: `[1, N, T, S]` if all starts are the same, else `[B, N, T, S]`
    pub fn bias(&self, starts: &[usize], queries: usize, keys: usize) -> Tensor<B, 4> {
        let table = self.table.val();
        let [_, heads] = table.dims();
        let starts =
            if starts.windows(2).all(|pair| pair[0] == pair[1]) { &starts[..starts.len().min(1)] } else { starts };
        let rows = starts.len();
        if rows * queries * keys == 0 {
            return Tensor::empty([rows, heads, queries, keys], (&table.device(), table.dtype()));
        }
        let slots = starts.iter().flat_map(|&start| start..start + queries);
        let bucket = |slot: usize, key: usize| self.buckets.of(key as isize - slot as isize) as i64;
        let buckets: Vec<i64> = slots.flat_map(|slot| (0..keys).map(move |key| bucket(slot, key))).collect();
        let data = TensorData::new(buckets, [rows * queries * keys]);
        let index = Tensor::<B, 1, Int>::from_data(data, &table.device());
        table.select(0, index).reshape([rows, queries, keys, heads]).permute([0, 3, 1, 2])
    }
}
