//! The driver API: the entry points that CubeCL uses, and the state behind them.
//!
//! Streams do everything at once: a launch returns when the kernel has ended. So events and waits have nothing to do, and a fault
//! is the result of the launch and of every later synchronisation.
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `EMULATOR_ARCHITECTURE` | compute capability that the device states: 80 or 90 | 90 |
//! | `EMULATOR_DEVICES` | number of devices | 1 |
//! | `EMULATOR_THREADS` | threads of the host that run blocks | one for each core |
//! | `EMULATOR_SEED` | decides in which order the warps of a block run | 0 |
//! | `EMULATOR_EXECUTE` | `0` loads modules and launches nothing | 1 |
//! | `EMULATOR_STRICT` | kernels, by the start of their names, that may neither read global memory that nothing has written, nor race there, nor between lanes of a warp | all |
//! | `EMULATOR_CANARIES` | hexadecimal words, with commas between them, that count as unwritten when the host copies them to a device: what tests put around their tensors | none |
//! | `EMULATOR_LOG` | file to which a line is appended for each load and launch | none |
//! | `EMULATOR_COUNTS` | file to which a line of JSON is appended for each launch: what it counted | none |
//! | `EMULATOR_SAMPLE` | runs about so many blocks of a launch, spread over its grid, for counts; results are incomplete | all |
//! | `EMULATOR_DUMP` | folder that receives the PTX of every module | none |
//! | `EMULATOR_MUTANTS` | file to which a line is appended for each mistake that can be made in a kernel that is loaded: module, kernel, number, kind, line of the source, statement, and what takes its place, with tabs between them | none |
//! | `EMULATOR_MUTANT` | `<kernel>:<number>` makes the mistake of that number in each kernel whose name starts so; `<kernel>@<module>:<number>` in one module only | none |
//! | `EMULATOR_NVRTC`, `EMULATOR_NVRTC_CACHE` | see [`nvrtc`] | none |

mod api;
mod counts;
mod host_memory;
mod log;
mod mutants;
pub mod nvrtc;
mod settings;
mod state;
