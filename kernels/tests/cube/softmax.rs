//! The masked softmax of given scores.

use burn_deepspeed_kernels::cube::softmax::launch;
use burn_deepspeed_kernels::cube::{Machine, Softmax, TensorHandle, Unsupported};

use crate::lab::{Element, Gpu, Lab, lab, some};
use crate::oracle::{assert_near, noise};
use crate::refused::refuses;

#[derive(Debug, Clone)]
struct Case {
    sizes: [usize; 4],
    element: Element,
    scale: f32,
    /// Heads of the model, tokens and keys of `alibi`, and the first head.
    alibi: Option<([usize; 3], usize)>,
    mask: Option<[usize; 4]>,
    mask_element: Element,
    triangular: Option<usize>,
    window: Option<usize>,
    pitch: usize,
    /// Replaces some scores, or elements of the mask: `(n, number)` puts the number at every `n`-th one.
    planted_scores: Option<(usize, f32)>,
    planted_mask: Option<(usize, f32)>,
}

impl Case {
    fn new(sizes: [usize; 4], element: Element) -> Self {
        Self {
            sizes,
            element,
            scale: 0.7,
            alibi: None,
            mask: None,
            mask_element: element,
            triangular: None,
            window: None,
            pitch: 1,
            planted_scores: None,
            planted_mask: None,
        }
    }

    /// The keys in triangle and window of a query.
    fn range(&self, token: usize) -> std::ops::Range<usize> {
        let [_, _, tokens, keys] = self.sizes;
        let slot = self.triangular.unwrap_or(keys.saturating_sub(tokens)) + token;
        let end = if self.triangular.is_some() { keys.min(slot + 1) } else { keys };
        self.window.map_or(0, |window| (slot + 1).saturating_sub(window))..end
    }

    /// NaN outside triangle and window.
    fn scores(&self) -> Vec<f32> {
        let [batch, heads, tokens, keys] = self.sizes;
        let mut scores = noise(batch * heads * tokens * keys, 1);
        scores.iter_mut().for_each(|score| *score = self.element.round(*score * 3.0));
        if let Some((every, planted)) = self.planted_scores {
            scores.iter_mut().step_by(every).for_each(|score| *score = planted);
        }
        for (row, scores) in scores.chunks_mut(keys).enumerate() {
            let range = self.range(row % tokens);
            scores
                .iter_mut()
                .enumerate()
                .filter(|(key, _)| !range.contains(key))
                .for_each(|(_, score)| *score = f32::NAN);
        }
        scores
    }

    fn alibi(&self) -> Vec<f32> {
        self.alibi.map_or(vec![], |(shape, _)| noise(shape.iter().product(), 2))
    }

    fn mask(&self) -> Vec<f32> {
        let mut mask = self.mask.map_or(vec![], |shape| noise(shape.iter().product(), 3));
        mask.iter_mut().for_each(|value| *value = self.mask_element.round(*value));
        if let Some((every, planted)) = self.planted_mask {
            mask.iter_mut().step_by(every).for_each(|value| *value = planted);
        }
        mask
    }

    fn check(&self, lab: &Lab) {
        let scores = lab.floats(&self.scores(), &self.sizes, self.element, self.pitch);
        let alibi = self.alibi.map(|(shape, _)| lab.floats(&self.alibi(), &shape, Element::F32, self.pitch));
        let mask = self.mask.map(|shape| lab.floats(&self.mask(), &shape, self.mask_element, self.pitch));
        let problem = Softmax {
            scores: &scores,
            scale: self.scale,
            alibi: alibi.as_ref(),
            head_offset: self.alibi.map_or(0, |(_, offset)| offset),
            mask: mask.as_ref(),
            triangular: self.triangular,
            window: self.window,
        };
        assert_eq!(launch(&lab.client, &lab.machine, problem), Ok(()));
        self.compare(lab, &lab.read(&scores));
    }

    /// Compares multiples of the average probability, since those of long rows are all near 0.
    fn compare(&self, lab: &Lab, actual: &[f32]) {
        let keys = self.sizes[3] as f32;
        let actual: Vec<f32> = actual.iter().map(|value| value * keys).collect();
        let expected: Vec<f64> = self.solve().iter().map(|value| value * f64::from(keys)).collect();
        let what = format!("planes {}, {self:?}", lab.machine.plane_operations);
        assert_near(&what, &actual, &expected, self.element.tolerance());
    }

    fn solve(&self) -> Vec<f64> {
        let [_, heads, tokens, keys] = self.sizes;
        let (scores, alibi, mask) = (self.scores(), self.alibi(), self.mask());
        let place = |shape: &[usize], index: &[usize]| {
            shape.iter().zip(index).fold(0, |place, (size, at)| place * size + if *size == 1 { 0 } else { *at })
        };
        let mut probabilities = Vec::new();
        for (row, scores) in scores.chunks(keys).enumerate() {
            let (b, n, t) = (row / tokens / heads, row / tokens % heads, row % tokens);
            let range = self.range(t);
            let score = |key: usize| {
                let mut score = f64::from(scores[key]) * f64::from(self.scale);
                if let Some((shape, offset)) = self.alibi {
                    score += f64::from(alibi[place(&shape, &[offset + n, t, key])]);
                }
                if let Some(shape) = self.mask {
                    score += f64::from(mask[place(&shape, &[b, n, t, key])]);
                }
                if range.contains(&key) { score } else { f64::NEG_INFINITY }
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let largest = if largest == f64::NEG_INFINITY { 0.0 } else { largest };
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            probabilities.extend(weights.iter().map(|weight| if total == 0.0 { 0.0 } else { weight / total }));
        }
        probabilities
    }

    /// Every option by itself and all together.
    fn masked(&self) -> Vec<Self> {
        let [batch, heads, tokens, keys] = self.sizes;
        let with_alibi = |tokens| Self { alibi: Some(([heads + 2, tokens, keys], 2)), ..self.clone() };
        let with_mask = |shape| Self { mask: Some(shape), planted_mask: Some((7, f32::NEG_INFINITY)), ..self.clone() };
        let last = keys - tokens;
        vec![
            with_alibi(1),
            with_alibi(tokens),
            with_mask([batch, 1, 1, keys]),
            with_mask([1, heads, tokens, keys]),
            with_mask([batch, heads, tokens, 1]),
            Self { planted_mask: Some((5, -10000.0)), ..with_mask([1, 1, tokens, keys]) },
            Self { triangular: Some(0), ..self.clone() },
            Self { triangular: Some(last), ..self.clone() },
            Self { window: Some(7), ..self.clone() },
            Self { window: Some(usize::MAX), ..self.clone() },
            Self { triangular: Some(last), window: Some(13), ..self.clone() },
            Self { triangular: Some(3), window: Some(2), ..with_mask([batch, 1, tokens, keys]) },
            Self {
                alibi: Some(([heads + 1, 1, keys], 1)),
                mask_element: Element::F32,
                triangular: Some(last),
                window: Some(keys / 2 + 1),
                ..with_mask([batch, 1, 1, keys])
            },
        ]
    }
}

#[test]
fn rows_of_every_length_agree_with_plain_loops() {
    for keys in some([1, 2, 3, 7, 17, 65, 129, 1000, 1999, 5000, 8193, 8200, 10007]) {
        for &element in Element::ALL {
            let case = Case::new([1, 2, 3, keys], element);
            case.check(&lab(true));
            Case { pitch: 64, ..case }.check(&lab(true));
        }
    }
    for keys in [3, 17, 129, 2000, 8193] {
        Case::new([2, 1, 3, keys], Element::F32).check(&lab(false));
    }
}

#[test]
fn every_option_agrees_with_plain_loops() {
    for case in Case::new([2, 3, 5, 20], Element::F32).masked() {
        case.check(&lab(true));
        Case { pitch: 3, ..case }.check(&lab(true));
    }
    for case in Case::new([2, 1, 2, 300], Element::F16).masked() {
        case.check(&lab(true));
    }
    // Rows that are read twice, and the path without planes.
    for (element, planes) in [(Element::F32, true), (Element::F16, false)] {
        let together = Case::new([2, 2, 3, 8204], element).masked().pop().unwrap();
        together.check(&lab(planes));
        Case { pitch: 3, ..together }.check(&lab(planes));
    }
}

// One instance of the kernel to a test; `scripts/mutants.py` runs them on kernels with mistakes. Few keys are outside the window, so that
// every unit has some that count, and of four tokens one ends at each place in a vector. In the second case a row has one score so large that exponentials overflow unless its unit tells the
// others.
fn nearly_all_keys(sizes: [usize; 4], lab: &Lab) {
    let case = Case { window: Some(sizes[3] - 20), ..Case::new(sizes, Element::F32).masked().pop().unwrap() };
    case.check(lab);
    Case { planted_scores: Some((sizes[3] + 37, 300.0)), ..case }.check(lab);
}

#[test]
fn a_small_problem_with_every_mask_agrees_with_plain_loops() {
    nearly_all_keys([2, 2, 4, 500], &lab(true));
}

#[test]
fn long_rows_with_every_mask_agree_with_plain_loops() {
    nearly_all_keys([1, 2, 4, 8204], &lab(true));
}

#[test]
fn long_rows_with_every_mask_agree_without_planes() {
    nearly_all_keys([1, 2, 4, 8204], &lab(false));
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    for keys in [5, 300, 8193] {
        let case = Case::new([1, 2, 3, keys], Element::F32);
        let hidden = Case { mask: Some([1, 1, 3, 1]), planted_mask: Some((2, f32::NEG_INFINITY)), ..case.clone() };
        hidden.check(&lab(true));
        let beyond = Case { triangular: Some(keys + 10), window: Some(3), ..case.clone() };
        assert!(beyond.solve().iter().all(|value| *value == 0.0));
        beyond.check(&lab(true));
        Case { window: Some(0), triangular: Some(1), ..case.clone() }.check(&lab(true));
        Case { planted_scores: Some((1, f32::NEG_INFINITY)), ..case }.check(&lab(true));
    }
}

#[test]
fn the_lowest_number_is_not_an_infinity() {
    // Equal scores, since so large a number rounds them; over whole rows, and over single keys.
    let case = Case { planted_scores: Some((1, 1.5)), ..Case::new([1, 1, 3, 9], Element::F32) };
    for lowest in [f32::MIN, -1e30, -10000.0] {
        for shape in [[1, 1, 3, 1], [1, 1, 1, 9]] {
            Case { mask: Some(shape), planted_mask: Some((2, lowest)), ..case.clone() }.check(&lab(true));
        }
    }
    Case { planted_scores: Some((4, f32::NEG_INFINITY)), ..Case::new([1, 1, 3, 9], Element::F16) }.check(&lab(true));
}

#[test]
fn a_visible_nan_makes_its_row_nan() {
    for (keys, planes) in [(17, true), (300, true), (8193, true), (300, false)] {
        // In the first row, and not in every other.
        let case = Case::new([1, 1, 4, keys], Element::F32);
        Case { planted_scores: Some((2 * keys + 5, f32::NAN)), ..case.clone() }.check(&lab(planes));
        Case { planted_scores: Some((2 * keys, f32::INFINITY)), ..case }.check(&lab(planes));
    }
}

#[test]
fn strides_may_be_any_but_along_the_scores() {
    let lab = lab(true);
    let [batch, heads, tokens, keys] = [2, 3, 5, 12];
    let case =
        Case { mask: Some([batch, heads, tokens, keys]), ..Case::new([batch, heads, tokens, keys], Element::F32) };
    // Heads are the inner axis and tokens the outer one; the mask has its keys outermost.
    let permuted = |values: &[f32], strides: [usize; 4]| {
        let mut buffer = vec![0.0; values.len()];
        for (at, value) in values.iter().enumerate() {
            let index = [at / keys / tokens / heads, at / keys / tokens % heads, at / keys % tokens, at % keys];
            buffer[index.iter().zip(strides).map(|(at, stride)| at * stride).sum::<usize>()] = *value;
        }
        let tensor = lab.floats(&buffer, &[values.len()], Element::F32, 1);
        TensorHandle::new(tensor.handle, case.sizes.to_vec(), strides.to_vec(), Element::F32.storage())
    };
    let scores = permuted(&case.scores(), [heads * tokens * keys, keys, heads * keys, 1]);
    let mask = permuted(&case.mask(), [1, batch * tokens, batch, batch * tokens * heads]);
    let problem = Softmax {
        scores: &scores,
        scale: case.scale,
        alibi: None,
        head_offset: 0,
        mask: Some(&mask),
        triangular: None,
        window: None,
    };
    assert_eq!(launch(&lab.client, &lab.machine, problem), Ok(()));
    case.compare(&lab, &lab.read(&scores));
}

#[test]
fn many_rows_are_folded_over_the_axes_of_the_grid() {
    let lab = lab(true);
    let machine = Machine { max_cubes: [3, 4, 5], ..lab.machine };
    let lab = lab.with_machine(machine);
    for rows in [1, 13, 59, 60] {
        Case::new([1, rows, 1, 129], Element::F32).check(&lab);
    }
    // Four lanes to a row: 64 rows to a cube.
    Case::new([1, 59, 61, 3], Element::F32).check(&lab);
}

#[test]
fn what_does_not_fit_is_refused() {
    let lab = lab(true);
    let tensor = |shape: &[usize]| lab.output(shape, Element::F32, 1);
    let scores = tensor(&[1, 2, 3, 4]);
    let fits = Softmax {
        scores: &scores,
        scale: 1.0,
        alibi: None,
        head_offset: 0,
        mask: None,
        triangular: None,
        window: None,
    };
    let refused = |softmax: Softmax<'_, Gpu>| launch(&lab.client, &lab.machine, softmax);
    refuses("softmax: `mask` has shape [2, 1, 1, 4], expected [1, 1, 1, 4]", || {
        refused(Softmax { mask: Some(&tensor(&[2, 1, 1, 4])), ..fits })
    });
    refuses("softmax: `mask` has shape [1, 1, 1, 5]", || {
        refused(Softmax { mask: Some(&tensor(&[1, 1, 1, 5])), ..fits })
    });
    refuses("softmax: `scores` has shape [2, 3, 4], expected 4 axes", || {
        refused(Softmax { scores: &tensor(&[2, 3, 4]), ..fits })
    });
    let alibi = tensor(&[3, 1, 4]);
    refuses("softmax: `alibi` has 3 heads, expected at least 4", || {
        refused(Softmax { alibi: Some(&alibi), head_offset: 2, ..fits })
    });
    refuses("softmax: `alibi` has shape [2, 2, 4], expected [2, 3, 4]", || {
        refused(Softmax { alibi: Some(&tensor(&[2, 2, 4])), ..fits })
    });
    let far = Softmax { triangular: Some(u32::MAX as usize), ..fits };
    assert_eq!(refused(far), Err(Unsupported::TooLarge { elements: u32::MAX as usize + 7 }));
    let none = tensor(&[1, 2, 0, 4]);
    assert_eq!(refused(Softmax { scores: &none, ..fits }), Ok(()));
}
