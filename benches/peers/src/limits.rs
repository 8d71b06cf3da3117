//! What the machine allows: a large product, and a large array read once.

use gemm::Parallelism;
use rayon::prelude::*;

use crate::call::{Call, Failure};
use crate::workload::{Workload, noise};

/// Numbers that a thread adds up side by side, so that additions do not wait for each other.
const LANES: usize = 32;

/// The `gemm` crate on square matrices.
pub fn matmul(workload: &Workload) -> Result<Call, Failure> {
    let &Workload::Matmul { size } = workload else { return Err("not a matrix product".into()) };
    let (lhs, rhs) = (noise(1, size * size, 1.0), noise(2, size * size, 1.0));
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    Ok(Box::new(move || {
        let mut product = vec![0f32; size * size];
        let (lhs, rhs, rows) = (lhs.as_ptr(), rhs.as_ptr(), size as isize);
        // SAFETY: three matrices of `size` × `size` elements, columns one behind the other.
        unsafe {
            #[rustfmt::skip]
            gemm::gemm(
                size, size, size,
                product.as_mut_ptr(), rows, 1, false,
                lhs, rows, 1,
                rhs, rows, 1,
                0.0, 1.0, false, false, false, parallelism,
            );
        }
        Ok(Box::new(move || Ok(product)))
    }))
}

/// The sum of an array, every thread its part.
pub fn read(workload: &Workload) -> Result<Call, Failure> {
    let &Workload::Read { elements } = workload else { return Err("not an array to read".into()) };
    let array = vec![1f32; elements];
    let part = elements.div_ceil(rayon::current_num_threads());
    Ok(Box::new(move || {
        let total: f32 = array.par_chunks(part).map(sum).sum();
        Ok(Box::new(move || Ok(vec![total])))
    }))
}

fn sum(part: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (blocks, rest) = part.as_chunks::<LANES>();
    for block in blocks {
        sums.iter_mut().zip(block).for_each(|(sum, element)| *sum += element);
    }
    sums.iter().chain(rest).sum()
}
