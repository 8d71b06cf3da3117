//! Memory for results.

use std::mem::MaybeUninit;

use super::pages::move_result_to_huge_pages;
use super::threads;

/// Elements that are worth another thread.
const SOME: usize = 1 << 18;

/// Elements up to which glibc keeps memory for the next result. It asks the system for more of them, which has zeros.
const MOST_KEPT: usize = 1 << 23;

/// Zeros, for a result. 1 MiB or more of them are in huge pages, with what shares the first and the last of these, and are written by all threads of the
/// current pool.
pub fn zeros(len: usize) -> Vec<f32> {
    if !(2 * SOME..=MOST_KEPT).contains(&len) || rayon::current_num_threads() == 1 {
        let zeros = vec![0.0; len];
        move_result_to_huge_pages(&zeros);
        return zeros;
    }
    let mut zeros = Vec::with_capacity(len);
    let places = &mut zeros.spare_capacity_mut()[..len];
    move_result_to_huge_pages(places);
    threads::each_part(places, SOME, |_, places| places.fill(MaybeUninit::new(0.0)));
    // SAFETY: there is room for `len` elements, and each of them was written.
    unsafe { zeros.set_len(len) };
    zeros
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::cpu::threads::Parallelism;

    #[test]
    fn zeros_are_as_many_as_asked_for() {
        for threads in [1, 2] {
            let threads = Parallelism::threads(NonZeroUsize::new(threads).expect("not zero")).expect("threads");
            for len in [0, 1, 1023, 300_000, 2 * SOME, 2_000_000, 2_000_000, MOST_KEPT + 1] {
                let mut zeros = threads.run(|| zeros(len));
                assert!(zeros.len() == len && zeros.iter().all(|zero| zero.to_bits() == 0), "{len}");
                // The next ones may be in the same memory.
                zeros.fill(1.0);
            }
        }
    }
}
