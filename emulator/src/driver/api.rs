//! The entry points of the driver API.
#![allow(non_snake_case, reason = "the names are CUDA's")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::settings::Settings;
use super::state::Driver;
use super::state::result::{
    INVALID_VALUE, LAUNCH_FAILED, NO_BINARY_FOR_GPU, NOT_FOUND, NOT_SUPPORTED, OUT_OF_MEMORY, SUCCESS,
};
use crate::Module;
use crate::compile::Kernel;
use crate::limits::Limits;
use crate::shape::Launch;

/// Memory that each device states, in bytes.
const MEMORY: usize = 8 << 30;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
/// The contexts of the devices: this plus the number of the device.
const CONTEXT: usize = 0x1000;

/// Declares entry points. Each is called by a program that follows the driver API.
macro_rules! entry_points {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "` of the driver API.")]
            ///
            /// # Safety
            /// Pointers are valid for what the driver API says about them.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
                // Some entry points have nothing to do with some of their arguments.
                let _ = ($($argument,)*);
                // SAFETY: the caller passes what the driver API asks for: pointers to results may be written, and other
                // pointers may be read, for as many bytes as it says.
                #[allow(unused_unsafe, reason = "some do nothing that is unsafe")]
                unsafe { $body }
            }
        )*
    };
}

entry_points! {
    cuInit(flags: c_uint) { SUCCESS }
    cuDriverGetVersion(version: *mut c_int) { *version = 13000; SUCCESS }
    cuDeviceGetCount(count: *mut c_int) { *count = Settings::get().devices; SUCCESS }
    cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        if !(0..Settings::get().devices).contains(&ordinal) { return INVALID_VALUE; }
        *device = ordinal;
        SUCCESS
    }
    cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) { copy_text(c"emulator", name, length) }
    cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) { *bytes = MEMORY; SUCCESS }
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) { *value = attribute_of(attribute); SUCCESS }
    cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) { *context = CONTEXT + device as usize; SUCCESS }
    cuDevicePrimaryCtxRelease_v2(device: c_int) { SUCCESS }
    cuCtxSetCurrent(context: usize) { SUCCESS }
    cuCtxGetCurrent(context: *mut usize) { *context = CONTEXT; SUCCESS }
    cuCtxSynchronize() { Driver::get().status() }
    cuStreamCreate(stream: *mut usize, flags: c_uint) { *stream = Driver::get().handle(); SUCCESS }
    cuStreamDestroy_v2(stream: usize) { SUCCESS }
    cuStreamSynchronize(stream: usize) { Driver::get().status() }
    cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint) { SUCCESS }
    cuEventCreate(event: *mut usize, flags: c_uint) { *event = Driver::get().handle(); SUCCESS }
    cuEventDestroy_v2(event: usize) { SUCCESS }
    cuEventRecord(event: usize, stream: usize) { SUCCESS }
    cuEventSynchronize(event: usize) { Driver::get().status() }
    cuEventQuery(event: usize) { Driver::get().status() }
    cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) { *milliseconds = 0.01; SUCCESS }
    cuEventElapsedTime_v2(milliseconds: *mut f32, start: usize, end: usize) { *milliseconds = 0.01; SUCCESS }

    cuMemAlloc_v2(address: *mut u64, bytes: usize) { allocate(address, bytes) }
    cuMemAllocAsync(address: *mut u64, bytes: usize, stream: usize) { allocate(address, bytes) }
    cuMemFree_v2(address: u64) { freed(Driver::get().memory.free(address)) }
    cuMemFreeAsync(address: u64, stream: usize) { freed(Driver::get().memory.free(address)) }
    cuMemAllocHost_v2(start: *mut usize, bytes: usize) { allocate_host(start, bytes) }
    cuMemHostAlloc(start: *mut usize, bytes: usize, flags: c_uint) { allocate_host(start, bytes) }
    cuMemFreeHost(start: usize) { freed(Driver::get().host.free(start)) }
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) { *free = MEMORY; *total = MEMORY; SUCCESS }
    cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, stream: usize) {
        if bytes == 0 { return SUCCESS; }
        to_device(to, std::slice::from_raw_parts(from, bytes))
    }
    cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, stream: usize) {
        if bytes == 0 { return SUCCESS; }
        to_host(std::slice::from_raw_parts_mut(to, bytes), from)
    }
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) { between(to, from, bytes) }
    cuMemcpyPeerAsync(to: u64, to_context: usize, from: u64, from_context: usize, bytes: usize, stream: usize) {
        between(to, from, bytes)
    }
    cuMemcpy2DAsync_v2(copy: *const Copy2D, stream: usize) { copy_rows(&*copy) }

    cuModuleLoadData(module: *mut *mut Module, image: *const c_char) {
        match Driver::get().load(&CStr::from_ptr(image).to_string_lossy()) {
            Ok(loaded) => { *module = Box::into_raw(loaded); SUCCESS }
            Err(code) => code,
        }
    }
    cuModuleUnload(module: *mut Module) { Box::from_raw(module).unload(&Driver::get().memory); SUCCESS }
    cuModuleGetFunction(function: *mut *const Kernel, module: *const Module, name: *const c_char) {
        match (*module).kernel(&CStr::from_ptr(name).to_string_lossy()) {
            Some(kernel) => { *function = kernel; SUCCESS }
            None => NOT_FOUND,
        }
    }
    cuFuncSetAttribute(function: *const Kernel, attribute: c_int, value: c_int) {
        if attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES { return SUCCESS; }
        let Ok(bytes) = usize::try_from(value) else { return INVALID_VALUE };
        if !Settings::get().limits.allows_shared(&*function, bytes) { return INVALID_VALUE; }
        (*function).allow_dynamic_shared(bytes);
        SUCCESS
    }
    cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: *const Kernel) { *value = 0; SUCCESS }
    cuLaunchKernel(
        function: *const Kernel, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: usize, parameters: *const *const u8, extra: usize,
    ) {
        let kernel = &*function;
        let mut arguments = vec![0; kernel.parameter_bytes];
        for (index, &(at, bytes)) in kernel.parameters.iter().enumerate() {
            arguments[at..at + bytes].copy_from_slice(std::slice::from_raw_parts(*parameters.add(index), bytes));
        }
        let launch = Launch {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared: shared as usize,
            seed: Settings::get().seed,
            lenient: Settings::get().is_lenient(&kernel.name),
            sample: Settings::get().sample,
        };
        Driver::get().launch(kernel, &launch, &arguments)
    }
    cuLaunchKernelEx(config: usize, function: usize, parameters: usize, extra: usize) { NOT_SUPPORTED }
    cuTensorMapEncodeTiled() { NOT_SUPPORTED }
    cuTensorMapEncodeIm2col() { NOT_SUPPORTED }
    cuTensorMapEncodeIm2colWide() { NOT_SUPPORTED }

    cuGetErrorName(error: c_int, name: *mut *const c_char) { *name = error_name(error).as_ptr(); SUCCESS }
    cuGetErrorString(error: c_int, text: *mut *const c_char) {
        let said = if error == LAUNCH_FAILED { c"a kernel did what no kernel may do; standard error says what" } else { error_name(error) };
        *text = said.as_ptr();
        SUCCESS
    }
    cuDeviceGetDefaultMemPool(pool: *mut usize, device: c_int) { *pool = 1; SUCCESS }
    cuMemPoolSetAttribute(pool: usize, attribute: c_int, value: usize) { SUCCESS }
    cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) { *can = 1; SUCCESS }
    cuCtxEnablePeerAccess(context: usize, flags: c_uint) { SUCCESS }
}

/// Attributes of `CUdevice_attribute` that programs ask for; the others are 1.
fn attribute_of(attribute: c_int) -> c_int {
    let limits = Settings::get().limits;
    let value = match attribute {
        1 => Limits::THREADS,
        2..=4 => Limits::BLOCK[attribute as usize - 2],
        5..=7 => Limits::GRID[attribute as usize - 5],
        8 => Limits::SHARED as u32,
        10 => 32, // threads of a warp
        16 => limits.multiprocessors,
        75 => limits.capability / 10,
        76 => limits.capability % 10,
        97 => limits.most_shared as u32,
        _ => 1,
    };
    value as c_int
}

fn error_name(error: c_int) -> &'static CStr {
    match error {
        SUCCESS => c"CUDA_SUCCESS",
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        NO_BINARY_FOR_GPU => c"CUDA_ERROR_NO_BINARY_FOR_GPU",
        super::state::result::INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        NOT_SUPPORTED => c"CUDA_ERROR_NOT_SUPPORTED",
        _ => c"CUDA_ERROR_UNKNOWN",
    }
}

/// Copies a text and its final zero.
///
/// # Safety
/// `to` has `length` bytes.
unsafe fn copy_text(text: &CStr, to: *mut c_char, length: c_int) -> c_int {
    let bytes = text.to_bytes_with_nul();
    if (length as usize) < bytes.len() {
        return INVALID_VALUE;
    }
    // SAFETY: `to` has at least as many bytes.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), bytes.len()) };
    SUCCESS
}

/// # Safety
/// `address` may be written.
unsafe fn allocate(address: *mut u64, bytes: usize) -> c_int {
    let Some(start) = Driver::get().memory.allocate(bytes) else { return OUT_OF_MEMORY };
    // SAFETY: the caller says so.
    unsafe { *address = start };
    SUCCESS
}

/// # Safety
/// `start` may be written.
unsafe fn allocate_host(start: *mut usize, bytes: usize) -> c_int {
    let Some(allocated) = Driver::get().host.allocate(bytes) else { return OUT_OF_MEMORY };
    // SAFETY: the caller says so.
    unsafe { *start = allocated };
    SUCCESS
}

fn freed(was_there: bool) -> c_int {
    if was_there { SUCCESS } else { INVALID_VALUE }
}

fn to_device(to: u64, bytes: &[u8]) -> c_int {
    if Driver::get().memory.write(to, bytes, &Settings::get().canaries) {
        SUCCESS
    } else {
        outside("written", to, bytes.len())
    }
}

fn to_host(to: &mut [u8], from: u64) -> c_int {
    match Driver::get().memory.read(from, to.len()) {
        Some(bytes) => {
            to.copy_from_slice(&bytes);
            Driver::get().status()
        }
        None => outside("read", from, to.len()),
    }
}

fn between(to: u64, from: u64, bytes: usize) -> c_int {
    match Driver::get().memory.read(from, bytes) {
        Some(found) => to_device(to, &found),
        None => outside("read", from, bytes),
    }
}

fn outside(what: &str, address: u64, bytes: usize) -> c_int {
    eprintln!("emulator: {bytes} bytes are {what} at {address:#x}, outside of every allocation");
    INVALID_VALUE
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Debug)]
pub struct Copy2D {
    source_x: usize,
    source_y: usize,
    source_kind: c_int,
    source_host: *const u8,
    source_device: u64,
    source_array: *const c_void,
    source_pitch: usize,
    target_x: usize,
    target_y: usize,
    target_kind: c_int,
    target_host: *mut u8,
    target_device: u64,
    target_array: *mut c_void,
    target_pitch: usize,
    width: usize,
    height: usize,
}

/// `CU_MEMORYTYPE_HOST`.
const HOST: c_int = 1;

/// # Safety
/// Host pointers are valid for the rows that the copy describes.
unsafe fn copy_rows(copy: &Copy2D) -> c_int {
    for row in 0..copy.height {
        let from = (row + copy.source_y) * copy.source_pitch + copy.source_x;
        let to = (row + copy.target_y) * copy.target_pitch + copy.target_x;
        let found = if copy.source_kind == HOST {
            // SAFETY: the caller says so.
            Some(unsafe { std::slice::from_raw_parts(copy.source_host.add(from), copy.width) }.to_vec())
        } else {
            Driver::get().memory.read(copy.source_device + from as u64, copy.width)
        };
        let Some(bytes) = found else { return outside("read", copy.source_device + from as u64, copy.width) };
        let result = if copy.target_kind == HOST {
            // SAFETY: the caller says so.
            unsafe { std::slice::from_raw_parts_mut(copy.target_host.add(to), copy.width) }.copy_from_slice(&bytes);
            Driver::get().status()
        } else {
            to_device(copy.target_device + to as u64, &bytes)
        };
        if result != SUCCESS {
            return result;
        }
    }
    SUCCESS
}
