//! Modules with a mistake, if one is wanted.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::log;
use super::settings::Settings;
use crate::error::LoadError;
use crate::mutant::candidates;
use crate::ptx::{self, ModuleSource};

/// Reads a module. Lists the candidates of its kernels, and changes those that the environment names.
///
/// # Errors
/// [`LoadError`] for what is not understood.
pub fn parse(text: &str) -> Result<ModuleSource, LoadError> {
    let mut source = ptx::parse(text)?;
    let Settings { mutants, mutant, .. } = Settings::get();
    if mutants.is_none() && mutant.is_none() {
        return Ok(source);
    }
    let module = key(text);
    for kernel in &mut source.kernels {
        let mut found = candidates(kernel);
        if let Some(path) = mutants {
            for (number, candidate) in found.iter().enumerate() {
                log::append(path, format_args!("{module}\t{}\t{number}\t{candidate}", kernel.name));
            }
        }
        let Some(chosen) = mutant else { continue };
        let named =
            kernel.name.starts_with(&chosen.kernel) && chosen.module.as_ref().is_none_or(|name| *name == module);
        if named && chosen.number < found.len() {
            let one = found.swap_remove(chosen.number);
            eprintln!(
                "emulator: mutant {} of `{}@{module}`: `{}` becomes `{}`",
                chosen.number,
                kernel.name,
                one.before,
                one.after()
            );
            one.apply(kernel);
        }
    }
    Ok(source)
}

/// The name of a module: a hash of its text.
fn key(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
