//! A problem on a device.

use burn_deepspeed_kernels::cube::{Attention, HiddenKeys, MaskArguments, Rules, Unsupported};
use cubecl::prelude::Runtime;

use crate::lab::{Element, Lab, by_head};
use crate::oracle::{Problem, assert_near};

impl Problem {
    fn masks<R: Runtime>(&self, lab: &Lab<R>) -> MaskArguments<R> {
        let flags = |bits: Vec<bool>| bits.into_iter().map(u32::from).collect::<Vec<_>>();
        let (batch, keys) = (self.batch, self.keys());
        let uniform =
            self.starts.iter().all(|start| *start == self.starts[0]) && self.ends.iter().all(|end| *end == keys);
        let mut masks = MaskArguments::new(Rules {
            causal: self.causal,
            window: self.window.map(|window| window as u32),
            softcap: self.softcap,
            start: self.starts[0] as u32,
            end: self.ends[0] as u32,
        });
        if !uniform {
            let bounds: Vec<u32> =
                self.starts.iter().zip(&self.ends).flat_map(|(start, end)| [*start as u32, *end as u32]).collect();
            masks.bounds = Some(lab.integers(&bounds, &[batch, 2]));
        }
        if self.hidden_keys {
            let positions: Vec<u32> = self.positions().into_iter().map(|position| position as u32).collect();
            masks.hidden_keys = Some(HiddenKeys {
                hidden: lab.integers(&flags(self.hidden()), &[batch, keys]),
                positions: self.slopes.then(|| lab.integers(&positions, &[batch, keys])),
            });
        }
        if self.hidden_pairs {
            masks.hidden_pairs = Some(lab.integers(&flags(self.pairs()), &[1, 1, self.tokens, keys]));
        }
        if self.bias {
            let shape = [1, self.heads, self.tokens, keys];
            masks.bias = Some(lab.floats(&self.biases(), &shape, Element::F32, 1));
        }
        if self.slopes {
            masks.slopes = Some(lab.floats(&self.slopes(), &[self.heads], Element::F32, 1));
        }
        masks
    }

    /// What a kernel makes of this problem, and what its launch said.
    pub fn run<R: Runtime, L>(
        &self,
        lab: &Lab<R>,
        element: Element,
        launch: impl FnOnce(Attention<'_, R>) -> Result<L, Unsupported>,
    ) -> (Vec<f32>, L) {
        let Self { batch, heads, kv_heads, tokens, capacity, head_dim, .. } = *self;
        let round = |value| element.round(value);
        let cache =
            |seed, pitch| lab.floats(&self.cache(round, seed), &[batch, kv_heads, capacity, head_dim], element, pitch);
        let context = lab.output(&[batch, tokens, heads * head_dim], element, 8);
        let launched = launch(Attention {
            query: &lab.floats(&self.query(round), &[batch, heads, tokens, head_dim], element, 64),
            key: &cache(2, 64),
            value: &cache(3, 16),
            context: &by_head(&context, heads),
            scale: self.scale(),
            masks: &self.masks(lab),
            keys: self.keys(),
        });
        (lab.read(&context), launched.unwrap())
    }

    /// Compares what a kernel makes of this problem with plain loops; `how` names the kernel. Returns what its launch said.
    #[track_caller]
    pub fn check<R: Runtime, L>(
        &self,
        lab: &Lab<R>,
        element: Element,
        how: &str,
        launch: impl FnOnce(Attention<'_, R>) -> Result<L, Unsupported>,
    ) -> L {
        let (context, launched) = self.run(lab, element, launch);
        let round = |value| element.round(value);
        let expected = self.solve(&self.query(round), &self.cache(round, 2), &self.cache(round, 3));
        assert_near(&format!("{how}, {element:?}, {self:?}"), &context, &expected, element.tolerance());
        launched
    }
}
