//! `ldmatrix` and `stmatrix`. PTX ISA, "Warp-level matrix load instruction: ldmatrix" and "Warp-level matrix store instruction:
//! stmatrix": lane `8 m + r` has the address of row r of matrix m, the addresses of lanes after the last matrix are ignored, and each
//! lane holds two neighbours of row `lane / 4`, or, transposed, of column `lane / 4`.

use crate::lab::{Run, bytes, kernel, words};

const TILE: &str = ".shared .align 16 .b8 tile[512];";
/// The address of a lane's row of 16 bytes, in `%r1`. Rows are in another order in memory than their lanes.
const ROW: &str = "xor.b32 %r1, %t, 5; mul.lo.u32 %r1, %r1, 16; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2;\n";

/// Every form of an instruction: its number of matrices, whether it transposes, its modifiers, and its registers from `%r4` on.
fn forms() -> impl Iterator<Item = (usize, bool, String, String)> {
    [1, 2, 4].into_iter().flat_map(|matrices| [false, true].map(|transposed| (matrices, transposed))).map(
        |(matrices, transposed)| {
            let modifiers = format!("sync.aligned.m8n8.x{matrices}{}", if transposed { ".trans" } else { "" });
            let registers: Vec<String> = (4..4 + matrices).map(|register| format!("%r{register}")).collect();
            (matrices, transposed, modifiers, format!("{{{}}}", registers.join(", ")))
        },
    )
}

/// Lanes that have no row get an address that is in no memory and not aligned.
fn only_rows(matrices: usize) -> String {
    format!("setp.ge.u32 %q1, %t, {}; @%q1 mov.u32 %r1, 0x7fffff01;\n", 8 * matrices)
}

/// Number of the element that a lane holds in half `within` of the register of a matrix.
fn held(lane: usize, matrix: usize, within: usize, transposed: bool) -> u32 {
    let (line, place) = (lane / 4, lane % 4 * 2 + within);
    let (row, column) = if transposed { (place, line) } else { (line, place) };
    (matrix * 64 + row * 8 + column) as u32
}

#[test]
fn matrices_are_loaded_by_rows_and_by_columns() {
    let elements: Vec<u16> = (0..256).collect();
    for (matrices, transposed, modifiers, registers) in forms() {
        let store: String =
            (0..matrices).map(|matrix| format!("st.global.u32 [%x2+{}], %r{};\n", 4 * matrix, 4 + matrix)).collect();
        let body = format!(
            "mul.wide.u32 %x1, %t, 16; add.s64 %x2, %p0, %x1; ld.global.v4.u32 {{%r8, %r9, %r10, %r11}}, [%x2];\n\
             {ROW}st.shared.v4.u32 [%r1], {{%r8, %r9, %r10, %r11}}; bar.sync 0;\n\
             {}ldmatrix.{modifiers}.shared.b16 {registers}, [%r1];\n\
             mul.wide.u32 %x1, %t, {}; add.s64 %x2, %p1, %x1;\n{store}",
            only_rows(matrices),
            4 * matrices
        );
        let buffers = [Ok(bytes(&elements, u16::to_le_bytes)), Err(128 * matrices)];
        let found = words(&Run::default().on(&kernel(TILE, &body), &buffers).unwrap()[1]);
        for (at, found) in found.into_iter().enumerate() {
            let (lane, matrix) = (at / matrices, at % matrices);
            let [low, high] = [0, 1].map(|within| held(lane, matrix, within, transposed));
            assert_eq!(found, low | high << 16, "{modifiers}, lane {lane}, matrix {matrix}");
        }
    }
}

#[test]
fn matrices_are_stored_by_rows_and_by_columns() {
    for (matrices, transposed, modifiers, registers) in forms() {
        let fragments: Vec<u16> = (0..32 * matrices * 2)
            .map(|at| held(at / 2 / matrices, at / 2 % matrices, at % 2, transposed) as u16)
            .collect();
        let load: String =
            (0..matrices).map(|matrix| format!("ld.global.u32 %r{}, [%x2+{}];\n", 4 + matrix, 4 * matrix)).collect();
        let body = format!(
            "mul.wide.u32 %x1, %t, {}; add.s64 %x2, %p0, %x1;\n{load}{ROW}{}\
             stmatrix.{modifiers}.shared.b16 [%r1], {registers}; bar.sync 0;\n\
             @%q1 bra END; {ROW}ld.shared.v4.u32 {{%r8, %r9, %r10, %r11}}, [%r1];\n\
             mul.wide.u32 %x1, %t, 16; add.s64 %x2, %p1, %x1; st.global.v4.u32 [%x2], {{%r8, %r9, %r10, %r11}}; END:",
            4 * matrices,
            only_rows(matrices)
        );
        let buffers = [Ok(bytes(&fragments, u16::to_le_bytes)), Err(128 * matrices)];
        let found = &Run::default().on(&kernel(TILE, &body), &buffers).unwrap()[1];
        for (at, found) in found.chunks_exact(2).enumerate() {
            assert_eq!(usize::from(u16::from_le_bytes([found[0], found[1]])), at, "{modifiers}");
        }
    }
}
