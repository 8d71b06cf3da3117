//! The contract between a caller and a launcher. Only [`Checked`] tensors reach a kernel.

use std::ops::Deref;

use burn_deepspeed_core::error::check_shape;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::machine::Unsupported;
use crate::contract::{check_broadcast, extent};

/// The checks of one launch. A wrong shape panics; a layout or type that the kernel does not take is [`Unsupported`].
pub(crate) struct Contract<'c, R: Runtime> {
    operation: &'static str,
    client: &'c ComputeClient<R>,
}

/// A tensor of the shape that its launch expects. The elements that its strides reach are within its buffer and can be addressed
/// with 32-bit indices.
#[derive(Debug)]
pub(crate) struct Checked<'a, R: Runtime>(&'a TensorHandle<R>);

impl<R: Runtime> Clone for Checked<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: Runtime> Copy for Checked<'_, R> {}

impl<R: Runtime> Deref for Checked<'_, R> {
    type Target = TensorHandle<R>;

    fn deref(&self) -> &TensorHandle<R> {
        self.0
    }
}

impl<'c, R: Runtime> Contract<'c, R> {
    /// The checks of an operation, which panics name, on a device.
    pub fn new(operation: &'static str, client: &'c ComputeClient<R>) -> Self {
        Self { operation, client }
    }

    /// The axes of a tensor. Panics unless there are `D` of them.
    #[track_caller]
    pub fn axes<const D: usize>(&self, name: &str, tensor: &TensorHandle<R>) -> [usize; D] {
        let shape: &[usize] = tensor.shape();
        shape
            .try_into()
            .unwrap_or_else(|_| panic!("{}: `{name}` has shape {shape:?}, expected {D} axes", self.operation))
    }

    /// A tensor of exactly this shape, with any strides.
    #[track_caller]
    pub fn exact<'a>(
        &self,
        name: &'static str,
        tensor: &'a TensorHandle<R>,
        shape: &[usize],
    ) -> Result<Checked<'a, R>, Unsupported> {
        check_shape(self.operation, name, shape, tensor.shape());
        self.reachable(name, tensor)
    }

    /// A tensor of exactly this shape whose last axis is contiguous.
    #[track_caller]
    pub fn rows<'a>(
        &self,
        name: &'static str,
        tensor: &'a TensorHandle<R>,
        shape: &[usize],
    ) -> Result<Checked<'a, R>, Unsupported> {
        let checked = self.exact(name, tensor, shape)?;
        match (tensor.shape().last(), tensor.strides().last()) {
            (Some(size), Some(stride)) if *size > 1 && *stride != 1 => {
                Err(Unsupported::Stride { tensor: name, stride: *stride })
            }
            _ => Ok(checked),
        }
    }

    /// A tensor of this shape, or of 1 in place of any axis, with any strides. It may be longer along the last axis.
    #[track_caller]
    pub fn broadcast<'a>(
        &self,
        name: &'static str,
        tensor: &'a TensorHandle<R>,
        shape: &[usize],
    ) -> Result<Checked<'a, R>, Unsupported> {
        check_broadcast(self.operation, name, shape, tensor.shape());
        self.reachable(name, tensor)
    }

    /// Panics with the name of the operation unless an argument fits.
    #[track_caller]
    pub fn require(&self, fits: bool, what: impl FnOnce() -> String) {
        assert!(fits, "{}: {}", self.operation, what());
    }

    /// Checks that the device computes with these element types.
    pub fn supports(&self, types: &[StorageType]) -> Result<(), Unsupported> {
        let missing = types.iter().find(|elements| !self.client.properties().supports_type(**elements));
        missing.map_or(Ok(()), |elements| Err(Unsupported::ElementType(*elements)))
    }

    /// Checks where the elements of a tensor are.
    #[track_caller]
    fn reachable<'a>(&self, name: &'static str, tensor: &'a TensorHandle<R>) -> Result<Checked<'a, R>, Unsupported> {
        let (shape, strides): (&[usize], &[usize]) = (tensor.shape(), tensor.strides());
        self.require(shape.len() == strides.len(), || format!("`{name}` has shape {shape:?} and strides {strides:?}"));
        let elements = extent(shape, strides);
        if elements > u32::MAX as usize {
            return Err(Unsupported::TooLarge { elements });
        }
        let (needed, held) = ((elements * tensor.dtype.size()) as u64, tensor.handle.size_in_used());
        self.require(needed <= held, || {
            format!(
                "`{name}` has shape {shape:?} and strides {strides:?}, which need {needed} bytes, in a buffer of {held}"
            )
        });
        Ok(Checked(tensor))
    }
}

/// Checks that a tensor has the element type of those that it goes with.
pub(crate) fn same_type<R: Runtime>(
    name: &'static str,
    tensor: &TensorHandle<R>,
    expected: StorageType,
) -> Result<(), Unsupported> {
    match tensor.dtype == expected {
        true => Ok(()),
        false => Err(Unsupported::MixedTypes { tensor: name, given: tensor.dtype, expected }),
    }
}

/// Checks that elements are integers of 4 bytes, signed or unsigned.
pub(crate) fn whole_numbers<R: Runtime>(name: &'static str, tensor: &TensorHandle<R>) -> Result<(), Unsupported> {
    let signed = i32::as_type_native_unchecked().storage_type();
    if tensor.dtype == signed {
        Ok(())
    } else {
        same_type(name, tensor, u32::as_type_native_unchecked().storage_type())
    }
}

/// `f32` as an element type.
pub(crate) fn f32_type() -> StorageType {
    f32::as_type_native_unchecked().storage_type()
}

/// `i8` as an element type.
pub(crate) fn i8_type() -> StorageType {
    i8::as_type_native_unchecked().storage_type()
}
