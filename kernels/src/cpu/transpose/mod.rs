//! Rows that become lanes, and lanes that become rows: `[rows, features]` and `[features, lanes]`.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod small;

#[cfg(target_arch = "x86_64")]
pub(super) use avx512::transposed;

#[cfg(target_arch = "x86_64")]
use super::x86::has_avx512;

/// Packs rows of the same length into lanes: feature `f` of row `r` goes to `f * lanes + r`.
#[inline(always)]
pub(super) fn into_lanes<'a>(row: impl Fn(usize) -> &'a [f32], lanes: usize, into: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::into_lanes(row, lanes, into) };
    }
    small::into_lanes(row, lanes, into);
}

/// The inverse, for the first `count` rows: row `r` gets its feature `f` from `f * lanes + r`.
#[inline(always)]
pub(super) fn out_of_lanes<'a>(from: &[f32], lanes: usize, count: usize, row: impl Fn(usize) -> &'a mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::out_of_lanes(from, lanes, count, row) };
    }
    small::out_of_lanes(from, lanes, count, row);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lanes and features: whole squares of 4 and of 16, others, and no features.
    const SIZES: [(usize, usize); 9] =
        [(1, 5), (4, 4), (6, 7), (16, 3), (16, 16), (17, 33), (48, 40), (64, 100), (64, 0)];

    /// `[lanes, features]`.
    fn rows(lanes: usize, features: usize) -> Vec<f32> {
        (0..lanes * features).map(|at| at as f32).collect()
    }

    #[test]
    fn rows_of_any_length_are_packed_into_lanes() {
        type Pack = fn(&[f32], usize, usize, &mut [f32]);
        let packs: [Pack; 2] = [
            |rows, features, lanes, into| into_lanes(|lane| &rows[lane * features..][..features], lanes, into),
            |rows, features, lanes, into| small::into_lanes(|lane| &rows[lane * features..][..features], lanes, into),
        ];
        for (lanes, features) in SIZES {
            let rows = rows(lanes, features);
            for pack in packs {
                let mut into = vec![f32::NAN; rows.len()];
                pack(&rows, features, lanes, &mut into);
                for (at, element) in into.into_iter().enumerate() {
                    assert_eq!(element, rows[at % lanes * features + at / lanes], "{lanes} lanes, element {at}");
                }
            }
        }
    }

    #[test]
    fn lanes_become_rows_of_any_length_and_others_are_left() {
        for (lanes, features) in SIZES {
            let rows = rows(lanes, features);
            let mut packed = vec![f32::NAN; rows.len()];
            into_lanes(|lane| &rows[lane * features..][..features], lanes, &mut packed);
            let counts = [lanes, lanes.div_ceil(2), 1];
            for (count, in_small_squares) in counts.into_iter().flat_map(|count| [(count, false), (count, true)]) {
                let mut places = vec![f32::NAN; rows.len()];
                let cells =
                    std::cell::RefCell::new(places.chunks_exact_mut(features.max(1)).map(Some).collect::<Vec<_>>());
                let place = |lane: usize| match features {
                    0 => &mut [][..],
                    _ => cells.borrow_mut()[lane].take().expect("each row is written once"),
                };
                match in_small_squares {
                    true => small::out_of_lanes(&packed, lanes, count, place),
                    false => out_of_lanes(&packed, lanes, count, place),
                }
                drop(cells);
                assert_eq!(places[..count * features], rows[..count * features], "{lanes} lanes, {count} rows");
                assert!(places[count * features..].iter().all(|place| place.is_nan()), "{lanes} lanes, {count} rows");
            }
        }
    }
}
