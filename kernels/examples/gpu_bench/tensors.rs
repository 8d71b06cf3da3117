//! Noise, so that the device draws as much power as on real data, and the copy that measures the bandwidth of its memory.

use std::sync::atomic::{AtomicU32, Ordering};

use burn_deepspeed_kernels::cube::TensorHandle;
use cubecl::cuda::CudaRuntime;
use cubecl::ir::Type;
use cubecl::prelude::*;
use half::{bf16, f16};

/// Units of a cube.
const UNITS: u32 = 256;
/// Elements of a vector of f16 or bf16, 16 bytes.
const VECTOR: usize = 8;

/// A number in `-largest..largest` for every element, by a hash of its place (<https://nullprogram.com/blog/2018/07/31/>).
#[cube(launch_unchecked)]
fn noise<F: Numeric>(output: &mut Array<F>, seed: u32, largest: f32, #[define(F)] _elements: StorageType) {
    let at = ABSOLUTE_POS;
    if at < output.len() {
        let mut hash = at as u32 ^ seed;
        hash = (hash ^ (hash >> 16u32)) * 0x7feb352du32;
        hash = (hash ^ (hash >> 15u32)) * 0x846ca68bu32;
        hash = hash ^ (hash >> 16u32);
        output[at] = F::cast_from((f32::cast_from(hash >> 8u32) / 8388608.0f32 - 1.0f32) * largest);
    }
}

/// A vector to each unit.
#[cube(launch_unchecked)]
fn copy_vectors<F: Float, N: Size>(
    from: &Array<Vector<F, N>>,
    to: &mut Array<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _elements: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors as usize {
        to[at] = from[at];
    }
}

/// Elements of a tensor, those between its rows included.
fn extent(tensor: &TensorHandle<CudaRuntime>) -> usize {
    tensor.shape()[0] * tensor.strides()[0]
}

fn array(tensor: &TensorHandle<CudaRuntime>) -> ArrayArg<CudaRuntime> {
    // SAFETY: the runtime made the tensor, its outermost axis first, so that no element is beyond this.
    unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), extent(tensor)) }
}

fn cubes(units: usize) -> CubeCount {
    CubeCount::Static(units.div_ceil(UNITS as usize) as u32, 1, 1)
}

/// Writes noise between `-largest` and `largest`. It differs from call to call and is the same in each run.
pub fn fill(client: &ComputeClient<CudaRuntime>, tensor: &TensorHandle<CudaRuntime>, largest: f32) {
    static CALLS: AtomicU32 = AtomicU32::new(1);
    let seed = CALLS.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9);
    // SAFETY: the kernel checks its place against the length.
    unsafe {
        noise::launch_unchecked::<CudaRuntime>(
            client,
            cubes(extent(tensor)),
            CubeDim::new_1d(UNITS),
            array(tensor),
            seed,
            largest,
            tensor.dtype,
        );
    }
}

/// Elements of the noise of the host before it repeats: odd, so that rows differ.
const PERIOD: usize = 65_537;

/// A tensor like this one, of noise between `-largest` and `largest` that the host makes: on a device that is slower than the host.
pub fn upload(
    client: &ComputeClient<CudaRuntime>,
    tensor: TensorHandle<CudaRuntime>,
    largest: f32,
) -> TensorHandle<CudaRuntime> {
    let mut state = 1u64;
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / 8_388_608.0 - 1.0) * largest
    };
    let is = |elements: Type| tensor.dtype == elements.storage_type();
    let period: Vec<u8> = if is(bf16::as_type_native_unchecked()) {
        (0..PERIOD).flat_map(|_| bf16::from_f32(number()).to_le_bytes()).collect()
    } else if is(f16::as_type_native_unchecked()) {
        (0..PERIOD).flat_map(|_| f16::from_f32(number()).to_le_bytes()).collect()
    } else if is(f32::as_type_native_unchecked()) {
        (0..PERIOD).flat_map(|_| number().to_le_bytes()).collect()
    } else {
        (0..PERIOD).map(|_| number() as i8 as u8).collect()
    };
    let length = extent(&tensor) * tensor.dtype.size();
    let mut bytes = period.repeat(length.div_ceil(period.len()));
    bytes.truncate(length);
    let (shape, strides) = (tensor.shape().clone(), tensor.strides().clone());
    TensorHandle::new(client.create_from_slice(&bytes), shape, strides, tensor.dtype)
}

/// Copies a tensor whose number of elements is a multiple of 8.
pub fn copy(client: &ComputeClient<CudaRuntime>, from: &TensorHandle<CudaRuntime>, to: &TensorHandle<CudaRuntime>) {
    let vectors = extent(from) / VECTOR;
    // SAFETY: the kernel checks its place against the number of vectors, which both tensors hold.
    unsafe {
        copy_vectors::launch_unchecked::<CudaRuntime>(
            client,
            cubes(vectors),
            CubeDim::new_1d(UNITS),
            VECTOR,
            array(from),
            array(to),
            vectors as u32,
            from.dtype,
        );
    }
}
