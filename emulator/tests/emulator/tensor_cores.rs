//! Fragments of `mma`, against the figures of the PTX ISA and plain loops.

use half::{bf16, f16};

use crate::lab::{Run, bytes, kernel, words};

/// Loads registers of 32 bits from consecutive words of the thread: `count` of them from `%pN` into `%r` from `first` on.
fn load(pointer: usize, first: usize, count: usize) -> String {
    let registers = (0..count).map(|index| {
        let (register, offset) = (first + index, 4 * index);
        format!("ld.global.u32 %r{register}, [%x1+{offset}];\n")
    });
    format!("mul.wide.u32 %x1, %t, {}; add.s64 %x1, %p{pointer}, %x1;\n{}", 4 * count, registers.collect::<String>())
}

/// Numbers that tensor cores multiply and add exactly, so that the order of sums does not matter.
pub fn small(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7 + seed * 13) % 11) as f32 - 5.0).collect()
}

/// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": rows are `groupID = lane / 4` and 8 below, columns `lane % 4 · 2 + (i & 1)`, and 8
/// to the right from element 4 on.
#[test]
fn products_of_16_by_8_by_16_follow_the_figures() {
    for (name, half) in
        [("f16", (|x| f16::from_f32(x).to_bits()) as fn(f32) -> u16), ("bf16", |x| bf16::from_f32(x).to_bits())]
    {
        let (a, b, c) = (small(1, 16 * 16), small(2, 16 * 8), small(3, 16 * 8));
        let mut fragments = (Vec::new(), Vec::new(), Vec::new());
        for lane in 0..32 {
            let (group, within) = (lane / 4, lane % 4);
            for i in 0..8 {
                let row = if i % 4 < 2 { group } else { group + 8 };
                let column = within * 2 + i % 2 + if i >= 4 { 8 } else { 0 };
                fragments.0.push(half(a[row * 16 + column]));
            }
            for i in 0..4 {
                let row = within * 2 + i % 2 + if i >= 2 { 8 } else { 0 };
                fragments.1.push(half(b[row * 8 + group]));
            }
            for i in 0..4 {
                let row = if i < 2 { group } else { group + 8 };
                fragments.2.push(c[row * 8 + within * 2 + i % 2]);
            }
        }
        let body = format!(
            "{}{}{}mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {{%r11, %r12, %r13, %r14}}, {{%r1, %r2, %r3, %r4}}, \
             {{%r5, %r6}}, {{%r7, %r8, %r9, %r10}};\n\
             mul.wide.u32 %x1, %t, 16; add.s64 %x1, %p3, %x1; st.global.v4.u32 [%x1], {{%r11, %r12, %r13, %r14}};",
            load(0, 1, 4),
            load(1, 5, 2),
            load(2, 7, 4)
        );
        let buffers = [
            Ok(bytes(&fragments.0, u16::to_le_bytes)),
            Ok(bytes(&fragments.1, u16::to_le_bytes)),
            Ok(bytes(&fragments.2, f32::to_le_bytes)),
            Err(512),
        ];
        let found = words(&Run::default().on(&kernel("", &body), &buffers).unwrap()[3]);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = (lane / 4 + if i < 2 { 0 } else { 8 }, lane % 4 * 2 + i % 2);
                let sum: f32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
                let found = f32::from_bits(found[lane * 4 + i]);
                assert_eq!(found, sum + c[row * 8 + column], "{name}, row {row}, column {column}");
            }
        }
    }
}

/// PTX ISA, "Matrix Fragments for mma.m16n8k8". With tf32 a register holds one element: columns are `lane % 4`, and 4 to the right from element 2 on.
#[test]
fn products_of_16_by_8_by_8_in_tf32() {
    let (a, b) = (small(4, 16 * 8), small(5, 8 * 8));
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for lane in 0..32 {
        for i in 0..4 {
            first.push(a[(lane / 4 + i % 2 * 8) * 8 + lane % 4 + i / 2 * 4]);
        }
        for i in 0..2 {
            second.push(b[(lane % 4 + i * 4) * 8 + lane / 4]);
        }
    }
    let body = format!(
        "{}{}mov.u32 %r7, 0; mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {{%r11, %r12, %r13, %r14}}, {{%r1, %r2, %r3, %r4}}, \
         {{%r5, %r6}}, {{%r7, %r7, %r7, %r7}};\n\
         mul.wide.u32 %x1, %t, 16; add.s64 %x1, %p2, %x1; st.global.v4.u32 [%x1], {{%r11, %r12, %r13, %r14}};",
        load(0, 1, 4),
        load(1, 5, 2)
    );
    let buffers = [Ok(bytes(&first, f32::to_le_bytes)), Ok(bytes(&second, f32::to_le_bytes)), Err(512)];
    let found = words(&Run::default().on(&kernel("", &body), &buffers).unwrap()[2]);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            let sum: f32 = (0..8).map(|k| a[row * 8 + k] * b[k * 8 + column]).sum();
            assert_eq!(f32::from_bits(found[lane * 4 + i]), sum, "row {row}, column {column}");
        }
    }
}

/// PTX ISA, "Matrix Fragments for mma.m16n8k4": element `i` of A is in row `lane / 4 + 8 · i` and column `lane % 4`, that of B in row
/// `lane % 4` and column `lane / 4`.
#[test]
fn products_of_16_by_8_by_4_in_tf32() {
    let (a, b, c) = (small(1, 16 * 4), small(2, 4 * 8), small(3, 16 * 8));
    let (mut first, mut second, mut before) = (Vec::new(), Vec::new(), Vec::new());
    for lane in 0..32 {
        let (group, within) = (lane / 4, lane % 4);
        first.extend([a[group * 4 + within], a[(group + 8) * 4 + within]]);
        second.push(b[within * 8 + group]);
        before.extend((0..4).map(|i| c[(group + i / 2 * 8) * 8 + within * 2 + i % 2]));
    }
    let body = format!(
        "{}{}{}mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {{%r11, %r12, %r13, %r14}}, {{%r1, %r2}}, {{%r5}}, \
         {{%r7, %r8, %r9, %r10}};\n\
         mul.wide.u32 %x1, %t, 16; add.s64 %x1, %p3, %x1; st.global.v4.u32 [%x1], {{%r11, %r12, %r13, %r14}};",
        load(0, 1, 2),
        load(1, 5, 1),
        load(2, 7, 4)
    );
    let floats = |values: &[f32]| Ok(bytes(values, f32::to_le_bytes));
    let buffers = [floats(&first), floats(&second), floats(&before), Err(512)];
    let found = words(&Run::default().on(&kernel("", &body), &buffers).unwrap()[3]);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            let sum: f32 = (0..4).map(|k| a[row * 4 + k] * b[k * 8 + column]).sum();
            assert_eq!(f32::from_bits(found[lane * 4 + i]), sum + c[row * 8 + column], "row {row}, column {column}");
        }
    }
}

/// PTX ISA, "Matrix Fragments for mma.m16n8k8" and "… for mma.m16n8k16 with floating point type". Sums in f16 are two to a register:
/// elements 0 and 1 in row `lane / 4`, elements 2 and 3 in the row 8 below.
#[test]
fn sums_in_f16_are_two_to_a_register() {
    let half = |value: f32| f16::from_f32(value).to_bits();
    for depth in [8, 16] {
        let (a, b, c) = (small(4, 16 * depth), small(5, depth * 8), small(6, 16 * 8));
        let (mut first, mut second, mut before) = (Vec::new(), Vec::new(), Vec::new());
        for lane in 0..32 {
            let (group, within) = (lane / 4, lane % 4);
            for i in 0..depth / 2 {
                let (row, column) = (group + i / 2 % 2 * 8, within * 2 + i % 2 + i / 4 * 8);
                first.push(half(a[row * depth + column]));
            }
            for i in 0..depth / 4 {
                second.push(half(b[(within * 2 + i % 2 + i / 2 * 8) * 8 + group]));
            }
            before.extend((0..4).map(|i| half(c[(group + i / 2 * 8) * 8 + within * 2 + i % 2])));
        }
        let (a_registers, b_registers) =
            if depth == 8 { ("%r1, %r2", "%r5") } else { ("%r1, %r2, %r3, %r4", "%r5, %r6") };
        let body = format!(
            "{}{}{}mma.sync.aligned.m16n8k{depth}.row.col.f16.f16.f16.f16 {{%r11, %r12}}, {{{a_registers}}}, {{{b_registers}}}, \
             {{%r7, %r8}};\n\
             mul.wide.u32 %x1, %t, 8; add.s64 %x1, %p3, %x1; st.global.v2.u32 [%x1], {{%r11, %r12}};",
            load(0, 1, depth / 4),
            load(1, 5, depth / 8),
            load(2, 7, 2)
        );
        let halves = |values: &[u16]| Ok(bytes(values, |bits| bits.to_le_bytes()));
        let buffers = [halves(&first), halves(&second), halves(&before), Err(256)];
        let found = Run::default().on(&kernel("", &body), &buffers).unwrap();
        for (at, found) in found[3].chunks_exact(2).enumerate() {
            let (lane, i) = (at / 4, at % 4);
            let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            let sum: f32 = (0..depth).map(|k| a[row * depth + k] * b[k * 8 + column]).sum();
            let expected = half(sum + c[row * 8 + column]);
            assert_eq!(u16::from_le_bytes([found[0], found[1]]), expected, "depth {depth}, row {row}, column {column}");
        }
    }
}
