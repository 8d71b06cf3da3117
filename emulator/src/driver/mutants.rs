//! Modules with a mistake, if one is wanted.

use super::log;
use super::settings::Settings;
use crate::compile::Kernel;
use crate::error::LoadError;
use crate::launch::Counts;
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

/// Says whether a launch executed a changed statement, and whether that made a difference to what the statement does. A mistake that
/// nothing executes changes nothing; neither does, say, another limit where no lane is at the limit.
pub fn report(kernel: &Kernel, counts: &Counts) {
    let Some(changed) = &kernel.changed else { return };
    if counts.instructions[changed.at].warps > 0 {
        eprintln!("emulator: mutant reached");
    }
    if changed.had_effect() {
        eprintln!("emulator: mutant had an effect");
    }
}

/// The name of a module: the CRC-32 of its text, which scripts compute as well.
fn key(text: &str) -> String {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
    };
    format!("{:08x}", !text.as_bytes().iter().fold(!0, step))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_module_has_the_crc_of_its_text() {
        assert_eq!(super::key("123456789"), "cbf43926");
    }
}
