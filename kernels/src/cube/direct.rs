//! Left operands of tensor cores that a lane makes of what it loads, without shared memory.

use cubecl::prelude::*;

use super::fragment::Pair;

/// 16 bytes.
pub(crate) type Quad = Const<4>;

/// The two halves that [`bytes`] puts bytes into: 128 in bf16, and 1024 in f16, with a bit that inverts the sign bit of the byte. They
/// are an argument of the kernel because an instruction holds only one constant, which is the mask of the bytes.
pub(crate) fn raised(brain: bool) -> u32 {
    if brain { 0x4300_4300 } else { 0x6480_6480 }
}

/// Part `part` of the vectors of words of two rows, 8 apart, as an A: 4 elements of each.
///
/// The depth of a product may be in any order that both operands have. A lane holds elements that are next to each other in memory.
/// Part `p` of 16-bit elements is elements `4p` to `4p + 3` in their order; that of bytes is `4p`, `4p + 2`, `4p + 1`, `4p + 3`.
#[cube]
pub(crate) fn left<F: Float, W: Size>(
    upper: Vector<u32, W>,
    lower: Vector<u32, W>,
    part: u32,
    raised: u32,
    #[comptime] int8: bool,
    #[comptime] brain: bool,
) -> Array<Vector<F, Pair>> {
    let mut fragment = Array::<Vector<F, Pair>>::new(4usize);
    let part = part as usize;
    if comptime!(int8) {
        fragment[0] = bytes::<F>(upper[part], raised, brain);
        fragment[1] = bytes::<F>(lower[part], raised, brain);
        fragment[2] = bytes::<F>(upper[part] >> 8u32, raised, brain);
        fragment[3] = bytes::<F>(lower[part] >> 8u32, raised, brain);
    } else {
        fragment[0] = Vector::reinterpret(upper[2 * part]);
        fragment[1] = Vector::reinterpret(lower[2 * part]);
        fragment[2] = Vector::reinterpret(upper[2 * part + 1]);
        fragment[3] = Vector::reinterpret(lower[2 * part + 1]);
    }
    fragment
}

/// Bytes 0 and 2 of a word, signed numbers, without a conversion. Every step is exact.
///
/// f16 counts by 1 from 1024 on: the byte, its sign bit inverted, becomes the end of 1024, and 1024 + 128 is subtracted. bf16
/// counts by 1 from 128 on, which leaves room for 7 bits. They become the end of 128. The sign bit becomes that of the exponent,
/// which makes it 128 or 256, and is subtracted.
#[cube]
pub(crate) fn bytes<F: Float>(word: u32, raised: u32, #[comptime] brain: bool) -> Vector<F, Pair> {
    if comptime!(brain) {
        let rest = Vector::<F, Pair>::reinterpret((word & 0x007f_007fu32) | raised);
        let sign = Vector::<F, Pair>::reinterpret((word & 0x0080_0080u32) | raised);
        rest - sign
    } else {
        let sum = Vector::<F, Pair>::reinterpret((word & 0x00ff_00ffu32) ^ raised);
        sum - Vector::<F, Pair>::new(F::new(1152.0))
    }
}
