//! Vectors of any float type.

use half::{bf16, f16};

use crate::element::ElementType;

/// A float type that elements of a checkpoint are converted to. Narrowing rounds to nearest; f64 is converted to the half
/// types through f32.
pub trait Float: Copy + Default {
    /// Its element type.
    const ELEMENT: ElementType;

    /// The nearest value.
    fn from_f64(value: f64) -> Self;

    /// The nearest value.
    fn from_f32(value: f32) -> Self;

    /// The nearest value.
    fn from_f16(value: f16) -> Self {
        Self::from_f32(value.to_f32())
    }

    /// The nearest value.
    fn from_bf16(value: bf16) -> Self {
        Self::from_f32(value.to_f32())
    }
}

impl Float for f64 {
    const ELEMENT: ElementType = ElementType::F64;

    fn from_f64(value: f64) -> Self {
        value
    }

    fn from_f32(value: f32) -> Self {
        Self::from(value)
    }
}

impl Float for f32 {
    const ELEMENT: ElementType = ElementType::F32;

    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Float for f16 {
    const ELEMENT: ElementType = ElementType::F16;

    fn from_f64(value: f64) -> Self {
        Self::from_f32(value as f32)
    }

    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn from_f16(value: f16) -> Self {
        value
    }
}

impl Float for bf16 {
    const ELEMENT: ElementType = ElementType::BF16;

    fn from_f64(value: f64) -> Self {
        Self::from_f32(value as f32)
    }

    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn from_bf16(value: bf16) -> Self {
        value
    }
}

/// The elements of a float tensor, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum Floats {
    /// 64-bit floats.
    F64(Vec<f64>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// Brain floats.
    BF16(Vec<bf16>),
}

/// Fills a slice with elements of any float type.
pub(super) trait Fill {
    type Error;

    fn fill<T: Float>(self, into: &mut [T]) -> Result<(), Self::Error>;
}

impl Floats {
    /// `len` elements from `source`, of type `element`, or of f32 if that is not a float type.
    pub(super) fn filled<S: Fill>(source: S, len: usize, element: ElementType) -> Result<Self, S::Error> {
        fn of<T: Float, S: Fill>(source: S, len: usize) -> Result<Vec<T>, S::Error> {
            let mut values = vec![T::default(); len];
            source.fill(&mut values)?;
            Ok(values)
        }
        Ok(match element {
            ElementType::F64 => Self::F64(of(source, len)?),
            ElementType::F16 => Self::F16(of(source, len)?),
            ElementType::BF16 => Self::BF16(of(source, len)?),
            _ => Self::F32(of(source, len)?),
        })
    }
}
