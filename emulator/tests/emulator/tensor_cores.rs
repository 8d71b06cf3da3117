//! Fragments of tensor cores, against the tables of the PTX ISA and plain loops.

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
fn small(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7 + seed * 13) % 11) as f32 - 5.0).collect()
}

/// Figures of `mma.m16n8k16` with 16-bit factors: rows are `groupID = lane / 4` and 8 below, columns `lane % 4 · 2 + (i & 1)`, and 8
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

/// With tf32 a register holds one element: columns are `lane % 4`, and 4 to the right from element 2 on.
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

/// Lane `8 m + r` has the address of row r of matrix m. Each lane receives two neighbours of row `lane / 4`, or, transposed, of column
/// `lane / 4`.
#[test]
fn matrices_are_loaded_by_rows_and_by_columns() {
    let elements: Vec<u16> = (0..256).collect();
    for transposed in [false, true] {
        let trans = if transposed { ".trans" } else { "" };
        let body = format!(
            "mul.wide.u32 %x1, %t, 16; add.s64 %x2, %p0, %x1; ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%x2];\n\
             mul.lo.u32 %r5, %t, 16; mov.u32 %r6, tile; add.u32 %r6, %r6, %r5; st.shared.v4.u32 [%r6], {{%r1, %r2, %r3, %r4}};\n\
             bar.sync 0; ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r7, %r8, %r9, %r10}}, [%r6];\n\
             add.s64 %x2, %p1, %x1; st.global.v4.u32 [%x2], {{%r7, %r8, %r9, %r10}};"
        );
        let ptx = kernel(".shared .align 16 .b8 tile[512];", &body);
        let found = words(&Run::default().on(&ptx, &[Ok(bytes(&elements, u16::to_le_bytes)), Err(512)]).unwrap()[1]);
        for lane in 0..32 {
            for matrix in 0..4 {
                let at = |i: usize| {
                    let (line, place) = (lane / 4, lane % 4 * 2 + i);
                    let (row, column) = if transposed { (place, line) } else { (line, place) };
                    (matrix * 64 + row * 8 + column) as u32
                };
                assert_eq!(found[lane * 4 + matrix], at(0) | at(1) << 16, "lane {lane}, matrix {matrix}");
            }
        }
    }
}

/// The layout of `wmma` fragments is the machine's own, so a product is tested from memory to memory.
#[test]
fn whole_matrices_are_multiplied_from_memory_to_memory() {
    let (a, b) = (small(6, 256), small(7, 256));
    let list = |first: usize, count: usize| {
        (first..first + count).map(|register| format!("%f{register}")).collect::<Vec<_>>().join(", ")
    };
    let body = format!(
        "wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {{{a}}}, [%p0], 16;\n\
         wmma.load.b.sync.aligned.col.m16n16k16.global.f16 {{{b}}}, [%p1], 16;\n\
         mov.u32 %r1, 0;\n\
         wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {{{c}}}, {{{a}}}, {{{b}}}, {{%r1, %r1, %r1, %r1, %r1, %r1, %r1, %r1}};\n\
         wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%p2], {{{c}}}, 16;",
        a = list(0, 8),
        b = list(8, 8),
        c = list(16, 8)
    );
    let halves = |values: &[f32]| bytes(values, |value| f16::from_f32(value).to_bits().to_le_bytes());
    let buffers = [Ok(halves(&a)), Ok(halves(&b)), Err(1024)];
    let found = words(&Run::default().on(&kernel(".reg .b32 %f<24>;", &body), &buffers).unwrap()[2]);
    for row in 0..16 {
        for column in 0..16 {
            let sum: f32 = (0..16).map(|k| a[row * 16 + k] * b[column * 16 + k]).sum();
            assert_eq!(f32::from_bits(found[row * 16 + column]), sum, "row {row}, column {column}");
        }
    }
}
