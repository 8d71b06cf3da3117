//! Weights of 32 outputs in the order of the instructions that multiply bytes or bf16: of each 4 bytes of a run, those of 16 outputs next to each
//! other.

#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) use avx512::is_available;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::pack;

/// Bytes of a row that an instruction reads: a register.
pub(super) const STEP: usize = 64;
/// Rows of a group: those of a tile of AMX.
pub(super) const GROUP: usize = 16;
/// Bytes of a group that are next to each other.
pub(super) const TILE: usize = GROUP * STEP;
/// Outputs of a vector.
pub(super) const LANES: usize = 16;
/// Vectors of a panel.
pub(super) const VECTORS: usize = 2;
/// Outputs of a panel.
pub(super) const OUTPUTS: usize = LANES * VECTORS;

/// Packs a run of bytes of each output, with zeros after its end. `place` is `[VECTORS, steps, STEP / 4, LANES, 4]`, for as many steps as it has
/// room for.
pub(super) fn pack_anywhere(runs: &[&[u8]; OUTPUTS], place: &mut [u8]) {
    const FOUR: usize = 4;
    let vector = place.len() / VECTORS;
    for (place, runs) in place.chunks_exact_mut(vector).zip(runs.as_chunks::<LANES>().0) {
        for (at, place) in place.as_chunks_mut::<STEP>().0.iter_mut().enumerate() {
            for (place, run) in place.as_chunks_mut::<FOUR>().0.iter_mut().zip(runs) {
                let rest = run.get(at * FOUR..).unwrap_or_default();
                match rest.first_chunk() {
                    Some(four) => *place = *four,
                    None => {
                        *place = [0; FOUR];
                        place[..rest.len()].copy_from_slice(rest);
                    }
                }
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn avx512_packs_as_any_processor() {
        if !is_available() {
            return;
        }
        for len in [1, 63, 64, 130] {
            let bytes: Vec<u8> = (0..OUTPUTS * len).map(|at| (at * 7 + 1) as u8).collect();
            let runs = std::array::from_fn(|output| &bytes[output * len..][..len]);
            let steps = len.div_ceil(STEP);
            let mut places = [vec![9; steps * STEP * OUTPUTS], vec![8; steps * STEP * OUTPUTS]];
            pack_anywhere(&runs, &mut places[0]);
            // SAFETY: the processor has the instructions.
            unsafe { pack(&runs, &mut places[1], |total, _| total) };
            assert_eq!(places[0], places[1], "{len} bytes");
        }
    }
}
