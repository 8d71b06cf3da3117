//! `wmma`: tensor cores with fragments whose layout the machine chooses. PTX ISA, "Warp-level Matrix Instructions: wmma".
//!
//! Here the elements of a matrix are in the lanes one after the other, row by row: the first lane has the first ones.

use super::builder::Builder;
use super::instruction::Action;
use super::matrix::add_products;
use crate::block::{Access, of_lane};
use crate::numbers::{bf16_of, bits_of, f16_of, f32_of, to_f16};
use crate::ptx::{Kind, Type};
use crate::registers::{Lanes, Register, Registers, WARP};

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    let operation = b.one_of(&["load", "store", "mma"]).ok_or("the operation is not supported")?;
    if !(b.flag("sync") && b.flag("aligned")) {
        return Err("only the `.sync.aligned` form is supported".into());
    }
    if operation == "mma" { multiply(b) } else { transfer(b, operation == "load") }
}

/// Rows, columns and depth of a product: `m16n16k16`.
fn shape(b: &mut Builder<'_>) -> Result<[usize; 3], String> {
    let text = b.starting("m").ok_or("the shape is missing")?;
    let sizes: Vec<usize> = text[1..].split(['n', 'k']).filter_map(|size| size.parse().ok()).collect();
    <[usize; 3]>::try_from(sizes).map_err(|_| format!("the shape `{text}` is not supported"))
}

/// A matrix in registers.
#[derive(Debug, Clone)]
struct Fragment {
    registers: Vec<Register>,
    of: Type,
    elements: usize,
}

impl Fragment {
    fn new(registers: Vec<Register>, of: Type, elements: usize) -> Result<Self, String> {
        let held = registers.len() * (32 / of.bits) as usize * WARP;
        // Fragments of A and B in f16 hold every element twice.
        match held >= elements && held.is_multiple_of(elements) {
            true => Ok(Self { registers, of, elements }),
            false => Err(format!("{} registers do not hold {elements} elements", registers.len())),
        }
    }

    /// Lane, register and shift of an element.
    fn place(&self, element: usize) -> (usize, usize, u32) {
        let per_register = (32 / self.of.bits) as usize;
        let per_lane = self.elements / WARP;
        let within = element % per_lane;
        (element / per_lane, within / per_register, (within % per_register) as u32 * self.of.bits)
    }

    fn read(&self, registers: &Registers) -> Vec<f32> {
        let values: Vec<_> = self.registers.iter().map(|register| registers.get::<u32>(*register)).collect();
        let number: fn(u32) -> f32 = match self.of.kind {
            Kind::Half => f16_of,
            Kind::Brain => bf16_of,
            Kind::TensorFloat => |bits| f32_of(bits & !0x1fff),
            _ => f32_of,
        };
        (0..self.elements)
            .map(|element| {
                let (lane, register, shift) = self.place(element);
                number(values[register][lane] >> shift)
            })
            .collect()
    }

    fn write(&self, registers: &mut Registers, bits: impl Fn(usize) -> u32, lanes: Lanes) {
        let mut values = vec![[0u32; WARP]; self.registers.len()];
        for element in 0..self.elements {
            let (lane, register, shift) = self.place(element);
            values[register][lane] |= bits(element) << shift;
        }
        for (register, values) in self.registers.iter().zip(&values) {
            registers.set(*register, values, lanes);
        }
    }
}

fn transfer(b: &mut Builder<'_>, load: bool) -> Result<Action, String> {
    let kind = b.one_of(&["a", "b", "c", "d"]).ok_or("the matrix is missing")?;
    let by_rows = b.one_of(&["row", "col"]).ok_or("the layout is missing")? == "row";
    let [m, n, k] = shape(b)?;
    let space = b.space();
    let of = b.type_()?;
    let (rows, columns) = match kind {
        "a" => (m, k),
        "b" => (k, n),
        _ => (m, n),
    };
    let (memory, value) = if load { (1, 0) } else { (0, 1) };
    let (base, _) = b.address(memory)?;
    let fragment = Fragment::new(b.vector(value, 32, load)?, of, rows * columns)?;
    let stride = if b.operands().len() > 2 { Some(b.source(2, 32)?) } else { None };
    let size = of.bytes() as u64;
    Ok(Action::Together(
        None,
        Box::new(move |warp, block, lanes| {
            let start = base.addresses(&warp.registers)[0];
            let default = if by_rows { columns } else { rows } as u64;
            let stride = stride.map_or(default, |stride| warp.registers.get::<u32>(stride)[0].into());
            let address = |element: usize| {
                let (row, column) = ((element / columns) as u64, (element % columns) as u64);
                start + size * if by_rows { row * stride + column } else { column * stride + row }
            };
            let access = |element| Access { address: address(element), each: size, count: 1 };
            if load {
                let mut bits = vec![0u32; rows * columns];
                for (element, bits) in bits.iter_mut().enumerate() {
                    let (lane, ..) = fragment.place(element);
                    let bytes = of_lane(lane, block.load(warp, space, access(element), lane))?;
                    *bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
                fragment.write(&mut warp.registers, |element| bits[element], lanes);
            } else {
                let values: Vec<_> =
                    fragment.registers.iter().map(|register| warp.registers.get::<u32>(*register)).collect();
                for element in 0..rows * columns {
                    let (lane, register, shift) = fragment.place(element);
                    let mut bytes = [0; 16];
                    bytes[..4].copy_from_slice(&(values[register][lane] >> shift).to_le_bytes());
                    bytes[size as usize..].fill(0);
                    of_lane(lane, block.store(warp, space, access(element), &bytes, lane))?;
                }
            }
            block.counts[warp.at].bytes += size * (rows * columns) as u64;
            Ok(())
        }),
    ))
}

fn multiply(b: &mut Builder<'_>) -> Result<Action, String> {
    b.one_of(&["row", "col"]);
    b.one_of(&["row", "col"]);
    let [m, n, k] = shape(b)?;
    let mut types = Vec::new();
    while let Ok(of) = b.type_() {
        types.push(of);
    }
    let half = Type { kind: Kind::Half, bits: 16, packed: false };
    // f16 factors are not named.
    let (sum, factor, before) = match types[..] {
        [sum, before] => (sum, half, before),
        [sum, factor, _, before] => (sum, factor, before),
        _ => return Err("the types are not supported".into()),
    };
    let to = Fragment::new(b.vector(0, 32, true)?, sum, m * n)?;
    let first = Fragment::new(b.vector(1, 32, false)?, factor, m * k)?;
    let second = Fragment::new(b.vector(2, 32, false)?, factor, k * n)?;
    let before = Fragment::new(b.vector(3, 32, false)?, before, m * n)?;
    Ok(Action::Together(
        None,
        Box::new(move |warp, _, lanes| {
            let (left, right) = (first.read(&warp.registers), second.read(&warp.registers));
            let mut sums = before.read(&warp.registers);
            for (sums, left) in sums.chunks_exact_mut(n).zip(left.chunks_exact(k)) {
                for (factor, right) in left.iter().zip(right.chunks_exact(n)) {
                    add_products(sums, *factor, right);
                }
            }
            let bits = |element: usize| match to.of.kind {
                Kind::Half => to_f16(sums[element].into()),
                _ => bits_of(sums[element]),
            };
            to.write(&mut warp.registers, bits, lanes);
            Ok(())
        }),
    ))
}
