//! What launches did, as lines of JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::log::append;
use super::settings::Settings;
use crate::compile::Kernel;
use crate::count::Count;
use crate::shape::Launch;

/// Appends the counts of a launch to the file that asks for them. `counts` has one for each instruction.
pub fn write(kernel: &Kernel, launch: &Launch, counts: &[Count]) {
    let Some(path) = &Settings::get().counts else { return };
    let (mut total, mut global_bytes, mut by_opcode) = (Count::default(), 0, BTreeMap::<&str, u64>::new());
    for (instruction, count) in kernel.instructions.iter().zip(counts) {
        total += *count;
        if count.sectors > 0 {
            global_bytes += count.bytes;
        }
        if count.warps > 0 {
            *by_opcode.entry(&instruction.opcode).or_default() += count.warps;
        }
    }
    let mut opcodes = String::new();
    for (opcode, warps) in by_opcode {
        let separator = if opcodes.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(opcodes, "{separator}\"{opcode}\":{warps}");
    }
    let Launch { grid, block, .. } = launch;
    append(
        path,
        format_args!(
            "{{\"kernel\":\"{}\",\"grid\":{grid:?},\"block\":{block:?},\"shared\":{},\"instructions\":{},\"lanes\":{},\
             \"global_bytes\":{global_bytes},\"sectors\":{},\"passes\":{},\"ideal_passes\":{},\"opcodes\":{{{opcodes}}}}}",
            kernel.name,
            kernel.shared_bytes + launch.dynamic_shared,
            total.warps,
            total.lanes,
            total.sectors,
            total.passes,
            total.ideal_passes,
        ),
    );
}
