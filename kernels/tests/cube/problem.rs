//! A problem on a device.

use burn_deepspeed_kernels::cube::{Attention, CacheTensor, HiddenKeys, MaskArguments, Rules, Unsupported};
use cubecl::prelude::Runtime;

use crate::lab::{Element, Lab, Tensor, by_head};
use crate::oracle::{Problem, assert_near};

/// Which parts of the cache are int8.
#[derive(Debug, Clone, Copy, Default)]
pub struct Int8 {
    pub keys: bool,
    pub values: bool,
    /// A slot of each head whose first feature was NaN when it was written; of the values alone, if neither are int8.
    pub strange: Option<usize>,
}

impl Int8 {
    pub const KEYS: Self = Self { keys: true, values: false, strange: None };
    pub const VALUES: Self = Self { keys: false, values: true, strange: None };
    pub const BOTH: Self = Self { keys: true, values: true, strange: None };
    pub const ALL: [Self; 3] = [Self::KEYS, Self::VALUES, Self::BOTH];
}

/// The int8 elements and the scale of a head.
pub fn quantised(features: &[f32]) -> (Vec<i8>, f32) {
    if features.iter().any(|value| !value.is_finite()) {
        return (vec![0; features.len()], f32::NAN);
    }
    let scale = features.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) / 127.0;
    let element =
        |value: &f32| if scale > 0.0 { (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 };
    (features.iter().map(element).collect(), scale)
}

/// Keys or values on the device, and the numbers that they represent.
struct Side<R: Runtime> {
    worth: Vec<f32>,
    elements: Tensor<R>,
    scales: Option<Tensor<R>>,
}

impl<R: Runtime> Side<R> {
    fn tensor(&self) -> CacheTensor<'_, R> {
        CacheTensor { elements: &self.elements, scales: self.scales.as_ref() }
    }

    /// The first `features` of each head, in the same memory.
    fn first(&self, features: usize) -> Self {
        let size = self.elements.shape()[3];
        let worth = self.worth.chunks(size).flat_map(|head| &head[..features]).copied().collect();
        let of = |tensor: &Tensor<R>, shape: Vec<usize>| {
            Tensor::new(tensor.handle.clone(), shape, tensor.strides().to_vec(), tensor.dtype)
        };
        let mut shape = self.elements.shape().to_vec();
        shape[3] = features;
        let scales = self.scales.as_ref().map(|scales| of(scales, scales.shape().to_vec()));
        Self { worth, elements: of(&self.elements, shape), scales }
    }
}

/// Keys (seed 2) or values (seed 3), their rows padded to a multiple of `pitch`. Where they are int8, a slot that no query may
/// read holds elements like any other, and a scale of NaN.
fn side<R: Runtime>(problem: &Problem, lab: &Lab<R>, element: Element, int8: Int8, seed: u64, pitch: usize) -> Side<R> {
    let Problem { batch, kv_heads, capacity, .. } = *problem;
    let size = problem.features(seed);
    let shape = [batch, kv_heads, capacity, size];
    let mut worth = problem.cache(|value| element.round(value), seed);
    if !(if seed == 2 { int8.keys } else { int8.values }) {
        if let Some(slot) = int8.strange.filter(|_| seed == 3 && !int8.keys) {
            worth.chunks_mut(size).skip(slot).step_by(capacity).for_each(|features| features[0] = f32::NAN);
        }
        let elements = lab.floats(&worth, &shape, element, pitch);
        return Side { worth, elements, scales: None };
    }
    let (mut elements, mut scales) = (Vec::new(), Vec::new());
    for (at, features) in worth.chunks_mut(size).enumerate() {
        let dead = features[0].is_nan();
        if int8.strange == Some(at % capacity) {
            features[0] = f32::NAN;
        }
        let (quantised, scale) = quantised(features);
        features.iter_mut().zip(&quantised).for_each(|(feature, element)| *feature = f32::from(*element) * scale);
        elements.extend(quantised.iter().map(|element| if dead { 99 } else { *element }));
        scales.push(scale);
    }
    let elements = lab.bytes(&elements, &shape, pitch);
    Side { worth, elements, scales: Some(lab.floats(&scales, &shape[..3], Element::F32, 3)) }
}

fn masks<R: Runtime>(problem: &Problem, lab: &Lab<R>, element: Element) -> MaskArguments<R> {
    let flags = |bits: Vec<bool>| bits.into_iter().map(u32::from).collect::<Vec<_>>();
    let (batch, keys) = (problem.batch, problem.keys());
    let uniform =
        problem.starts.iter().all(|start| *start == problem.starts[0]) && problem.ends.iter().all(|end| *end == keys);
    let mut masks = MaskArguments::new(Rules {
        causal: problem.causal,
        window: problem.window,
        softcap: problem.softcap,
        start: problem.starts[0] as u32,
        end: problem.ends[0] as u32,
    });
    if !uniform {
        let bounds: Vec<u32> =
            problem.starts.iter().zip(&problem.ends).flat_map(|(start, end)| [*start as u32, *end as u32]).collect();
        masks.bounds = Some(lab.integers(&bounds, &[batch, 2]));
    }
    if problem.hidden_keys {
        let positions: Vec<u32> = problem.positions().into_iter().map(|position| position as u32).collect();
        masks.hidden_keys = Some(HiddenKeys {
            hidden: lab.integers(&flags(problem.hidden()), &[batch, keys]),
            positions: problem.slopes.then(|| lab.integers(&positions, &[batch, keys])),
        });
        let origins: Vec<u32> = problem.origins().into_iter().map(|origin| origin as u32).collect();
        masks.origins = Some(lab.integers(&origins, &[batch]));
    }
    if problem.hidden_pairs {
        masks.hidden_pairs = Some(lab.integers(&flags(problem.pairs()), &[1, 1, problem.tokens, keys]));
    }
    if problem.bias {
        let shape = [1, problem.heads, problem.tokens, keys];
        let element = if problem.bias_of_elements { element } else { Element::F32 };
        masks.bias = Some(lab.floats(&problem.biases(), &shape, element, 1));
    }
    if problem.slopes {
        masks.slopes = Some(lab.floats(&problem.slopes(), &[problem.heads], Element::F32, 1));
    }
    masks
}

/// The result of a kernel, the expected one, and what the launch returned.
fn solved<R: Runtime, L>(
    problem: &Problem,
    lab: &Lab<R>,
    element: Element,
    int8: Int8,
    launch: impl FnOnce(Attention<'_, R>) -> Result<L, Unsupported>,
) -> (Vec<f32>, Vec<f64>, L) {
    let Problem { batch, heads, tokens, head_dim, value_dim, .. } = *problem;
    let query = problem.query(|value| element.round(value));
    let key = side(problem, lab, element, int8, 2, 64);
    let value = match problem.keys_are_values {
        true => key.first(value_dim),
        false => side(problem, lab, element, int8, 3, 16),
    };
    let context = lab.output(&[batch, tokens, heads * value_dim], element, 8);
    let sinks = problem.sinks().map(|sinks| lab.floats(&sinks, &[heads], Element::F32, 1));
    let launched = launch(Attention {
        query: &lab.floats(&query, &[batch, heads, tokens, head_dim], element, 64),
        key: key.tensor(),
        value: value.tensor(),
        context: &by_head(&context, heads),
        scale: problem.scale(),
        sinks: sinks.as_ref(),
        masks: &masks(problem, lab, element),
        keys: problem.keys(),
    });
    (lab.read(&context), problem.solve(&query, &key.worth, &value.worth), launched.unwrap())
}

/// The result of a kernel, and what the launch returned.
pub fn run<R: Runtime, L>(
    problem: &Problem,
    lab: &Lab<R>,
    element: Element,
    launch: impl FnOnce(Attention<'_, R>) -> Result<L, Unsupported>,
) -> (Vec<f32>, L) {
    let (context, _, launched) = solved(problem, lab, element, Int8::default(), launch);
    (context, launched)
}

/// Compares the result of a kernel with plain loops; `how` names the kernel. Returns what the launch returned.
#[track_caller]
pub fn compare<R: Runtime, L>(
    problem: &Problem,
    lab: &Lab<R>,
    element: Element,
    int8: Int8,
    how: &str,
    launch: impl FnOnce(Attention<'_, R>) -> Result<L, Unsupported>,
) -> L {
    let (mut context, mut expected, launched) = solved(problem, lab, element, int8, launch);
    context.iter_mut().for_each(|value| *value /= problem.magnitude);
    expected.iter_mut().for_each(|value| *value /= f64::from(problem.magnitude));
    let what = format!("{how}, {element:?}, {int8:?}, {problem:?}");
    assert_near(&what, &context, &expected, element.tolerance());
    launched
}
