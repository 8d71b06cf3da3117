//! PTX text to statements. The grammar is that of the [PTX ISA](https://docs.nvidia.com/cuda/parallel-thread-execution/), of which
//! this reads what NVRTC writes.

mod declaration;
mod lexer;
mod parser;
mod target;
mod tokens;
mod types;

pub use declaration::{Space, Variable};
pub use parser::{KernelSource, ModuleSource, Opcode, Operand, Statement, parse};
pub use target::Target;
pub use types::{Kind, Type};
