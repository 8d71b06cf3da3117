//! Which kernel multiplies rows with a matrix of blocks.

use super::{Declined, Plan, is_cpu_float};
use crate::block::BlockFormat;
use crate::element::ElementType;

/// Rows up to which a kernel of CubeCL multiplies a matrix without Burn's matmul: each row of sums stays in registers.
pub const MOST_GEMV_ROWS: usize = 8;

/// What the choice for a product with the outputs of one format depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockProblem {
    /// Element type of the rows.
    pub dtype: ElementType,
    /// Rows of the input, of all sequences.
    pub rows: usize,
    /// The format of the outputs.
    pub format: BlockFormat,
}

impl BlockProblem {
    /// The path on the CPU kernels.
    pub fn on_cpu(&self) -> Plan {
        match is_cpu_float(self.dtype) {
            true => Plan::Kernel("cpu::product"),
            false => Plan::Reference(Declined::ElementType(self.dtype)),
        }
    }

    /// The CubeCL kernel that reads the blocks.
    ///
    /// # Errors
    /// The reason, if there is none.
    pub fn on_cube(&self) -> Result<BlockKernel, Declined> {
        match self.dtype {
            ElementType::F32 | ElementType::F16 | ElementType::BF16 => {
                Ok(self.on_gemv().map_or(BlockKernel::Dequantise, |()| BlockKernel::Gemv))
            }
            other => Err(Declined::ElementType(other)),
        }
    }

    /// Whether the CubeCL kernel for a few rows multiplies the blocks as they are stored.
    ///
    /// # Errors
    /// The reason, if it does not. [`BlockKernel::Dequantise`] takes its place.
    pub fn on_gemv(&self) -> Result<(), Declined> {
        use BlockFormat::{MXFP4, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
        if self.rows > MOST_GEMV_ROWS {
            return Err(Declined::Rows { rows: self.rows, limit: MOST_GEMV_ROWS });
        }
        match self.format {
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q4_K | Q5_K | Q6_K | MXFP4 => Ok(()),
            other => Err(Declined::BlockFormat(other)),
        }
    }
}

/// A CubeCL kernel that reads blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKernel {
    /// A few rows: each block is read once, as it is stored, for all of them.
    Gemv,
    /// Some outputs become dense at a time, and Burn's matmul multiplies them.
    Dequantise,
}

impl BlockKernel {
    /// The kernel's module in `burn-deepspeed-kernels`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gemv => "cube::gemv",
            Self::Dequantise => "cube::dequantise",
        }
    }
}

impl From<Result<BlockKernel, Declined>> for Plan {
    fn from(chosen: Result<BlockKernel, Declined>) -> Self {
        chosen.map_or_else(Self::Reference, |kernel| Self::Kernel(kernel.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_rows_multiply_blocks_and_others_make_them_dense() {
        let problem = BlockProblem { dtype: ElementType::F16, rows: 8, format: BlockFormat::Q6_K };
        assert_eq!(problem.on_cube(), Ok(BlockKernel::Gemv));
        let many = BlockProblem { rows: 9, ..problem };
        assert_eq!(many.on_cube(), Ok(BlockKernel::Dequantise));
        assert_eq!(many.on_gemv(), Err(Declined::Rows { rows: 9, limit: 8 }));
        let other = BlockProblem { format: BlockFormat::IQ4_NL, ..problem };
        assert_eq!(Plan::from(other.on_cube()), Plan::Kernel("cube::dequantise"));
        let reason = other.on_gemv().map_err(|reason| reason.to_string());
        assert_eq!(reason, Err("the kernel does not read blocks of IQ4_NL as they are stored".into()));
        let double = BlockProblem { dtype: ElementType::F64, ..problem };
        assert_eq!(double.on_cube(), Err(Declined::ElementType(ElementType::F64)));
        assert_eq!(double.on_cpu(), Plan::Reference(Declined::ElementType(ElementType::F64)));
        assert_eq!(BlockProblem { dtype: ElementType::F32, ..problem }.on_cpu(), Plan::Kernel("cpu::product"));
    }
}
