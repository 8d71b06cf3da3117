//! Splitting, rotating and appending.

use burn_deepspeed_core::layout::RotaryLayout;
use burn_deepspeed_kernels::cube::cache_write::{CacheWrite, Rotation, launch};

use burn_deepspeed_kernels::cube::{CacheTensor, Machine, TensorHandle, Unsupported};
use cubecl::prelude::*;

use crate::lab::{Element, Lab, Tensor, elements_and_planes, lab};
use crate::oracle::{assert_near, noise};
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
            let elements = lab.int8(&old, &shape, pitch);
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
        let all_heads = heads + 2 * kv_heads;
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
        let query = lab.output(&[batch, heads, tokens, head_dim], element, 16);
        let shape = [batch, kv_heads, capacity, head_dim];
        let key = Side::new(lab, shape, element, self.int8[0], 2, 32);
        let value = Side::new(lab, shape, element, self.int8[1], 3, 64);
        let uniform = self.rows.windows(2).all(|pair| pair[0] == pair[1]);
        let bounds: Vec<u32> = self.rows.iter().flatten().map(|bound| *bound as u32).collect();
        let bounds = lab.integers(&bounds, &[batch, 2]);
        let arguments = CacheWrite {
            qkv: &lab.floats(&qkv, &[batch, tokens, all_heads * head_dim], element, 16),
            query: &query,
            key: CacheTensor { elements: &key.elements, scales: key.scales.as_ref() },
            value: CacheTensor { elements: &value.elements, scales: value.scales.as_ref() },
            rotation: rotation.as_ref(),
            bounds: (!uniform).then_some(&bounds),
            start: self.rows[0][0] as u32,
            end: self.rows[0][1] as u32,
        };
        assert_eq!(launch(&lab.client, &machine, arguments), Ok(()));

        let feature = |b: usize, t: usize, head: usize, d: usize| {
            f64::from(qkv[((b * tokens + t) * all_heads + head) * head_dim + d])
        };
        let rotated = |b: usize, t: usize, head: usize, d: usize| {
            let own = feature(b, t, head, d);
            let Some((layout, _)) = self.rotary else { return own };
            if d >= 2 * half {
                return own;
            }
            let (at, partner, sign) = match layout {
                RotaryLayout::Half if d < half => (d, d + half, -1.0),
                RotaryLayout::Half => (d - half, d - half, 1.0),
                RotaryLayout::Interleaved if d.is_multiple_of(2) => (d / 2, d + 1, -1.0),
                RotaryLayout::Interleaved => (d / 2, d - 1, 1.0),
            };
            let angle = angles[(b % table_rows * tokens + t) * half + at] * 3.0;
            own * f64::from(angle.cos()) + sign * feature(b, t, head, partner) * f64::from(angle.sin())
        };
        let mut expected_query = Vec::new();
        for b in 0..batch {
            for head in 0..heads {
                expected_query.extend((0..tokens * head_dim).map(|at| rotated(b, at / head_dim, head, at % head_dim)));
            }
        }
        // The row, head and new token that a head of the cache holds.
        let new = |at: usize| {
            let (b, head, slot) = (at / capacity / kv_heads, at / capacity % kv_heads, at % capacity);
            let [start, end] = self.rows[b];
            (start..end).contains(&slot).then(|| (b, head, slot - start))
        };
        let new_key = |at| new(at).map(|(b, head, t)| (0..head_dim).map(|d| rotated(b, t, heads + head, d)).collect());
        let new_value =
            |at| new(at).map(|(b, head, t)| (0..head_dim).map(|d| feature(b, t, heads + kv_heads + head, d)).collect());
        let what = format!("{element:?} {:?} {:?} {:?} int8 {:?}", self.sizes, self.rows, self.rotary, self.int8);
        assert_near(&format!("query, {what}"), &lab.read(&query), &expected_query, element.tolerance());
        key.check(lab, &format!("key, {what}"), new_key, element.tolerance());
        value.check(lab, &format!("value, {what}"), new_value, 0.0);
    }
}

#[test]
fn both_layouts_rotate_the_right_features_and_append_in_place() {
    use RotaryLayout::{Half, Interleaved};
    let rotaries =
        [None, Some((Half, 8)), Some((Half, 6)), Some((Half, 40)), Some((Interleaved, 40)), Some((Interleaved, 6))];
    for &element in Element::ALL {
        for rotary in rotaries {
            let rows = vec![[0, 3], [5, 8]];
            Case { sizes: [6, 2, 3, 11, 40], rows, rotary, own_angles: true, int8: [false; 2] }.check(element);
        }
    }
    for (rotary, head_dim) in [(Some((Half, 2)), 7), (Some((Interleaved, 6)), 7), (Some((Half, 128)), 128), (None, 1)] {
        let rows = vec![[4, 5], [4, 5], [4, 5]];
        Case { sizes: [3, 3, 1, 5, head_dim], rows, rotary, own_angles: false, int8: [false; 2] }.check(Element::F32);
    }
}

#[test]
fn rows_with_fewer_new_tokens_keep_their_other_slots() {
    let rows = vec![[0, 4], [6, 6], [2, 3]];
    let rotary = Some((RotaryLayout::Half, 16));
    Case { sizes: [2, 1, 4, 9, 16], rows, rotary, own_angles: true, int8: [false; 2] }.check(Element::F32);
}

const INT8: [[bool; 2]; 3] = [[true, false], [false, true], [true, true]];

#[test]
fn int8_holds_the_nearest_of_every_head_size() {
    use RotaryLayout::{Half, Interleaved};
    let rotaries = [None, Some((Half, 40)), Some((Half, 6)), Some((Interleaved, 40)), Some((Interleaved, 6))];
    for (element, planes) in elements_and_planes() {
        for (at, rotary) in rotaries.into_iter().enumerate() {
            let rows = vec![[0, 3], [5, 8]];
            let case = Case { sizes: [6, 2, 3, 11, 40], rows, rotary, own_angles: true, int8: INT8[at % 3] };
            case.check_with(element, planes);
        }
    }
    for (at, head_dim) in [1, 7, 8, 80, 96, 128, 160, 255, 256].into_iter().enumerate() {
        let rows = vec![[4, 5], [4, 5], [4, 5]];
        let case = Case { sizes: [3, 3, 1, 5, head_dim], rows, rotary: None, own_angles: false, int8: INT8[at % 3] };
        case.check(Element::ALL[at % 2]);
        case.check_with(Element::F32, false);
    }
}

#[test]
fn rows_with_fewer_new_tokens_keep_their_other_slots_in_int8() {
    let rows = vec![[0, 4], [6, 6], [2, 3]];
    let rotary = Some((RotaryLayout::Half, 16));
    for int8 in INT8 {
        let case = Case { sizes: [2, 1, 4, 9, 16], rows: rows.clone(), rotary, own_angles: true, int8 };
        case.check_with(Element::F32, true);
        case.check_with(Element::F32, false);
    }
}

/// What one token with these features, for query, key and value alike, becomes as an int8 key.
fn written(features: &[f32], element: Element, planes: bool) -> (Vec<f32>, f32) {
    let lab = lab(planes);
    let head_dim = features.len();
    let key = lab.int8(&vec![1; head_dim], &[1, 1, 1, head_dim], 1);
    let scales = lab.floats(&[5.0], &[1, 1, 1], Element::F32, 1);
    let [query, value] = [(); 2].map(|()| lab.output(&[1, 1, 1, head_dim], element, 1));
    let arguments = CacheWrite {
        qkv: &lab.floats(&features.repeat(3), &[1, 1, 3 * head_dim], element, 1),
        query: &query,
        key: CacheTensor::int8(&key, &scales),
        value: CacheTensor::floats(&value),
        rotation: None,
        bounds: None,
        start: 0,
        end: 1,
    };
    assert_eq!(launch(&lab.client, &lab.machine, arguments), Ok(()));
    for copied in [lab.read(&query), lab.read(&value)] {
        let same = |(found, given): (f32, &f32)| found == element.round(*given) || found.is_nan() && given.is_nan();
        assert!(copied.into_iter().zip(features).all(same), "{features:?}");
    }
    (lab.read(&key), lab.read(&scales)[0])
}

#[test]
fn int8_rounds_ties_to_even_and_shows_what_is_not_finite() {
    let mut heads = vec![
        vec![0.5, -127.0, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -125.5, 0.49, 3.0, -3.5],
        vec![0.0; 12],
        vec![-0.0; 12],
        vec![254.0, -1.0, 3.0, 5.0],
        vec![1.0, -254.0, 3.0, 5.0, -1.0, -3.0, -5.0, 253.0, -251.0, 0.98, 6.0, -7.0],
        (0..20).map(|at| at as f32 - 8.0).collect(),
    ];
    for strange in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut head: Vec<f32> = (0..20).map(|at| at as f32).collect();
        head[13] = strange;
        heads.push(head);
    }
    for (element, planes) in elements_and_planes() {
        for features in &heads {
            let (elements, scale) = written(features, element, planes);
            let (expected, expected_scale) = quantised(features);
            let expected: Vec<f32> = expected.into_iter().map(f32::from).collect();
            assert_eq!(elements, expected, "{features:?}");
            assert!(scale == expected_scale || scale.is_nan() && expected_scale.is_nan(), "{scale}, {features:?}");
        }
    }
}

#[test]
fn scales_of_another_shape_or_type_are_refused() {
    let lab = lab(true);
    let (float, byte) = (Element::F32.storage(), i8::as_type_native_unchecked().storage_type());
    let floats = |shape: &[usize]| lab.output(shape, Element::F32, 1);
    let (int8, dense) = (lab.int8(&[0; 8], &[1, 1, 2, 4], 1), floats(&[1, 1, 2, 4]));
    let refused = |key: &TensorHandle<_>, key_scales: Option<&TensorHandle<_>>| {
        let arguments = CacheWrite {
            qkv: &floats(&[1, 1, 12]),
            query: &floats(&[1, 1, 1, 4]),
            key: CacheTensor { elements: key, scales: key_scales },
            value: CacheTensor::floats(&dense),
            rotation: None,
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
