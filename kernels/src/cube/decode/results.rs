//! Where the splits leave their results, and the launch that adds them.

use cubecl::prelude::*;
use cubecl::server::Handle;

use super::UNITS;
use super::sum::{CombineSizesLaunch, combine};
use crate::contract::product;
use crate::cube::attention::AttentionSizes;
use crate::cube::contract::{Checked, f32_type};
use crate::cube::machine::{Machine, Unsupported, countable};
use crate::cube::sinks::{self, SinksLaunch};
use crate::cube::tensors::{array, head_strides};

/// The context itself where one split sees all keys; otherwise a context, a maximum and a total for each row and split.
pub(super) struct Results<'a, R: Runtime> {
    context: Checked<'a, R>,
    sinks: Option<Checked<'a, R>>,
    sizes: AttentionSizes,
    splits: usize,
    partial: Option<Handle>,
    stats: Handle,
    /// The launch of [`combine`].
    cubes: CubeCount,
    units: u32,
    /// Units that share the weights of a row.
    lanes: u32,
    /// Units of a plane.
    plane: u32,
}

impl<'a, R: Runtime> Results<'a, R> {
    /// Allocates what `splits` splits need.
    pub fn new(
        client: &ComputeClient<R>,
        machine: &Machine,
        (context, sinks): (Checked<'a, R>, Option<Checked<'a, R>>),
        sizes: AttentionSizes,
        splits: usize,
    ) -> Result<Self, Unsupported> {
        let AttentionSizes { batch, heads, tokens, value_dim, .. } = sizes;
        let rows = batch * heads * tokens;
        // What the splits leave is counted in 32 bits, too.
        countable(product(&[rows, splits, value_dim.max(2)]))?;
        let rows_of_cube = (UNITS as usize / value_dim.next_power_of_two()).max(1);
        let cubes = machine.cubes([rows.div_ceil(rows_of_cube), 1, 1])?;
        let units = machine.units((value_dim.next_power_of_two() * rows_of_cube) as u32);
        let floats = |each: usize| client.empty(rows * splits * each * size_of::<f32>());
        let plane = if machine.plane_operations { machine.plane_size } else { 1 };
        let lanes = plane.min(value_dim.next_power_of_two() as u32);
        let partial = (splits > 1).then(|| floats(value_dim));
        Ok(Self { context, sinks, sizes, splits, partial, stats: floats(2), cubes, units, lanes, plane })
    }

    fn rows(&self) -> usize {
        self.sizes.batch * self.sizes.heads * self.sizes.tokens
    }

    /// Where a split writes its context, and the type of that.
    pub fn output(&self) -> (ArrayArg<R>, StorageType) {
        match &self.partial {
            Some(partial) => (self.floats(partial, self.sizes.value_dim), f32_type()),
            None => (array(self.context), self.context.dtype),
        }
    }

    /// Where a split writes the maximum and the total of each row.
    pub fn stats(&self) -> ArrayArg<R> {
        self.floats(&self.stats, 2)
    }

    /// What a split joins to its sums: the sinks, unless [`combine`](Self::combine) does.
    pub fn sinks(&self) -> SinksLaunch<R> {
        sinks::launch(self.sinks.filter(|_| self.splits == 1))
    }

    fn floats(&self, handle: &Handle, each: usize) -> ArrayArg<R> {
        // SAFETY: `new` allocated this many.
        unsafe { ArrayArg::from_raw_parts(handle.clone(), self.rows() * self.splits * each) }
    }

    /// Adds the splits, if there are several.
    pub fn combine(self, client: &ComputeClient<R>) {
        let Some(partial) = &self.partial else { return };
        let AttentionSizes { kv_heads, tokens, value_dim, .. } = self.sizes;
        // SAFETY: the kernel keeps its row below the number of rows and its feature below the head.
        unsafe {
            combine::launch_unchecked::<R>(
                client,
                self.cubes.clone(),
                CubeDim::new_1d(self.units),
                self.floats(partial, value_dim),
                self.stats(),
                array(self.context),
                sinks::launch(self.sinks),
                CombineSizesLaunch::new(
                    self.rows() as u32,
                    kv_heads as u32,
                    self.sizes.group() as u32,
                    self.sizes.group() as u32,
                    tokens as u32,
                    self.splits as u32,
                    head_strides(self.context, 1),
                ),
                value_dim as u32,
                self.lanes,
                self.plane,
                self.context.dtype,
            );
        }
    }
}
