//! Instructions to closures over the lanes of a warp.

mod arithmetic;
mod asynchronous;
mod atomic;
mod barrier;
mod bits;
mod builder;
mod changed;
mod compare;
mod control;
mod convert;
mod counted;
mod instruction;
mod kernel;
mod lanewise;
mod matrix;
mod memory;
mod moves;
mod special;
mod target;
mod transcendental;
mod warp_wide;
mod whole_matrix;

use crate::error::LoadError;
use crate::ptx::{KernelSource, ModuleSource, Statement};
use builder::{Builder, Used};
use changed::Changed;
pub(crate) use counted::names as counted_names;
pub use instruction::{Action, Instruction};
pub use kernel::Kernel;

/// Compiles the kernels of a module. `place` gives the address of a variable in global memory.
///
/// # Errors
/// [`LoadError`] for what is not supported.
pub fn compile(
    module: &ModuleSource,
    place: &mut dyn FnMut(&crate::ptx::Variable) -> Result<u64, LoadError>,
) -> Result<Vec<Kernel>, LoadError> {
    module.kernels.iter().map(|source| kernel(module, source, place)).collect()
}

fn kernel(
    module: &ModuleSource,
    source: &KernelSource,
    place: &mut dyn FnMut(&crate::ptx::Variable) -> Result<u64, LoadError>,
) -> Result<Kernel, LoadError> {
    let mut builder = Builder::new(module, source, place)?;
    let mut instructions = Vec::with_capacity(source.statements.len());
    for statement in &source.statements {
        let refuse =
            |reason| LoadError::Statement { kernel: source.name.clone(), statement: statement.text.clone(), reason };
        target::check(&statement.opcode, module.target).map_err(refuse)?;
        instructions.push(instruction(&mut builder, statement).map_err(refuse)?);
    }
    let changed = match &source.changed {
        None => None,
        Some((at, original)) => {
            let statement = &source.statements[*at];
            let only_guard = statement.opcode == original.opcode && statement.operands == original.operands;
            let refuse = |reason| LoadError::of_module(format!("`{}` of a mutant: {reason}", original.text));
            Some(Changed::new(*at, instruction(&mut builder, original).map_err(refuse)?, only_guard))
        }
    };
    Ok(builder.finish(instructions, changed))
}

fn instruction<'a>(builder: &mut Builder<'a>, statement: &'a Statement) -> Result<Instruction, String> {
    builder.begin(statement);
    let condition = match &statement.predicate {
        Some((register, negated)) => Some(builder.guard(register, *negated)?),
        None => None,
    };
    let action = match statement.opcode.name() {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" | "copysign" => {
            arithmetic::compile(builder)?
        }
        "dp4a" | "dp2a" => arithmetic::dot(builder)?,
        "and" | "or" | "xor" | "not" | "shl" | "shr" | "shf" | "lop3" | "prmt" | "bfe" | "bfi" | "popc" | "clz"
        | "brev" => bits::compile(builder)?,
        "setp" | "set" | "selp" => compare::compile(builder)?,
        "cvt" => convert::compile(builder)?,
        "mov" | "cvta" => moves::compile(builder)?,
        "ex2" | "lg2" | "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "tanh" => transcendental::compile(builder)?,
        "ld" | "st" => memory::compile(builder)?,
        "atom" | "red" => atomic::compile(builder)?,
        "shfl" | "vote" | "redux" | "activemask" | "elect" => warp_wide::compile(builder)?,
        "ldmatrix" | "stmatrix" | "mma" => matrix::compile(builder)?,
        "wmma" => whole_matrix::compile(builder)?,
        "cp" => asynchronous::compile(builder)?,
        "mbarrier" => barrier::compile(builder)?,
        "bra" | "ret" | "exit" | "trap" | "bar" | "barrier" | "membar" | "fence" | "nanosleep" | "prefetch" => {
            control::compile(builder)?
        }
        other => return Err(format!("the opcode `{other}` is not supported")),
    };
    builder.check_modifiers()?;
    let Used { reads, writes, addresses } = builder.registers_used();
    Ok(Instruction {
        condition,
        action,
        reads,
        writes,
        addresses,
        opcode: statement.opcode.text(),
        text: statement.text.clone(),
        line: statement.line,
    })
}
