//! `wmma`, from memory to memory: the layout of its fragments is the machine's own. PTX ISA, "Warp-level Matrix Load Instruction:
//! wmma.load", "… Store Instruction: wmma.store", "… Multiply-and-Accumulate Instruction: wmma.mma".

use half::{bf16, f16};

use crate::lab::{Run, bytes, kernel, words};
use crate::tensor_cores::small;

/// A product: its shape, the type of its factors, and how many registers hold A and B (PTX ISA, "Matrix Fragments for WMMA").
struct Product {
    shape: [usize; 3],
    factors: &'static str,
    registers: [usize; 2],
}

/// `%f` registers of a fragment.
fn list(first: usize, count: usize) -> String {
    (first..first + count).map(|register| format!("%f{register}")).collect::<Vec<_>>().join(", ")
}

/// Where an element is, by rows or by columns.
fn place(row: usize, column: usize, by: &str, stride: usize) -> usize {
    if by == "row" { row * stride + column } else { column * stride + row }
}

/// A matrix in memory, whose rows, or columns, are `stride` elements apart. What is between them is NaN.
fn in_memory(matrix: &[f32], [rows, columns]: [usize; 2], by: &str, stride: usize) -> Vec<f32> {
    let mut found = vec![f32::NAN; if by == "row" { rows * stride } else { columns * stride }];
    for (at, value) in matrix.iter().enumerate() {
        found[place(at / columns, at % columns, by, stride)] = *value;
    }
    found
}

fn encoded(values: &[f32], factors: &str) -> Vec<u8> {
    match factors {
        "f16" => bytes(values, |value| f16::from_f32(value).to_le_bytes()),
        "bf16" => bytes(values, |value| bf16::from_f32(value).to_le_bytes()),
        _ => bytes(values, f32::to_le_bytes),
    }
}

/// Runs `D = A · B + C` with A, B, C and D in these layouts, and compares it with plain loops.
fn check(product: &Product, [of_a, of_b, of_c, of_d]: [&str; 4]) {
    let Product { shape: [m, n, k], factors, registers: [in_a, in_b] } = *product;
    let shape = format!("m{m}n{n}k{k}");
    let (a, b, c) = (small(6, m * k), small(7, k * n), small(8, m * n));
    let (stride_a, stride_b, stride_c, stride_d) = (40, 48, 56, 64);
    // f16 factors are not named.
    let types = if factors == "f16" { "f32.f32".into() } else { format!("f32.{factors}.{factors}.f32") };
    let (first, second) = (list(0, in_a), list(8, in_b));
    let body = format!(
        "wmma.load.a.sync.aligned.{of_a}.{shape}.global.{factors} {{{first}}}, [%p0], {stride_a};\n\
         wmma.load.b.sync.aligned.{of_b}.{shape}.global.{factors} {{{second}}}, [%p1], {stride_b};\n\
         wmma.load.c.sync.aligned.{of_c}.{shape}.global.f32 {{{before}}}, [%p2], {stride_c};\n\
         wmma.mma.sync.aligned.{of_a}.{of_b}.{shape}.{types} {{{sums}}}, {{{first}}}, {{{second}}}, {{{before}}};\n\
         wmma.store.d.sync.aligned.{of_d}.{shape}.global.f32 [%p3], {{{sums}}}, {stride_d};",
        before = list(16, 8),
        sums = list(24, 8)
    );
    let buffers = [
        Ok(encoded(&in_memory(&a, [m, k], of_a, stride_a), factors)),
        Ok(encoded(&in_memory(&b, [k, n], of_b, stride_b), factors)),
        Ok(encoded(&in_memory(&c, [m, n], of_c, stride_c), "f32")),
        Err(4 * stride_d * if of_d == "row" { m } else { n }),
    ];
    let found = words(&Run::default().on(&kernel(".reg .b32 %f<32>;", &body), &buffers).unwrap()[3]);
    for row in 0..m {
        for column in 0..n {
            let sum: f32 = (0..k).map(|at| a[row * k + at] * b[at * n + column]).sum();
            let found = f32::from_bits(found[place(row, column, of_d, stride_d)]);
            let expected = sum + c[row * n + column];
            assert_eq!(found, expected, "{shape} of {factors}, {of_a} {of_b}, row {row}, column {column}");
        }
    }
}

/// Fragments of A and B in f16 have eight registers in every shape; in the other types as many as they need.
#[test]
fn whole_matrices_are_multiplied_from_memory_to_memory() {
    let products = [
        Product { shape: [16, 16, 16], factors: "f16", registers: [8, 8] },
        Product { shape: [8, 32, 16], factors: "f16", registers: [8, 8] },
        Product { shape: [32, 8, 16], factors: "f16", registers: [8, 8] },
        Product { shape: [16, 16, 16], factors: "bf16", registers: [4, 4] },
        Product { shape: [8, 32, 16], factors: "bf16", registers: [2, 8] },
        Product { shape: [32, 8, 16], factors: "bf16", registers: [8, 2] },
        Product { shape: [16, 16, 8], factors: "tf32", registers: [4, 4] },
    ];
    for product in products {
        for layouts in [["row", "row", "row", "col"], ["row", "col", "col", "row"], ["col", "row", "row", "row"]] {
            check(&product, layouts);
        }
    }
}

/// PTX ISA, "Alternate Floating-Point Data Formats": tf32 has at least 10 bits of the fraction. Here those below are not read.
#[test]
fn tf32_fragments_have_ten_bits_of_the_fraction() {
    let body = format!(
        "wmma.load.a.sync.aligned.row.m16n16k8.global.tf32 {{{a}}}, [%p0];\n\
         wmma.load.b.sync.aligned.row.m16n16k8.global.tf32 {{{b}}}, [%p1]; mov.u32 %r1, 0;\n\
         wmma.mma.sync.aligned.row.row.m16n16k8.f32.tf32.tf32.f32 {{{sums}}}, {{{a}}}, {{{b}}}, \
         {{%r1, %r1, %r1, %r1, %r1, %r1, %r1, %r1}};\n\
         wmma.store.d.sync.aligned.row.m16n16k8.global.f32 [%p2], {{{sums}}};",
        a = list(0, 4),
        b = list(4, 4),
        sums = list(8, 8)
    );
    // Every element of A is 1 with bit 10 of the fraction, and more below; B is the identity.
    let (a, kept) = (1.0f32 + 2f32.powi(-10) + 2f32.powi(-11), 1.0 + 2f32.powi(-10));
    let b: Vec<f32> = (0..128).map(|at| if at / 16 == at % 16 { 1.0 } else { 0.0 }).collect();
    let buffers = [Ok(bytes(&[a; 128], f32::to_le_bytes)), Ok(bytes(&b, f32::to_le_bytes)), Err(1024)];
    let found = words(&Run::default().on(&kernel(".reg .b32 %f<16>;", &body), &buffers).unwrap()[2]);
    for (at, found) in found.into_iter().enumerate() {
        assert_eq!(f32::from_bits(found), if at % 16 < 8 { kept } else { 0.0 }, "element {at}");
    }
}
