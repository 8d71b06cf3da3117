//! Loads and stores. PTX ISA, "Data Movement and Conversion Instructions: ld, st".

use super::builder::Builder;
use super::instruction::Action;
use crate::block::{Access, Block, of_lane};
use crate::memory::INSIDE;
use crate::numbers::{little_endian, low, signed};
use crate::ptx::Space;
use crate::registers::{Lanes, WARP, each};

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    let load = b.opcode() == "ld";
    let read_only = b.flag("nc");
    // Every access here is coherent, and caches are not modelled.
    for hint in [
        "volatile", "weak", "relaxed", "acquire", "release", "gpu", "cta", "sys", "ca", "cg", "cs", "lu", "cv", "wb",
        "wt",
    ] {
        b.flag(hint);
    }
    for hint in ["L1::", "L2::"] {
        while b.starting(hint).is_some() {}
    }
    let elements = match b.one_of(&["v2", "v4", "v8"]) {
        Some("v2") => 2,
        Some("v4") => 4,
        Some(_) => 8,
        None => 1,
    };
    let space = b.space();
    let of = b.type_()?;
    let (memory, value) = if load { (1, 0) } else { (0, 1) };
    let (base, named) = b.address(memory)?;
    let space = if space == Space::Generic { named.unwrap_or(space) } else { space };
    if read_only && !(load && space == Space::Global) {
        return Err("`.nc` is for loads from global memory".into());
    }
    let registers = b.vector(value, of.width(), load)?;
    if registers.len() != elements {
        return Err(format!("{} registers for {elements} elements", registers.len()));
    }
    let (size, bits, is_signed) = (of.bytes() as u64, of.width(), of.is_signed());
    let total = size * elements as u64;
    if total > 16 {
        return Err("an access of more than 16 bytes".into());
    }
    Ok(Action::Execute(Box::new(move |warp, block, lanes| {
        let addresses = base.addresses(&warp.registers);
        let mut values = [[0u64; WARP]; 4];
        if !load {
            for (values, register) in values.iter_mut().zip(&registers) {
                *values = warp.registers.get(*register);
            }
        }
        for lane in each(lanes) {
            let access = Access { address: addresses[lane], each: size, count: elements };
            if load {
                let found = match read_only {
                    true => block.load_global(access, true),
                    false => block.load(warp, space, access, lane),
                };
                let bytes = of_lane(lane, found)?;
                for (values, bytes) in values.iter_mut().zip(bytes.chunks_exact(size as usize)).take(elements) {
                    let value = little_endian(bytes);
                    values[lane] = if is_signed { signed(value, bits) as u64 } else { value };
                }
            } else {
                let mut bytes = [0; 16];
                for (values, bytes) in values.iter().zip(bytes.chunks_exact_mut(size as usize)).take(elements) {
                    bytes.copy_from_slice(&low(values[lane], bits).to_le_bytes()[..size as usize]);
                }
                of_lane(lane, block.store(warp, space, access, &bytes, lane))?;
            }
        }
        if load {
            for (register, values) in registers.iter().zip(&values) {
                warp.registers.set(*register, values, lanes);
            }
        }
        tally(block, warp.at, space, &addresses, lanes, Transfer { bytes: total, writes: !load });
        Ok(())
    })))
}

/// What each lane of an access moves.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    pub bytes: u64,
    pub writes: bool,
}

/// Counts an access of a warp to global or shared memory.
pub fn tally(
    block: &mut Block<'_>,
    instruction: usize,
    space: Space,
    addresses: &[u64; WARP],
    lanes: Lanes,
    Transfer { bytes, writes }: Transfer,
) {
    let Some(first) = each(lanes).next() else { return };
    let (space, _) = Access { address: addresses[first], each: bytes, count: 1 }.resolve(space);
    match space {
        Space::Global => {
            block.counts[instruction].global(addresses, lanes, bytes);
            if let Some(traffic) = &mut block.traffic {
                traffic.touch(addresses, lanes, bytes, writes);
            }
        }
        Space::Shared => block.counts[instruction].shared(&addresses.map(|address| address & INSIDE), lanes, bytes),
        _ => {}
    }
}
