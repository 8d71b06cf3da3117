//! The element types of Burn for those that a configuration names, and what a backend stores.

use burn::tensor::{DType, Element, backend::Backend};
pub use burn_deepspeed_core::data_type::{CacheTypes, DataType, KvCacheType};
pub use burn_deepspeed_core::element::ElementType;

use crate::error::ConfigError;

/// The element type of a tensor of Burn's.
///
/// # Panics
/// For a quantized tensor, which this crate does not take: dequantize it first.
pub fn element_type(dtype: DType) -> ElementType {
    match dtype {
        DType::F64 => ElementType::F64,
        DType::F32 => ElementType::F32,
        DType::Flex32 => ElementType::Flex32,
        DType::F16 => ElementType::F16,
        DType::BF16 => ElementType::BF16,
        DType::I64 => ElementType::I64,
        DType::I32 => ElementType::I32,
        DType::I16 => ElementType::I16,
        DType::I8 => ElementType::I8,
        DType::U64 => ElementType::U64,
        DType::U32 => ElementType::U32,
        DType::U16 => ElementType::U16,
        DType::U8 => ElementType::U8,
        DType::Bool(_) => ElementType::Bool,
        DType::QFloat(scheme) => panic!("element_type: a quantized tensor ({scheme:?}); dequantize it first"),
    }
}

/// Burn's element type of a tensor of this type.
pub fn dtype(data_type: DataType) -> DType {
    match data_type {
        DataType::Fp32 => DType::F32,
        DataType::Fp16 => DType::F16,
        DataType::Bf16 => DType::BF16,
        DataType::Int8 => DType::I8,
    }
}

/// Burn's type of the floats that the CubeCL kernels compute with; `None` for any other type.
#[cfg(feature = "cubecl")]
pub(crate) fn kernel_float(element: ElementType) -> Option<DType> {
    match element {
        ElementType::F32 => Some(DType::F32),
        ElementType::F16 => Some(DType::F16),
        ElementType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// The element type that a configuration means on a backend.
pub trait OfBackend {
    /// Burn's element type of activations, norms, biases and cache on `device`, and of dense matrices.
    ///
    /// - For a float that is its own type.
    /// - For `None` it is the default float of the backend `B`: f32, unless `B` was given another one.
    /// - For int8 it is f32 on a CPU backend; on CubeCL the first of f16, bf16 and f32 that the device has.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedDataType`], with the type to use instead.
    fn of_backend<B: Backend>(self, device: &B::Device) -> Result<DType, ConfigError>;
}

impl OfBackend for DataType {
    fn of_backend<B: Backend>(self, device: &B::Device) -> Result<DType, ConfigError> {
        let candidates: &[DType] = match self {
            Self::Fp32 => &[DType::F32],
            Self::Fp16 => &[DType::F16],
            Self::Bf16 => &[DType::BF16],
            Self::Int8 => {
                require_int8::<B>(device)?;
                match is_cubecl::<B>(device) {
                    true => &[DType::F16, DType::BF16, DType::F32],
                    false => &[DType::F32],
                }
            }
        };
        let dtype = candidates.iter().find(|&&dtype| B::supports_dtype(device, dtype));
        dtype.copied().ok_or_else(|| ConfigError::UnsupportedDataType {
            backend: B::name(device),
            dtype: self,
            remedy: "set `dtype` to fp32 (a checkpoint is converted on load), or use a backend that stores it (`flex` stores fp16 and bf16)",
        })
    }
}

impl OfBackend for Option<DataType> {
    fn of_backend<B: Backend>(self, device: &B::Device) -> Result<DType, ConfigError> {
        match self {
            Some(data_type) => data_type.of_backend::<B>(device),
            None => Ok(<B::FloatElem as Element>::dtype()),
        }
    }
}

/// Burn's element types of keys and of values in a cache, next to activations of `activations`. A CPU backend without f16 and bf16 stores
/// their bits.
///
/// # Errors
/// [`ConfigError::UnsupportedDataType`] if `B` does not store them on `device`.
pub(crate) fn cache_dtypes<B: Backend>(
    types: KvCacheType,
    activations: DType,
    device: &B::Device,
) -> Result<[DType; 2], ConfigError> {
    let side = |given: Option<DataType>| {
        let Some(given) = given else { return Ok(activations) };
        let as_bits = matches!(given, DataType::Fp16 | DataType::Bf16)
            && B::supports_dtype(device, DType::I16)
            && !is_cubecl::<B>(device);
        match as_bits || B::supports_dtype(device, dtype(given)) {
            true => Ok(dtype(given)),
            false => Err(ConfigError::UnsupportedDataType {
                backend: B::name(device),
                dtype: given,
                remedy: "leave it out of `kv_cache_dtype`, and the cache has the type of the activations",
            }),
        }
    };
    Ok([side(types.key)?, side(types.value)?])
}

/// An error where the backend stores no int8.
pub(crate) fn require_int8<B: Backend>(device: &B::Device) -> Result<(), ConfigError> {
    match B::supports_dtype(device, DType::I8) {
        true => Ok(()),
        false => Err(ConfigError::UnsupportedDataType {
            backend: B::name(device),
            dtype: DataType::Int8,
            remedy: "set `dtype` to fp32 or fp16 and keep the weights dense (`enable_qkv_quantization` false, no \
                     `quantize`), or build with the feature `vulkan` in place of `wgpu`, whose shaders have no 8-bit integers",
        }),
    }
}

/// Whether the backend is one of CubeCL's. Burn's trait tells no more than the name: `fusion<cubecl<cuda>>`.
pub(crate) fn is_cubecl<B: Backend>(device: &B::Device) -> bool {
    B::name(device).contains("cubecl<")
}
