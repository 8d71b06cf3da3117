//! What the driver holds: memory, modules and the first fault.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::host_memory::HostMemory;
use super::nvrtc::noted_shared_bytes;
use super::settings::Settings;
use super::{counts, log, mutants};
use crate::Module;
use crate::compile::Kernel;
use crate::error::LoadError;
use crate::launch::launch;
use crate::memory::Device;
use crate::shape::Launch;

/// Results of the driver API.
pub mod result {
    pub const SUCCESS: i32 = 0;
    pub const INVALID_VALUE: i32 = 1;
    pub const OUT_OF_MEMORY: i32 = 2;
    pub const NO_BINARY_FOR_GPU: i32 = 209;
    pub const INVALID_PTX: i32 = 218;
    pub const NOT_FOUND: i32 = 500;
    pub const LAUNCH_FAILED: i32 = 719;
    pub const NOT_SUPPORTED: i32 = 801;
}

/// The driver of this process.
#[derive(Default)]
pub struct Driver {
    pub memory: Device,
    pub host: HostMemory,
    /// The fault after which the devices no longer work.
    fault: Mutex<Option<String>>,
    /// Launches run one after the other, each on all threads.
    running: Mutex<()>,
    launches: AtomicU64,
    modules: AtomicUsize,
    handles: AtomicUsize,
}

impl Driver {
    /// The driver of this process.
    pub fn get() -> &'static Self {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        DRIVER.get_or_init(Driver::default)
    }

    /// Whether a fault happened.
    pub fn status(&self) -> i32 {
        match *self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(_) => result::LAUNCH_FAILED,
            None => result::SUCCESS,
        }
    }

    /// A number for a stream or an event.
    pub fn handle(&self) -> usize {
        0x1_0000 + self.handles.fetch_add(1, Ordering::Relaxed)
    }

    /// Loads a module.
    pub fn load(&self, text: &str) -> Result<Box<Module>, i32> {
        let number = self.modules.fetch_add(1, Ordering::Relaxed);
        if let Some(folder) = &Settings::get().dump {
            let path = folder.join(format!("{number:04}.ptx"));
            if let Err(error) = std::fs::write(&path, text) {
                eprintln!("emulator: {}: {error}", path.display());
            }
        }
        let mut module = self.compile(text).map_err(|(code, reason)| {
            eprintln!("emulator: {reason}");
            code
        })?;
        let least = noted_shared_bytes(text);
        for kernel in &mut module.kernels {
            kernel.least_dynamic_shared = least;
            log::line(format_args!("load {number:04} {}", kernel.name));
        }
        Ok(Box::new(module))
    }

    /// A module for the devices, or a result and what is wrong.
    fn compile(&self, text: &str) -> Result<Module, (i32, String)> {
        let refuse = |error: LoadError| (result::INVALID_PTX, error.to_string());
        let source = mutants::parse(text).map_err(refuse)?;
        let capability = Settings::get().limits.capability;
        if !source.target.runs_on(capability) {
            let reason =
                format!("a module for {} does not run on a device of compute capability {capability}", source.target);
            return Err((result::NO_BINARY_FOR_GPU, reason));
        }
        Module::of(&source, &self.memory).map_err(refuse)
    }

    /// Runs a kernel.
    pub fn launch(&self, kernel: &Kernel, shape: &Launch, arguments: &[u8]) -> i32 {
        let Launch { grid: [gx, gy, gz], block: [bx, by, bz], dynamic_shared, .. } = *shape;
        let dynamic_shared = kernel.dynamic_shared(dynamic_shared);
        log::line(format_args!("launch {} {gx} {gy} {gz} {bx} {by} {bz} {dynamic_shared}", kernel.name));
        if let Err(reason) = Settings::get().limits.check(kernel, shape) {
            eprintln!("emulator: {}: {reason}", kernel.name);
            return result::INVALID_VALUE;
        }
        let settings = Settings::get();
        if !settings.execute {
            return result::SUCCESS;
        }
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self.status();
        if status != result::SUCCESS {
            return status;
        }
        let number = self.launches.fetch_add(1, Ordering::Relaxed);
        let global = self.memory.snapshot(number);
        match launch(kernel, shape, arguments, &global, settings.threads) {
            Ok(found) => {
                counts::write(kernel, shape, &found);
                mutants::report(kernel, &found);
                result::SUCCESS
            }
            Err(fault) => {
                eprintln!("emulator: {fault}");
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.to_string());
                result::LAUNCH_FAILED
            }
        }
    }
}
