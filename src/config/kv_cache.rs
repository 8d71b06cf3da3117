//! Element types of the KV cache.

use burn::tensor::{DType, backend::Backend};
use serde::{Deserialize, Serialize};

use super::{DataType, nearest};
use crate::cache::CacheTypes;
use crate::error::ConfigError;

/// Element types of cached keys and values, chosen apart; `None` is that of the activations.
///
/// ```
/// use burn_deepspeed::{DataType, DeepSpeedInferenceConfig, KvCacheType};
/// use burn_ndarray::NdArray;
///
/// # fn main() -> Result<(), burn_deepspeed::ConfigError> {
/// let config = DeepSpeedInferenceConfig::new(512, 8).with_dtype(DataType::Fp32).with_num_hidden_layers(Some(1));
/// let bytes = |config: &DeepSpeedInferenceConfig| config.cache_memory_bytes::<NdArray>(1, &Default::default());
/// let int8 = config.clone().with_kv_cache_dtype(KvCacheType::INT8);
/// // 64 elements and a scale for each head of each token
/// assert_eq!(bytes(&int8)? as f64 / bytes(&config)? as f64, (64.0 + 4.0) / 256.0);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KvCacheType {
    /// Of the keys.
    pub key: Option<DataType>,
    /// Of the values.
    pub value: Option<DataType>,
}

impl From<DataType> for KvCacheType {
    fn from(both: DataType) -> Self {
        Self { key: Some(both), value: Some(both) }
    }
}

impl KvCacheType {
    /// Both in int8, with a scale for each head of each token.
    pub const INT8: Self = Self { key: Some(DataType::Int8), value: Some(DataType::Int8) };

    /// Burn's element types beside activations of `activations`.
    pub(crate) fn types(self, activations: DType) -> CacheTypes {
        let side = |dtype: Option<DataType>| match dtype {
            None => activations,
            Some(DataType::Fp32) => DType::F32,
            Some(DataType::Fp16) => DType::F16,
            Some(DataType::Bf16) => DType::BF16,
            Some(DataType::Int8) => DType::I8,
        };
        CacheTypes { key: side(self.key), value: side(self.value) }
    }

    /// The same, if `B` stores them on `device`.
    pub(crate) fn of_backend<B: Backend>(
        self,
        activations: DType,
        device: &B::Device,
    ) -> Result<CacheTypes, ConfigError> {
        let types = self.types(activations);
        for (given, dtype) in [(self.key, types.key), (self.value, types.value)] {
            if let Some(given) = given.filter(|_| !B::supports_dtype(device, dtype)) {
                let remedy = "leave it out of `kv_cache_dtype`, and the cache has the type of the activations";
                return Err(ConfigError::UnsupportedDataType { backend: B::name(device), dtype: given, remedy });
            }
        }
        Ok(types)
    }

    /// One name for both, or an object with one for each, in our spelling.
    pub(super) fn spelled(value: &serde_json::Value) -> Result<serde_json::Value, ConfigError> {
        use serde_json::Value;
        let side = |value: &Value| match value {
            Value::Null => Ok(Value::Null),
            Value::String(name) => Ok(DataType::parse(name)?.to_string().into()),
            _ => Err(ConfigError::Json("`kv_cache_dtype` must be a string, such as \"int8\"".into())),
        };
        let known = ["key".to_owned(), "value".to_owned()];
        let mut sides = serde_json::Map::new();
        match value {
            Value::Object(given) => {
                for (key, value) in given {
                    if !known.contains(key) {
                        let nearest = nearest(key, known.iter());
                        return Err(ConfigError::UnknownKey { key: format!("kv_cache_dtype.{key}"), nearest });
                    }
                    sides.insert(key.clone(), side(value)?);
                }
            }
            both => sides.extend(known.into_iter().zip([side(both)?, side(both)?])),
        }
        Ok(Value::Object(sides))
    }
}
