//! The element types that a case runs in, and the error that they allow.

use std::collections::BTreeMap;

use burn::tensor::DType;
use burn_deepspeed::{DataType, KvCacheType};

/// Error that int8 weights may add to that of f32, on outputs of magnitude 1 to 5, unless the case gives a tolerance for int8.
const INT8_WEIGHTS: f64 = 0.2;

/// The same for an int8 cache.
const INT8_CACHE: f64 = 0.15;

/// The element types that a case runs in.
#[derive(Debug, Clone, Copy)]
pub struct Types {
    /// Element type of weights and activations.
    pub dtype: DataType,
    /// Element types of the cache.
    pub cache: KvCacheType,
}

impl From<DataType> for Types {
    fn from(dtype: DataType) -> Self {
        Self { dtype, cache: KvCacheType::default() }
    }
}

impl Types {
    /// The largest error allowed, with activations of this type.
    pub fn tolerance(self, given: &BTreeMap<String, f64>, activations: DType) -> Option<f64> {
        let weights = self.dtype == DataType::Int8;
        let cache = [self.cache.key, self.cache.value].contains(&Some(DataType::Int8));
        let added = if weights { INT8_WEIGHTS } else { 0.0 } + if cache { INT8_CACHE } else { 0.0 };
        let activations = match activations {
            DType::F16 => DataType::Fp16,
            DType::BF16 => DataType::Bf16,
            _ => DataType::Fp32,
        };
        let own = given.get("int8").filter(|_| weights || cache).copied();
        // Floats of the cache may be of another type than activations, and round more.
        let floats = [Some(activations), self.cache.key, self.cache.value].into_iter().flatten();
        let mut floats = floats.filter(|dtype| *dtype != DataType::Int8);
        let dense = floats.try_fold(0.0f64, |most, dtype| given.get(&dtype.to_string()).map(|own| most.max(*own)));
        own.or_else(|| dense.map(|dense| dense + added))
    }
}
