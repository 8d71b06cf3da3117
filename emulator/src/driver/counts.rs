//! What launches did, as lines of JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::log::append;
use super::settings::Settings;
use crate::compile::{Kernel, counted_names};
use crate::count::Count;
use crate::launch::Counts;
use crate::shape::Launch;

/// Appends the counts of a launch to the file that asks for them: sums over the blocks that ran.
pub fn write(kernel: &Kernel, launch: &Launch, counts: &Counts) {
    let Some(path) = &Settings::get().counts else { return };
    let (mut total, mut global_bytes, mut by_opcode) = (Count::default(), 0, BTreeMap::<&str, u64>::new());
    for (name, count) in counted_names(&kernel.instructions).into_iter().zip(&counts.instructions) {
        total += *count;
        if count.sectors > 0 {
            global_bytes += count.bytes;
        }
        if count.warps > 0 {
            *by_opcode.entry(name).or_default() += count.warps;
        }
    }
    let mut opcodes = String::new();
    for (opcode, warps) in by_opcode {
        let separator = if opcodes.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(opcodes, "{separator}\"{opcode}\":{warps}");
    }
    let distinct = counts.distinct.map_or(String::new(), |[read, written]| {
        format!(
            "\"distinct\":{{\"read\":[{},{}],\"written\":[{},{}]}},",
            read.private, read.shared, written.private, written.shared
        )
    });
    let Launch { grid, block, .. } = launch;
    append(
        path,
        format_args!(
            "{{\"kernel\":\"{}\",\"grid\":{grid:?},\"block\":{block:?},\"blocks\":{},\"shared\":{},\"instructions\":{},\
             \"lanes\":{},\"global_bytes\":{global_bytes},\"sectors\":{},\"sectors_by_blocks\":{},\"least_sectors\":{},{distinct}\"passes\":{},\
             \"ideal_passes\":{},\"opcodes\":{{{opcodes}}}}}",
            kernel.name,
            counts.blocks,
            kernel.shared_bytes + kernel.dynamic_shared(launch.dynamic_shared),
            total.warps,
            total.lanes,
            total.sectors,
            counts.sectors_by_blocks,
            counts.least_sectors,
            total.passes,
            total.ideal_passes,
        ),
    );
}
