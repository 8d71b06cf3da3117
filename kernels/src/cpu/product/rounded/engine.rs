//! Which instructions multiply the tiles of rows and weights.

#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx_vnni, vnni};
#[cfg(target_arch = "x86_64")]
use crate::cpu::product::amx::{Tiles, has_int8};
use crate::cpu::product::int8::Int8Matrix;
#[cfg(target_arch = "x86_64")]
use crate::cpu::product::panel;
use crate::cpu::product::panel::{GROUP, OUTPUTS, STEP};
#[cfg(target_arch = "x86_64")]
use crate::cpu::x86::has_avx_vnni;

/// Rows of a tile.
pub(super) const ROWS: usize = 2 * GROUP;

/// The sums of a tile.
pub(super) type Sums<T> = [[T; OUTPUTS]; ROWS];

/// Fewest rows that are worth the packing of weights.
const FEWEST_ROWS: usize = 16;

/// Multiplies a number of rows of a group from the second argument on; see [`vnni::multiply`].
#[cfg(target_arch = "x86_64")]
type Rows = unsafe fn(&[u8], usize, usize, &[i8], &mut [[i32; OUTPUTS]]);

/// How many rows AVX-VNNI multiplies together, the most first.
#[cfg(target_arch = "x86_64")]
const AVX_VNNI: [(usize, Rows); 3] = [
    (avx_vnni::ROWS, avx_vnni::multiply::<{ avx_vnni::ROWS }>),
    (4, avx_vnni::multiply::<4>),
    (1, avx_vnni::multiply::<1>),
];

/// The same for AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
const AVX512_VNNI: [(usize, Rows); 3] =
    [(vnni::ROWS, vnni::multiply::<{ vnni::ROWS }>), (4, vnni::multiply::<4>), (1, vnni::multiply::<1>)];

/// Which instructions multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// NEON, one row at a time.
    #[cfg(target_arch = "aarch64")]
    Dot,
    /// NEON, two rows at a time.
    #[cfg(target_arch = "aarch64")]
    Mmla,
}

impl Engine {
    /// The slower ones first.
    #[cfg(target_arch = "x86_64")]
    pub const ALL: &[Self] = &[Self::AvxVnni, Self::Avx512Vnni, Self::Amx];
    /// The slower ones first.
    #[cfg(target_arch = "aarch64")]
    pub const ALL: &[Self] = &[Self::Dot, Self::Mmla];

    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => has_avx_vnni(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => panel::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => panel::is_available() && has_int8(),
            #[cfg(target_arch = "aarch64")]
            Self::Dot => crate::cpu::neon::has_dot(),
            #[cfg(target_arch = "aarch64")]
            Self::Mmla => neon::has_mmla(),
        }
    }

    /// The fastest for this many rows, if the processor has one, and if blocks of the matrix fill at least half of the registers that it reads.
    pub fn of(rows: usize, matrix: &Int8Matrix<'_>) -> Option<Self> {
        let block = matrix.input_block.min(matrix.inputs);
        let fills = 2 * block >= block.next_multiple_of(STEP) || block == matrix.inputs;
        let fastest = || Self::ALL.iter().rev().copied().find(|engine| engine.is_available());
        if rows >= FEWEST_ROWS && fills { fastest() } else { None }
    }

    /// Ready on this thread.
    ///
    /// # Panics
    /// If the processor does not have it.
    pub fn ready(self) -> Ready {
        assert!(self.is_available(), "the processor has no {self:?}");
        Ready {
            engine: self,
            #[cfg(target_arch = "x86_64")]
            tiles: (self == Self::Amx).then(Tiles::new),
        }
    }
}

/// Instructions that the processor has.
pub(super) struct Ready {
    engine: Engine,
    /// Of AMX.
    #[cfg(target_arch = "x86_64")]
    tiles: Option<Tiles>,
}

impl Ready {
    /// The sums of the products of `rows` rows with `steps` steps, and a panel; those of rows after the last are unspecified. `groups` has the
    /// bytes of two groups of rows, the second one `distance` bytes after the first.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn multiply(
        &self,
        groups: &[u8],
        distance: usize,
        rows: usize,
        steps: usize,
        panel: &[i8],
        sums: &mut Sums<i32>,
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = &self.tiles {
            return amx::multiply(tiles, groups, distance, steps, panel, sums);
        }
        for (group, sums) in groups.chunks(distance).zip(sums[..rows].chunks_mut(GROUP)) {
            match self.engine {
                // SAFETY: the processor has the instructions.
                #[cfg(target_arch = "x86_64")]
                Engine::AvxVnni => unsafe { multiply(&AVX_VNNI, group, steps, panel, sums) },
                // SAFETY: as above; it is not AMX, which has tiles.
                #[cfg(target_arch = "x86_64")]
                Engine::Avx512Vnni | Engine::Amx => unsafe { multiply(&AVX512_VNNI, group, steps, panel, sums) },
                #[cfg(target_arch = "aarch64")]
                Engine::Dot => neon::multiply(false, group, steps, panel, sums),
                #[cfg(target_arch = "aarch64")]
                Engine::Mmla => neon::multiply(true, group, steps, panel, sums),
            }
        }
    }
}

/// The sums of the products of rows of a group with `steps` steps, and a panel.
///
/// # Panics
/// If a slice is too short.
///
/// # Safety
/// The processor has the instructions.
#[cfg(target_arch = "x86_64")]
unsafe fn multiply(kinds: &[(usize, Rows)], rows: &[u8], steps: usize, panel: &[i8], sums: &mut [[i32; OUTPUTS]]) {
    let mut first = 0;
    for (count, multiply) in kinds {
        while sums.len() - first >= *count {
            // SAFETY: the caller guarantees it.
            unsafe { multiply(rows, first, steps, panel, &mut sums[first..]) };
            first += count;
        }
    }
}
