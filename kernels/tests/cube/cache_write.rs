//! Splitting, rotating and appending.

use burn_deepspeed_core::kv_source::KvSource;
use burn_deepspeed_core::layout::RotaryLayout;
use burn_deepspeed_core::qk_norm::{QkNormKind, QkNormWeights};
use burn_deepspeed_kernels::cube::cache_write::{
    CacheWrite, HeadNorm, Rotation, Squares, Sums, launch, launch_squares,
};
use burn_deepspeed_kernels::cube::{CacheTensor, Machine, TensorHandle, Unsupported};
use cubecl::prelude::*;

use crate::lab::{Element, Lab, Tensor, elements_and_planes, lab, some};
use crate::oracle::{self, NORMS, assert_near, noise};
use crate::problem::quantised;

struct Case {
    /// Query heads, key heads, new tokens, capacity, head size.
    sizes: [usize; 5],
    /// First new slot and end of each row.
    rows: Vec<[usize; 2]>,
    rotary: Option<(RotaryLayout, usize)>,
    /// Whether each row has its own angles.
    own_angles: bool,
    /// Whether keys are int8, and values.
    int8: [bool; 2],
    norm: Option<Norm>,
    /// Whether queries have factors.
    factors: bool,
    /// What the projection holds besides queries.
    source: KvSource,
}

/// A norm of queries and keys.
#[derive(Debug, Clone, Copy)]
struct Norm {
    kind: QkNormKind,
    plus_one: bool,
    after_rotation: bool,
    values: bool,
    weights: QkNormWeights,
}

const EPSILON: f32 = 0.01;

/// A case without a norm and without factors.
fn plain() -> Case {
    let rows = Vec::new();
    Case {
        sizes: [0; 5],
        rows,
        rotary: None,
        own_angles: false,
        int8: [false; 2],
        norm: None,
        factors: false,
        source: KvSource::Own,
    }
}

/// Keys or values before a launch, and their tensors.
struct Side {
    old: Vec<f32>,
    old_scales: Vec<f32>,
    elements: Tensor,
    scales: Option<Tensor>,
}

impl Side {
    /// `shape` is that of the cache; rows are padded to a multiple of `pitch`.
    fn new(lab: &Lab, shape: [usize; 4], element: Element, int8: bool, seed: u64, pitch: usize) -> Self {
        let old = noise(shape.iter().product(), seed);
        let old_scales = noise(shape[..3].iter().product(), seed + 10);
        if int8 {
            let old: Vec<i8> = old.iter().map(|x| (x * 100.0) as i8).collect();
            let scales = lab.floats(&old_scales, &shape[..3], Element::F32, 5);
            let elements = lab.bytes(&old, &shape, pitch);
            let old = old.into_iter().map(f32::from).collect();
            return Self { old, old_scales, elements, scales: Some(scales) };
        }
        let old: Vec<f32> = old.iter().map(|x| element.round(*x)).collect();
        let elements = lab.floats(&old, &shape, element, pitch);
        Self { old, old_scales, elements, scales: None }
    }

    /// Compares with what the features of the new tokens, by head and slot, should have become.
    fn check(&self, lab: &Lab, what: &str, new: impl Fn(usize) -> Option<Vec<f64>>, tolerance: f64) {
        let head_dim = self.elements.shape()[3];
        let elements = lab.read(&self.elements);
        let scales = self.scales.as_ref().map(|scales| lab.read(scales));
        for (at, old) in self.old.chunks(head_dim).enumerate() {
            let found = &elements[at * head_dim..][..head_dim];
            let what = format!("{what}, head and slot {at}");
            match (new(at), &scales) {
                (None, scales) => {
                    assert_eq!(found, old, "{what}");
                    assert!(scales.as_ref().is_none_or(|scales| scales[at] == self.old_scales[at]), "{what}");
                }
                (Some(features), None) => assert_near(&what, found, &features, tolerance),
                (Some(features), Some(scales)) => {
                    let scale = f64::from(scales[at]);
                    let largest = features.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
                    assert_near(&what, &[scales[at] * 127.0], &[largest], tolerance.max(1e-6));
                    for (element, x) in found.iter().zip(features) {
                        let off = (f64::from(*element) * scale - x).abs();
                        assert!(off <= scale * 0.5001 + tolerance, "{what}: {x} became {element} of {scale}");
                    }
                }
            }
        }
    }
}

impl Case {
    fn check(&self, element: Element) {
        self.check_with(element, true);
    }

    /// On the device as it is, and as if it had one multiprocessor: that is filled if a unit moves several heads.
    fn check_with(&self, element: Element, planes: bool) {
        let lab = lab(planes);
        self.check_on(&lab, lab.machine, element);
        self.check_on(&lab, Machine { processors: 1, ..lab.machine }, element);
    }

    fn check_on(&self, lab: &Lab, machine: Machine, element: Element) {
        let [heads, kv_heads, tokens, capacity, head_dim] = self.sizes;
        let batch = self.rows.len();
        let all_heads = heads + self.source.projected() * kv_heads;
        let qkv: Vec<f32> = noise(batch * tokens * all_heads * head_dim, 1).iter().map(|x| element.round(*x)).collect();
        let half = self.rotary.map_or(0, |(_, dim)| dim / 2);
        let table_rows = if self.own_angles { batch } else { 1 };
        let angles = noise(table_rows * tokens * half, 4);
        let rotation = self.rotary.map(|(layout, _)| {
            let part = |part: fn(f32) -> f32| {
                let values: Vec<f32> = angles.iter().map(|angle| part(*angle * 3.0)).collect();
                lab.floats(&values, &[table_rows, tokens, half], Element::F32, 4)
            };
            Rotation { layout, cos: part(f32::cos), sin: part(f32::sin) }
        });
        let widths = [heads, kv_heads].map(|heads| heads * head_dim);
        // Sums as of three ranks.
        let all_features = widths.map(|width| 3 * width);
        let sums: Vec<f64> = qkv
            .chunks(all_heads * head_dim)
            .flat_map(|token| {
                let sum = |part: &[f32]| 3.0 * part.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                let keys = &token[widths[0]..];
                [sum(&token[..widths[0]]), sum(&keys[..widths[1].min(keys.len())])]
            })
            .collect();
        let weight_rows = |heads| self.norm.and_then(|norm| norm.weights.rows(heads)).unwrap_or(0);
        let weights = [(heads, 7), (kv_heads, 8)].map(|(heads, seed)| noise(weight_rows(heads) * head_dim, seed));
        let norm = self.norm.map(|Norm { kind, plus_one, after_rotation, values, weights: rows }| HeadNorm {
            kind,
            epsilon: EPSILON,
            plus_one,
            after_rotation,
            values,
            weights: (rows != QkNormWeights::None).then(|| {
                let tensor =
                    |side: usize, heads| lab.floats(&weights[side], &[weight_rows(heads), head_dim], Element::F32, 8);
                let query = tensor(0, heads);
                if self.source.is_own() { [query, tensor(1, kv_heads)] } else { [query.clone(), query] }
            }),
            sums: (kind == QkNormKind::RmsOfAllHeads).then(|| {
                let sums: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
                Sums { sums: lab.floats(&sums, &[batch, tokens, 2], Element::F32, 4), features: all_features }
            }),
        });
        let factors = noise(table_rows * tokens, 9);
        let factor_tensor = lab.floats(&factors, &[table_rows, tokens], Element::F32, 4);
        let query = lab.output(&[batch, heads, tokens, head_dim], element, 16);
        let shape = [batch, kv_heads, capacity, head_dim];
        let key = Side::new(lab, shape, element, self.int8[0], 2, 32);
        let value = Side::new(lab, shape, element, self.int8[1], 3, 64);
        let uniform = self.rows.windows(2).all(|pair| pair[0] == pair[1]);
        let bounds: Vec<u32> = self.rows.iter().flatten().map(|bound| *bound as u32).collect();
        let bounds = lab.integers(&bounds, &[batch, 2]);
        let arguments = CacheWrite {
            qkv: &lab.floats(&qkv, &[batch, tokens, all_heads * head_dim], element, 48),
            source: self.source,
            query: &query,
            key: CacheTensor { elements: &key.elements, scales: key.scales.as_ref() },
            value: CacheTensor { elements: &value.elements, scales: value.scales.as_ref() },
            norm: norm.as_ref(),
            rotation: rotation.as_ref(),
            factors: self.factors.then_some(&factor_tensor),
            bounds: (!uniform).then_some(&bounds),
            start: self.rows[0][0] as u32,
            end: self.rows[0][1] as u32,
        };
        assert_eq!(launch(&lab.client, &machine, arguments), Ok(()));

        let token = |b: usize, t: usize| {
            let token = &qkv[(b * tokens + t) * all_heads * head_dim..][..all_heads * head_dim];
            token.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>()
        };
        let moved = |b: usize, t: usize, head: usize| {
            let token = token(b, t);
            let features = &token[head * head_dim..][..head_dim];
            let row = b % table_rows * tokens + t;
            let normed = |x: &[f64]| {
                let Some(norm) = self.norm else { return x.to_vec() };
                let side = usize::from(head >= heads);
                let head = head - side * heads;
                let mean = sums[(b * tokens + t) * 2 + side] / all_features[side] as f64;
                let weight = |d: usize| match weights[side].len() / head_dim {
                    0 => 1.0,
                    rows => f64::from(weights[side][head % rows * head_dim + d]) + f64::from(u8::from(norm.plus_one)),
                };
                let mean = (norm.kind == QkNormKind::RmsOfAllHeads).then_some(mean);
                oracle::normalised(x, norm.kind, f64::from(EPSILON), mean, weight)
            };
            let rotated = |x: &[f64]| match self.rotary {
                Some((layout, _)) => {
                    let angles: Vec<f64> =
                        angles[row * half..][..half].iter().map(|angle| f64::from(*angle * 3.0)).collect();
                    oracle::rotated(x, layout, &angles)
                }
                None => x.to_vec(),
            };
            let after = self.norm.is_some_and(|norm| norm.after_rotation);
            let moved = if after { normed(&rotated(features)) } else { rotated(&normed(features)) };
            let factor = if self.factors && head < heads { f64::from(factors[row]) } else { 1.0 };
            moved.into_iter().map(|x| x * factor).collect::<Vec<f64>>()
        };
        let mut expected_query = Vec::new();
        for b in 0..batch {
            for head in 0..heads {
                expected_query.extend((0..tokens).flat_map(|t| moved(b, t, head)));
            }
        }
        // The row, head and new token that a head of the cache holds.
        let new = |at: usize| {
            let (b, head, slot) = (at / capacity / kv_heads, at / capacity % kv_heads, at % capacity);
            let [start, end] = self.rows[b];
            let written = self.source.is_own() && (start..end).contains(&slot);
            written.then(|| (b, head, slot - start))
        };
        let new_key = |at| new(at).map(|(b, head, t)| moved(b, t, heads + head));
        let first_value = all_heads - kv_heads.min(all_heads);
        let norm_of_values = self.norm.is_some_and(|norm| norm.values);
        let new_value = |at| {
            let (b, head, t) = new(at)?;
            let features = token(b, t)[(first_value + head) * head_dim..][..head_dim].to_vec();
            Some(match norm_of_values {
                true => oracle::normalised(&features, QkNormKind::Rms, f64::from(EPSILON), None, |_| 1.0),
                false => features,
            })
        };
        let Self { sizes, rows, rotary, int8, norm, factors, source, .. } = self;
        let what =
            format!("{element:?} {sizes:?} {rows:?} {rotary:?} int8 {int8:?} {norm:?} factors {factors} {source:?}");
        assert_near(&format!("query, {what}"), &lab.read(&query), &expected_query, element.tolerance());
        key.check(lab, &format!("key, {what}"), new_key, element.tolerance());
        let tolerance = if norm_of_values { element.tolerance() } else { 0.0 };
        value.check(lab, &format!("value, {what}"), new_value, tolerance);
    }
}

#[test]
fn both_layouts_rotate_the_right_features_and_append_in_place() {
    use RotaryLayout::{Half, Interleaved};
    let rotaries =
        [None, Some((Half, 8)), Some((Half, 6)), Some((Half, 40)), Some((Interleaved, 40)), Some((Interleaved, 6))];
    for &element in Element::ALL {
        for rotary in some(rotaries) {
            let rows = vec![[0, 3], [5, 8]];
            Case { sizes: [6, 2, 3, 11, 40], rows, rotary, own_angles: true, int8: [false; 2], ..plain() }
                .check(element);
        }
    }
    let odd = [(Some((Half, 2)), 7), (Some((Interleaved, 6)), 7), (Some((Half, 128)), 128), (None, 1)];
    for (rotary, head_dim) in some(odd) {
        let rows = vec![[4, 5], [4, 5], [4, 5]];
        Case { sizes: [3, 3, 1, 5, head_dim], rows, rotary, own_angles: false, int8: [false; 2], ..plain() }
            .check(Element::F32);
    }
}

/// Rows of 4 tokens with other numbers of new ones. The second row ends after the 9 slots of its cache.
const FEWER: [[usize; 2]; 4] = [[2, 3], [7, 11], [6, 6], [0, 4]];

#[test]
fn rows_with_fewer_new_tokens_keep_their_other_slots() {
    let rows = FEWER.to_vec();
    let rotary = Some((RotaryLayout::Half, 16));
    Case { sizes: [2, 1, 4, 9, 16], rows, rotary, own_angles: true, int8: [false; 2], ..plain() }.check(Element::F32);
}

const INT8: [[bool; 2]; 3] = [[true, false], [false, true], [true, true]];

#[test]
fn int8_holds_the_nearest_of_every_head_size() {
    use RotaryLayout::{Half, Interleaved};
    let rotaries = [None, Some((Half, 40)), Some((Half, 6)), Some((Interleaved, 40)), Some((Interleaved, 6))];
    for (element, planes) in elements_and_planes() {
        for (at, rotary) in some(rotaries.into_iter().enumerate()) {
            let rows = vec![[0, 3], [5, 8]];
            let case = Case { sizes: [6, 2, 3, 11, 40], rows, rotary, own_angles: true, int8: INT8[at % 3], ..plain() };
            case.check_with(element, planes);
        }
    }
    for (at, head_dim) in some([1, 7, 8, 80, 96, 128, 160, 255, 256, 512].into_iter().enumerate()) {
        let rows = vec![[4, 5], [4, 5], [4, 5]];
        let case = Case {
            sizes: [3, 3, 1, 5, head_dim],
            rows,
            rotary: None,
            own_angles: false,
            int8: INT8[at % 3],
            ..plain()
        };
        case.check(Element::ALL[at % 2]);
        case.check_with(Element::F32, false);
    }
}

#[test]
fn rows_with_fewer_new_tokens_keep_their_other_slots_in_int8() {
    let rows = FEWER.to_vec();
    let rotary = Some((RotaryLayout::Half, 16));
    for int8 in INT8 {
        let case = Case { sizes: [2, 1, 4, 9, 16], rows: rows.clone(), rotary, own_angles: true, int8, ..plain() };
        case.check_with(Element::F32, true);
        case.check_with(Element::F32, false);
    }
}

/// The norm `at` of the oracle's, with one of the forms that its weights may have.
fn norm(at: usize) -> Option<Norm> {
    let (kind, plus_one, after_rotation) = NORMS[at % NORMS.len()];
    let forms = [QkNormWeights::Shared, QkNormWeights::PerHead, QkNormWeights::None];
    // 1 is added to weights that there are.
    let weights = forms[if plus_one { at % 2 } else { at % 3 }];
    Some(Norm { kind, plus_one, after_rotation, values: false, weights })
}

#[test]
fn norms_come_before_the_rotation_or_after_it() {
    use RotaryLayout::{Half, Interleaved};
    let rotaries = [Some((Half, 40)), None, Some((Interleaved, 40)), Some((Half, 6)), Some((Interleaved, 6))];
    for (element, planes) in elements_and_planes() {
        for at in some(0..if element == Element::F32 { 12 } else { 6 }) {
            let int8 = [[false; 2], INT8[0], INT8[1], INT8[2]][(at / 2) % 4];
            let (rotary, rows) = (rotaries[at % 5], vec![[0, 3], [5, 8]]);
            let sizes = [6, 2, 3, 11, 40];
            let case = Case {
                sizes,
                rows,
                rotary,
                own_angles: at % 2 == 0,
                int8,
                norm: norm(at),
                factors: at % 4 == 1,
                ..plain()
            };
            case.check_with(element, planes);
        }
    }
}

/// Gemma 4 normalises values; in its full layers they are the keys, and its last layers project queries alone.
#[test]
fn values_are_normalised_taken_from_keys_or_left_to_another_layer() {
    use RotaryLayout::{Half, Interleaved};
    let sources = [KvSource::Own, KvSource::KeysAreValues, KvSource::Layer(0)];
    let norms = [None, Some(false), Some(true)];
    for (element, planes) in elements_and_planes() {
        for at in some(0..18) {
            let (source, norm) = (sources[at % 3], norms[at / 3 % 3]);
            let norm = norm.map(|after_rotation| Norm {
                kind: QkNormKind::Rms,
                plus_one: at % 2 == 0,
                after_rotation,
                values: true,
                weights: [QkNormWeights::PerHead, QkNormWeights::Shared][at / 9],
            });
            let rotary = [Some((Half, 40)), Some((Interleaved, 6)), None][at / 2 % 3];
            let int8 = [[false; 2], INT8[0], INT8[1], INT8[2]][at % 4];
            let rows = vec![[0, 3], [5, 7]];
            let case = Case { sizes: [6, 2, 3, 11, 40], rows, rotary, int8, norm, source, ..plain() };
            case.check_with(element, planes);
        }
    }
}

#[test]
fn norms_of_every_head_size_agree_with_plain_loops() {
    for (at, head_dim) in some([1, 7, 8, 80, 96, 128, 160, 255, 256, 512].into_iter().enumerate()) {
        let rows = vec![[4, 5], [4, 5], [4, 5]];
        let rotary = (head_dim % 2 == 0).then_some((RotaryLayout::Half, head_dim));
        let int8 = [at % 3 == 2; 2];
        let case = Case {
            sizes: [3, 3, 1, 5, head_dim],
            rows,
            rotary,
            own_angles: false,
            int8,
            norm: norm(at),
            factors: true,
            ..plain()
        };
        case.check(Element::ALL[at % 2]);
        case.check_with(Element::F32, false);
    }
}

#[test]
fn rows_with_fewer_new_tokens_keep_their_other_slots_under_a_norm() {
    let rows = FEWER.to_vec();
    let rotary = Some((RotaryLayout::Half, 16));
    for int8 in [[false; 2], [true; 2]] {
        let (rows, norm) = (rows.clone(), norm(2));
        let case =
            Case { sizes: [2, 1, 4, 9, 16], rows, rotary, own_angles: true, int8, norm, factors: true, ..plain() };
        case.check_with(Element::F32, true);
        case.check_with(Element::F32, false);
    }
}

#[test]
fn factors_need_no_norm() {
    for (rotary, int8) in [(None, [false; 2]), (Some((RotaryLayout::Interleaved, 6)), [true, false])] {
        let rows = vec![[1, 4], [1, 4]];
        let case = Case { sizes: [4, 2, 3, 5, 8], rows, rotary, own_angles: true, int8, factors: true, ..plain() };
        case.check(Element::F32);
    }
}

/// A NaN in a head of queries or keys stays there, and one in a value changes no other.
#[test]
fn a_head_that_is_not_finite_changes_no_other() {
    for (element, planes) in elements_and_planes() {
        let lab = lab(planes);
        for at in 0..3 {
            let mut qkv: Vec<f32> = (0..24).map(|at| (at % 7) as f32 - 2.5).collect();
            qkv[8 * at + 3] = f32::NAN;
            let [query, key, value] = [(); 3].map(|()| lab.output(&[1, 1, 1, 8], element, 1));
            let norm = HeadNorm {
                kind: QkNormKind::LayerNorm,
                epsilon: EPSILON,
                plus_one: false,
                after_rotation: false,
                values: false,
                weights: None,
                sums: None,
            };
            let arguments = CacheWrite {
                qkv: &lab.floats(&qkv, &[1, 1, 24], element, 1),
                source: KvSource::Own,
                query: &query,
                key: CacheTensor::floats(&key),
                value: CacheTensor::floats(&value),
                norm: Some(&norm),
                rotation: None,
                factors: None,
                bounds: None,
                start: 0,
                end: 1,
            };
            assert_eq!(launch(&lab.client, &lab.machine, arguments), Ok(()));
            let nan = [&query, &key, &value].map(|tensor| lab.read(tensor).iter().filter(|x| x.is_nan()).count());
            let mut expected = [0; 3];
            expected[at] = if at == 2 { 1 } else { 8 };
            assert_eq!(nan, expected);
            let copied = lab.read(&value).into_iter().zip(&qkv[16..]);
            assert!(copied.into_iter().all(|(found, given)| found == *given || found.is_nan() && given.is_nan()));
        }
    }
}

#[test]
fn squares_of_all_heads_are_added_in_f32() {
    for (element, planes) in elements_and_planes() {
        let lab = lab(planes);
        for [batch, tokens, queries, keys, rest] in
            [[2, 3, 400, 80, 8], [1, 2, 7, 21, 3], [3, 1, 1024, 256, 256], [1, 1, 6, 0, 0]]
        {
            let width = queries + keys + rest;
            let qkv: Vec<f32> = noise(batch * tokens * width, 1).iter().map(|x| element.round(*x)).collect();
            let sums = lab.output(&[batch, tokens, 2], Element::F32, 4);
            let qkv_tensor = lab.floats(&qkv, &[batch, tokens, width], element, 16);
            let arguments = Squares { qkv: &qkv_tensor, features: [queries, keys], sums: &sums };
            assert_eq!(launch_squares(&lab.client, &lab.machine, arguments), Ok(()));
            let expected: Vec<f64> = qkv
                .chunks(width)
                .flat_map(|token| {
                    let sum = |part: &[f32]| part.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                    [sum(&token[..queries]), sum(&token[queries..queries + keys])]
                })
                .collect();
            assert_near(&format!("{element:?} {queries} and {keys}"), &lab.read(&sums), &expected, 1e-3);
        }
    }
}

/// What tokens with these features, for query, key and value alike, become as int8 keys, and their scales.
fn written(heads: &[Vec<f32>], element: Element, planes: bool) -> (Vec<f32>, Vec<f32>) {
    let lab = lab(planes);
    let (tokens, head_dim) = (heads.len(), heads[0].len());
    let shape = [1, 1, tokens, head_dim];
    let key = lab.bytes(&vec![1; tokens * head_dim], &shape, 1);
    let scales = lab.floats(&vec![5.0; tokens], &shape[..3], Element::F32, 1);
    let [query, value] = [(); 2].map(|()| lab.output(&shape, element, 1));
    let features: Vec<f32> = heads.iter().flat_map(|head| head.repeat(3)).collect();
    let arguments = CacheWrite {
        qkv: &lab.floats(&features, &[1, tokens, 3 * head_dim], element, 1),
        source: KvSource::Own,
        query: &query,
        key: CacheTensor::int8(&key, &scales),
        value: CacheTensor::floats(&value),
        norm: None,
        rotation: None,
        factors: None,
        bounds: None,
        start: 0,
        end: tokens as u32,
    };
    assert_eq!(launch(&lab.client, &lab.machine, arguments), Ok(()));
    for copied in [lab.read(&query), lab.read(&value)] {
        let same = |(found, given): (f32, &f32)| found == element.round(*given) || found.is_nan() && given.is_nan();
        assert!(copied.into_iter().zip(heads.concat().iter()).all(same), "{element:?}");
    }
    (lab.read(&key), lab.read(&scales))
}

/// Checks that these heads, of one size, become int8 as those of the processor do.
fn check_int8(heads: &[Vec<f32>], element: Element, planes: bool) {
    let (elements, scales) = written(heads, element, planes);
    for ((features, elements), scale) in heads.iter().zip(elements.chunks(heads[0].len())).zip(scales) {
        let features: Vec<f32> = features.iter().map(|value| element.round(*value)).collect();
        let (expected, expected_scale) = quantised(&features);
        let expected: Vec<f32> = expected.into_iter().map(f32::from).collect();
        assert_eq!(elements, expected, "{element:?} {features:?}");
        assert!(scale == expected_scale || scale.is_nan() && expected_scale.is_nan(), "{scale}, {features:?}");
    }
}

/// Heads whose features are next to the middle between two integers, times a scale of any size: products with its inverse round many of them to
/// the other one.
fn near_middles(head_dim: usize) -> Vec<Vec<f32>> {
    // 0.5 is a little more than half of this scale, and half of it times the inverse.
    let mut first = vec![127.0f32.next_down(), 0.5, -0.5, 1.5];
    first.resize(head_dim, 0.0);
    let mut heads = vec![first];
    let random: Vec<u32> = noise(600, 71).iter().map(|value| (value.abs() * 8_388_608.0) as u32 % 8_388_608).collect();
    for (at, &fraction) in random.iter().enumerate() {
        let mut bits = fraction as i32;
        if at % 4 == 3 {
            // The last bits are 0, or near it on either side.
            let near = if at % 8 == 3 { 0 } else { at as i32 / 8 % 97 - 48 };
            bits = bits / 131_072 * 131_072 + near;
        }
        let exponent = [127, 120, 134, 60, 150, 226, 37, 20, 230, 0][at / 4 % 10];
        let scale = f32::from_bits(((exponent << 23) + bits) as u32);
        let mut head = vec![scale * 127.0];
        let scale = head[0] / 127.0;
        for k in 0..head_dim as i32 - 1 {
            let integer = [k, 3 * k + 65, 107 + k, 7 * k, 0][at % 5].min(126);
            let middle = (f64::from(scale) * (f64::from(integer) + 0.5)) as f32;
            let neighbour = f32::from_bits((middle.to_bits() as i32 + k % 3 - 1) as u32);
            head.push(if k % 2 == 0 { neighbour } else { -neighbour });
        }
        head.rotate_right(at % head_dim);
        heads.push(head);
    }
    heads
}

#[test]
fn int8_rounds_as_a_division_does_and_shows_what_is_not_finite() {
    let mut heads = vec![
        vec![0.5, -127.0, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -125.5, 0.49, 3.0, -3.5],
        vec![0.0; 12],
        vec![-0.0; 12],
        vec![254.0, -1.0, 3.0, 5.0],
        vec![1.0, -254.0, 3.0, 5.0, -1.0, -3.0, -5.0, 253.0, -251.0, 0.98, 6.0, -7.0],
        (0..20).map(|at| at as f32 - 8.0).collect(),
        (0..20).map(|at| at as f32 / 32.0).collect(),
    ];
    for strange in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut head: Vec<f32> = (0..20).map(|at| at as f32).collect();
        head[13] = strange;
        heads.push(head);
    }
    for (element, planes) in elements_and_planes() {
        for features in &heads {
            check_int8(std::slice::from_ref(features), element, planes);
        }
        let finite = |head: &Vec<f32>| head.iter().all(|value| element.round(*value).is_finite());
        for head_dim in [12, 20] {
            let near_middles: Vec<_> = near_middles(head_dim).into_iter().filter(finite).collect();
            check_int8(&near_middles, element, planes);
        }
    }
}

#[test]
fn scales_of_another_shape_or_type_are_refused() {
    let lab = lab(true);
    let (float, byte) = (Element::F32.storage(), i8::as_type_native_unchecked().storage_type());
    let floats = |shape: &[usize]| lab.output(shape, Element::F32, 1);
    let (int8, dense) = (lab.bytes(&[0; 8], &[1, 1, 2, 4], 1), floats(&[1, 1, 2, 4]));
    let refused = |key: &TensorHandle<_>, key_scales: Option<&TensorHandle<_>>| {
        let arguments = CacheWrite {
            qkv: &floats(&[1, 1, 12]),
            source: KvSource::Own,
            query: &floats(&[1, 1, 1, 4]),
            key: CacheTensor { elements: key, scales: key_scales },
            value: CacheTensor::floats(&dense),
            norm: None,
            rotation: None,
            factors: None,
            bounds: None,
            start: 0,
            end: 1,
        };
        launch(&lab.client, &lab.machine, arguments).unwrap_err()
    };
    let mixed = |tensor, given, expected| Unsupported::MixedTypes { tensor, given, expected };
    assert_eq!(refused(&int8, None), mixed("key", byte, float));
    assert_eq!(refused(&dense, Some(&floats(&[1, 1, 2]))), mixed("key", float, byte));
    let integer = u32::as_type_native_unchecked().storage_type();
    assert_eq!(refused(&int8, Some(&lab.integers(&[0; 2], &[1, 1, 2]))), mixed("key_scales", integer, float));
}
