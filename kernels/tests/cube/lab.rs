//! Buffers with canaries, and a device that is asked for its errors.

use std::cell::RefCell;

use burn_deepspeed_kernels::cube::{Machine, TensorHandle};
use cubecl::prelude::*;
use half::{bf16, f16};

pub use crate::device::Gpu;
pub type Tensor<R = Gpu> = TensorHandle<R>;

/// Fewest elements after every tensor, which no kernel may write, nor read: an emulated device knows these values (scripts/cuda.py).
const CANARIES: usize = 32;
/// Bytes to a multiple of which CubeCL rounds allocations up on CUDA. Canaries fill them.
const ALLOCATION: usize = 512;
/// A value that no kernel writes.
const CANARY_8: i8 = i8::MIN;
/// NaNs with a payload that no computation produces.
const CANARY_32: u32 = 0x7fc0_beef;
const CANARY_16: u16 = 0x7e77;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    /// Those of the device.
    pub const ALL: &[Self] = crate::device::ELEMENTS;

    pub fn storage(self) -> StorageType {
        match self {
            Self::F32 => f32::as_type_native_unchecked().storage_type(),
            Self::F16 => f16::as_type_native_unchecked().storage_type(),
            Self::Bf16 => bf16::as_type_native_unchecked().storage_type(),
        }
    }

    /// Largest error of results near 1.
    pub fn tolerance(self) -> f64 {
        match self {
            Self::F32 => 2e-5,
            Self::F16 => 4e-3,
            Self::Bf16 => 3e-2,
        }
    }

    /// The value that this type holds of a number.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}

/// Every element type with plane operations, and one without.
pub fn elements_and_planes() -> impl Iterator<Item = (Element, bool)> {
    Element::ALL.iter().map(|element| (*element, true)).chain([(Element::F32, false)])
}

/// Some of these cases and the last one, others on each kind of device; all of them where the variable `KERNEL_TESTS` is `all`. A device on the
/// CPU takes up to seconds to compile the kernel of a case.
pub fn some<T>(cases: impl IntoIterator<Item = T>) -> Vec<T> {
    let cases: Vec<T> = cases.into_iter().collect();
    let (last, all) = (cases.len() - 1, std::env::var("KERNEL_TESTS").is_ok_and(|which| which == "all"));
    let chosen = |at: usize| all || crate::device::runs(at) || at == last;
    cases.into_iter().enumerate().filter(|(at, _)| chosen(*at)).map(|(_, case)| case).collect()
}

pub struct Lab<R: Runtime = Gpu> {
    pub client: ComputeClient<R>,
    pub machine: Machine,
    /// Tensors whose canaries are checked at the next [`read`](Self::read).
    tensors: RefCell<Vec<Tensor<R>>>,
}

/// The device, with plane operations or without.
pub fn lab(planes: bool) -> Lab {
    crate::device_panics::end_the_run();
    let client = Gpu::client(&Default::default());
    let machine = Machine::new(&client).with_plane_operations(planes);
    Lab { client, machine, tensors: RefCell::default() }
}

/// The CUDA device.
#[cfg(feature = "cuda")]
pub fn cuda() -> Lab<cubecl::cuda::CudaRuntime> {
    let client = cubecl::cuda::CudaRuntime::client(&cubecl::cuda::CudaDevice::default());
    let machine = Machine::new(&client);
    Lab { client, machine, tensors: RefCell::default() }
}

/// Row-major strides whose rows are padded to a multiple of `pitch` elements.
fn pitched(shape: &[usize], pitch: usize) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (0..shape.len() - 1).rev() {
        let row = shape[axis + 1] * strides[axis + 1];
        strides[axis] = if axis + 2 == shape.len() { row.next_multiple_of(pitch) } else { row };
    }
    strides
}

/// The place of every element in its buffer.
fn places(shape: &[usize], strides: &[usize]) -> Vec<usize> {
    let mut places = vec![0];
    for (size, stride) in shape.iter().zip(strides) {
        places = places.iter().flat_map(|place| (0..*size).map(move |at| place + at * stride)).collect();
    }
    places
}

/// Elements of a buffer for a tensor of `len` elements of `size` bytes, with canaries.
fn with_canaries(len: usize, size: usize) -> usize {
    (len + CANARIES).next_multiple_of(ALLOCATION / size)
}

impl<R: Runtime> Lab<R> {
    /// The same device with other limits.
    pub fn with_machine(self, machine: Machine) -> Self {
        Self { machine, ..self }
    }

    /// A tensor in this buffer.
    fn tensor(&self, bytes: &[u8], shape: &[usize], strides: Vec<usize>, dtype: StorageType) -> Tensor<R> {
        let tensor = TensorHandle::new(self.client.create_from_slice(bytes), shape.to_vec(), strides, dtype);
        self.tensors.borrow_mut().push(tensor.clone());
        tensor
    }

    /// A tensor of these floats, its rows padded to a multiple of `pitch` elements; everything else is a canary.
    pub fn floats(&self, values: &[f32], shape: &[usize], element: Element, pitch: usize) -> Tensor<R> {
        let strides = pitched(shape, pitch);
        let places = places(shape, &strides);
        assert_eq!(places.len(), values.len());
        let len = with_canaries(shape[0] * strides[0], element.storage().size());
        match element {
            Element::F32 => {
                let mut buffer = vec![f32::from_bits(CANARY_32); len];
                places.iter().zip(values).for_each(|(place, value)| buffer[*place] = *value);
                self.tensor(f32::as_bytes(&buffer), shape, strides, element.storage())
            }
            Element::F16 => {
                let mut buffer = vec![f16::from_bits(CANARY_16); len];
                places.iter().zip(values).for_each(|(place, value)| buffer[*place] = f16::from_f32(*value));
                self.tensor(f16::as_bytes(&buffer), shape, strides, element.storage())
            }
            Element::Bf16 => {
                let mut buffer = vec![bf16::from_bits(CANARY_16); len];
                places.iter().zip(values).for_each(|(place, value)| buffer[*place] = bf16::from_f32(*value));
                self.tensor(bf16::as_bytes(&buffer), shape, strides, element.storage())
            }
        }
    }

    /// A tensor of bytes, laid out as [`floats`](Self::floats) are.
    pub fn bytes(&self, values: &[i8], shape: &[usize], pitch: usize) -> Tensor<R> {
        let strides = pitched(shape, pitch);
        let mut buffer = vec![CANARY_8; with_canaries(shape[0] * strides[0], 1)];
        places(shape, &strides).iter().zip(values).for_each(|(place, value)| buffer[*place] = *value);
        self.tensor(i8::as_bytes(&buffer), shape, strides, i8::as_type_native_unchecked().storage_type())
    }

    /// A tensor that a kernel is to fill: NaN everywhere.
    pub fn output(&self, shape: &[usize], element: Element, pitch: usize) -> Tensor<R> {
        self.floats(&vec![f32::NAN; shape.iter().product()], shape, element, pitch)
    }

    /// A dense tensor of u32.
    pub fn integers(&self, values: &[u32], shape: &[usize]) -> Tensor<R> {
        let mut buffer = values.to_vec();
        buffer.resize(with_canaries(values.len(), 4), CANARY_32);
        self.tensor(u32::as_bytes(&buffer), shape, pitched(shape, 1), u32::as_type_native_unchecked().storage_type())
    }

    /// The elements of a tensor, after the device was asked for errors, and the canaries of all tensors since the last read for theirs.
    pub fn read(&self, tensor: &Tensor<R>) -> Vec<f32> {
        cubecl::future::block_on(self.client.sync()).unwrap();
        for tensor in self.tensors.take() {
            self.checked(&tensor);
        }
        self.checked(tensor)
    }

    /// The elements of a tensor, after its canaries were checked.
    fn checked(&self, tensor: &Tensor<R>) -> Vec<f32> {
        let bytes = self.client.read_one(tensor.handle.clone()).unwrap();
        let (values, whole): (Vec<f32>, Vec<bool>) = match tensor.dtype.size() {
            1 => i8::from_bytes(&bytes).iter().map(|value| (f32::from(*value), *value == CANARY_8)).unzip(),
            4 => f32::from_bytes(&bytes).iter().map(|value| (*value, value.to_bits() == CANARY_32)).unzip(),
            _ if tensor.dtype == Element::Bf16.storage() => {
                bf16::from_bytes(&bytes).iter().map(|value| (value.to_f32(), value.to_bits() == CANARY_16)).unzip()
            }
            _ => f16::from_bytes(&bytes).iter().map(|value| (value.to_f32(), value.to_bits() == CANARY_16)).unzip(),
        };
        let places = places(tensor.shape(), tensor.strides());
        let mut inside = vec![false; values.len()];
        places.iter().for_each(|place| inside[*place] = true);
        for (at, inside) in inside.iter().enumerate() {
            assert!(*inside || whole[at], "element {at}, between or after the rows, was overwritten by {}", values[at]);
        }
        places.into_iter().map(|place| values[place]).collect()
    }
}

/// A `[B, T, N·H]` tensor as `[B, N, T, H]`.
pub fn by_head<R: Runtime>(packed: &Tensor<R>, heads: usize) -> Tensor<R> {
    let (shape, strides) = (packed.shape(), packed.strides());
    let head_dim = shape[2] / heads;
    let (shape, strides) = ([shape[0], heads, shape[1], head_dim], [strides[0], head_dim, strides[1], 1]);
    TensorHandle::new(packed.handle.clone(), shape.to_vec(), strides.to_vec(), packed.dtype)
}
