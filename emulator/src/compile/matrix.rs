//! Tensor cores: `mma.m16n8k*`, `ldmatrix` and `stmatrix`. PTX ISA, "Warp-level Matrix Instructions".

use super::builder::Builder;
use super::instruction::Action;
use crate::block::{Access, of_lane};
use crate::numbers::{bf16_of, bits_of, f16_of, f32_of, to_f16};
use crate::ptx::{Kind, Space};
use crate::registers::{ALL, Lanes, Register, WARP};

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    if !(b.flag("sync") && b.flag("aligned")) {
        return Err("only the `.sync.aligned` form is supported".into());
    }
    if b.opcode() == "mma" { multiply(b) } else { move_matrices(b) }
}

/// Rows of A and of the result.
const ROWS: usize = 16;
/// Columns of B and of the result.
const COLUMNS: usize = 8;

/// Row and column of A that a lane's element `element` has.
///
/// Four lanes share a row: lane `l` is in row `l / 4`, and its first register has the columns from `l % 4 · per_register` on. The second
/// register has the same columns 8 rows below. The next two registers repeat this `4 · per_register` columns further to the right.
pub fn place_in_a(lane: usize, element: usize, per_register: usize) -> (usize, usize) {
    let (register, within) = (element / per_register, element % per_register);
    let column = lane % 4 * per_register + within + 4 * per_register * (register / 2);
    (lane / 4 + 8 * (register % 2), column)
}

/// Row and column of B.
pub fn place_in_b(lane: usize, element: usize, per_register: usize) -> (usize, usize) {
    let (register, within) = (element / per_register, element % per_register);
    (lane % 4 * per_register + within + 4 * per_register * register, lane / 4)
}

/// Row and column of the sums, two neighbours of each of two rows.
pub fn place_in_sums(lane: usize, element: usize) -> (usize, usize) {
    (lane / 4 + 8 * (element / 2), lane % 4 * 2 + element % 2)
}

fn multiply(b: &mut Builder<'_>) -> Result<Action, String> {
    let depth = match b.one_of(&["m16n8k4", "m16n8k8", "m16n8k16"]) {
        Some("m16n8k4") => 4,
        Some("m16n8k8") => 8,
        Some(_) => 16,
        None => return Err("the shape is not supported".into()),
    };
    if !(b.flag("row") && b.flag("col")) {
        return Err("only A by rows and B by columns are supported".into());
    }
    let (sums, a_type, b_type, c_type) = (b.type_()?, b.type_()?, b.type_()?, b.type_()?);
    let factors: fn(u32) -> f32 = match a_type.kind {
        Kind::Half => f16_of,
        Kind::Brain => bf16_of,
        Kind::TensorFloat => |bits| f32_of(bits & !0x1fff),
        other => return Err(format!("factors of {other:?}")),
    };
    if a_type != b_type || sums != c_type {
        return Err("factors of one type and sums of one type are supported".into());
    }
    let half_sums = match (sums.kind, sums.bits) {
        (Kind::Half, 16) if a_type.kind == Kind::Half => true,
        (Kind::Float, 32) => false,
        _ => return Err("these factors have sums in f32, those of f16 in f16 too".into()),
    };
    let exists = if a_type.kind == Kind::TensorFloat { depth <= 8 } else { depth >= 8 };
    if !exists {
        return Err(format!("{:?} has no product of this depth", a_type.kind));
    }
    // Elements in a register of 32 bits.
    let per_factor = (32 / a_type.width()) as usize;
    let (to, first) = (b.vector(0, 32, true)?, b.vector(1, 32, false)?);
    let (second, before) = (b.vector(2, 32, false)?, b.vector(3, 32, false)?);
    let sums_registers = if half_sums { 2 } else { 4 };
    let expected = [ROWS * depth, COLUMNS * depth].map(|elements| elements / WARP / per_factor);
    if [first.len(), second.len()] != expected || to.len() != sums_registers || before.len() != sums_registers {
        return Err("the number of registers does not fit the shape".into());
    }
    Ok(Action::Together(
        None,
        Box::new(move |warp, _, lanes| {
            let registers = &mut warp.registers;
            let read = |register: &Register| registers.get::<u32>(*register);
            let (mut left, mut right) = ([[0f32; 16]; ROWS], [[0f32; COLUMNS]; 16]);
            let element = |values: &[u32; WARP], lane: usize, within: usize| factors(values[lane] >> (16 * within));
            for (index, register) in first.iter().enumerate() {
                let values = read(register);
                for lane in 0..WARP {
                    for within in 0..per_factor {
                        let (row, column) = place_in_a(lane, index * per_factor + within, per_factor);
                        left[row][column] = element(&values, lane, within);
                    }
                }
            }
            for (index, register) in second.iter().enumerate() {
                let values = read(register);
                for lane in 0..WARP {
                    for within in 0..per_factor {
                        let (row, column) = place_in_b(lane, index * per_factor + within, per_factor);
                        right[row][column] = element(&values, lane, within);
                    }
                }
            }
            let mut result = [[0f32; COLUMNS]; ROWS];
            for (index, register) in before.iter().enumerate() {
                let values = read(register);
                for lane in 0..WARP {
                    if half_sums {
                        for within in 0..2 {
                            let (row, column) = place_in_sums(lane, 2 * index + within);
                            result[row][column] = f16_of(values[lane] >> (16 * within));
                        }
                    } else {
                        let (row, column) = place_in_sums(lane, index);
                        result[row][column] = f32_of(values[lane]);
                    }
                }
            }
            // In order of the depth, in f32. Tensor cores add in an order of their own, with a few bits more.
            for (sums, left) in result.iter_mut().zip(&left) {
                for (factor, right) in left.iter().zip(&right).take(depth) {
                    add_products(sums, *factor, right);
                }
            }
            for (index, register) in to.iter().enumerate() {
                let values: [u32; WARP] = std::array::from_fn(|lane| {
                    let at = |element| {
                        let (row, column) = place_in_sums(lane, element);
                        result[row][column]
                    };
                    match half_sums {
                        true => to_f16(at(2 * index).into()) | to_f16(at(2 * index + 1).into()) << 16,
                        false => bits_of(at(index)),
                    }
                });
                registers.set(*register, &values, lanes);
            }
            Ok(())
        }),
    ))
}

/// Adds the products of a factor. A product has at most 22 bits, so it is exact unless it is out of the range of normal numbers, and this is a
/// fused multiply-add. `mul_add` would be a call for each: the host is not known to have the instruction.
pub fn add_products(sums: &mut [f32], factor: f32, right: &[f32]) {
    for (sum, right) in sums.iter_mut().zip(right) {
        *sum += factor * right;
    }
}

/// `ldmatrix`, `stmatrix`: matrices of 8 × 8 elements of 16 bits. Lane `8 · matrix + row` has the address of a row; every lane holds
/// two neighbours of a row, or of a column with `.trans`.
fn move_matrices(b: &mut Builder<'_>) -> Result<Action, String> {
    let load = b.opcode() == "ldmatrix";
    let matrices = match b.one_of(&["x1", "x2", "x4"]) {
        Some("x1") => 1,
        Some("x2") => 2,
        Some(_) => 4,
        None => return Err("the number of matrices is missing".into()),
    };
    let transposed = b.flag("trans");
    if !b.flag("m8n8") || b.space() != Space::Shared || b.type_()?.width() != 16 {
        return Err("only matrices of 8 × 8 elements of 16 bits in shared memory are supported".into());
    }
    let (memory, value) = if load { (1, 0) } else { (0, 1) };
    let (base, _) = b.address(memory)?;
    let registers = b.vector(value, 32, load)?;
    if registers.len() != matrices {
        return Err(format!("{} registers for {matrices} matrices", registers.len()));
    }
    // The lanes that have addresses.
    let rows: Lanes = if matrices == 4 { ALL } else { (1 << (8 * matrices)) - 1 };
    Ok(Action::Together(
        None,
        Box::new(move |warp, block, lanes| {
            let addresses = base.in_shared(&warp.registers);
            let access = |lane: usize| Access { address: addresses[lane], each: 16, count: 1 };
            let mut elements = [[0u16; 8]; WARP];
            if load {
                for lane in 0..8 * matrices {
                    let row = of_lane(lane, block.load(warp, Space::Shared, access(lane), lane))?;
                    elements[lane] = std::array::from_fn(|at| u16::from_le_bytes([row[2 * at], row[2 * at + 1]]));
                }
            }
            for (matrix, register) in registers.iter().enumerate() {
                let mut values = if load { [0; WARP] } else { warp.registers.get::<u32>(*register) };
                for (lane, value) in values.iter_mut().enumerate() {
                    for within in 0..2 {
                        let (line, at) = (lane / 4, lane % 4 * 2 + within);
                        let (row, column) = if transposed { (at, line) } else { (line, at) };
                        let element = &mut elements[8 * matrix + row][column];
                        match load {
                            true => *value |= u32::from(*element) << (16 * within),
                            false => *element = (*value >> (16 * within)) as u16,
                        }
                    }
                }
                if load {
                    warp.registers.set(*register, &values, lanes);
                }
            }
            if !load {
                for lane in 0..8 * matrices {
                    let mut row = [0; 16];
                    for (bytes, element) in row.chunks_exact_mut(2).zip(elements[lane]) {
                        bytes.copy_from_slice(&element.to_le_bytes());
                    }
                    of_lane(lane, block.store(warp, Space::Shared, access(lane), &row, lane))?;
                }
            }
            block.counts[warp.at].shared(&addresses, rows, 16);
            Ok(())
        }),
    ))
}
