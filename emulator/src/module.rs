//! A loaded module.

use crate::compile::{self, Kernel};
use crate::error::LoadError;
use crate::memory::Device;
use crate::ptx::{self, ModuleSource};

/// Kernels that can run, and the variables that they share, which are in the memory of the device.
pub struct Module {
    /// The kernels.
    pub kernels: Vec<Kernel>,
    variables: Vec<u64>,
}

impl Module {
    /// Loads PTX.
    ///
    /// # Errors
    /// [`LoadError`] for what is not understood.
    pub fn load(text: &str, device: &Device) -> Result<Self, LoadError> {
        Self::of(&ptx::parse(text)?, device)
    }

    /// Loads what was parsed.
    pub(crate) fn of(source: &ModuleSource, device: &Device) -> Result<Self, LoadError> {
        let mut variables = Vec::new();
        let kernels = compile::compile(source, &mut |variable| {
            let refuse = || LoadError::of_module(format!("no memory for the variable `{}`", variable.name));
            let address = device.allocate(variable.bytes).ok_or_else(refuse)?;
            // What is not initialised is zero.
            let mut initial = variable.initial.clone();
            initial.resize(variable.bytes, 0);
            device.write(address, &initial, &[]);
            variables.push(address);
            Ok(address)
        })?;
        Ok(Self { kernels, variables })
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// Frees its variables.
    pub fn unload(self, device: &Device) {
        for variable in self.variables {
            device.free(variable);
        }
    }
}
