//! LayerNorm and RMSNorm.

use burn_deepspeed_kernels::cube::norm::launch;
use burn_deepspeed_kernels::cube::{Machine, Norm, TensorHandle, Unsupported};
use cubecl::prelude::*;
use half::bf16;

use crate::lab::{Element, Gpu, Lab, elements_and_planes, lab, some};
use crate::oracle::{assert_near, noise};
use crate::refused::refuses;

/// Added to the variance; so large that a result without it is another.
const EPSILON: f32 = 0.1;

#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    features: usize,
    element: Element,
    gamma: Element,
    output: Element,
    rms: bool,
    beta: bool,
    residual: bool,
    pitch: usize,
}

impl Case {
    fn new(rows: usize, features: usize, element: Element) -> Self {
        Self {
            rows,
            features,
            element,
            gamma: element,
            output: element,
            rms: false,
            beta: true,
            residual: false,
            pitch: 1,
        }
    }

    fn check(self, lab: &Lab) {
        let Self { rows, features, element, .. } = self;
        let shape = [rows, features];
        let values = |len: usize, seed: u64, element: Element, add: f32| -> Vec<f32> {
            noise(len, seed).iter().map(|value| element.round(value + add)).collect()
        };
        // A mean that a variance by squares alone would not survive.
        let input = values(rows * features, 1, element, if self.rms { 0.1 } else { 9.0 });
        let residual = values(rows * features, 2, element, 0.3);
        let (gamma, beta) = (values(features, 3, self.gamma, 1.0), values(features, 4, self.gamma, 0.0));
        let output = lab.output(&shape, self.output, self.pitch);
        let residual_tensor = lab.floats(&residual, &shape, element, 4 * self.pitch);
        let beta_tensor = lab.floats(&beta, &[features], self.gamma, 1);
        let problem = Norm {
            input: &lab.floats(&input, &shape, element, self.pitch),
            residual: self.residual.then_some(&residual_tensor),
            gamma: &lab.floats(&gamma, &[features], self.gamma, 1),
            beta: self.beta.then_some(&beta_tensor),
            output: &output,
            epsilon: EPSILON,
            rms: self.rms,
        };
        assert_eq!(launch(&lab.client, &lab.machine, problem), Ok(()));

        let added: Vec<f32> = match self.residual {
            true => input.iter().zip(&residual).map(|(a, b)| a + b).collect(),
            false => input,
        };
        let mut expected = Vec::new();
        for row in added.chunks(features) {
            let of_row = |value: &dyn Fn(f64) -> f64| {
                row.iter().map(|element| value(f64::from(*element))).sum::<f64>() / features as f64
            };
            let mean = if self.rms { 0.0 } else { of_row(&|value| value) };
            let variance = of_row(&|value| (value - mean).powi(2));
            expected.extend(row.iter().zip(gamma.iter().zip(&beta)).map(|(value, (gamma, beta))| {
                let unit = (f64::from(*value) - mean) / (variance + f64::from(EPSILON)).sqrt();
                unit * f64::from(*gamma) + if self.beta { f64::from(*beta) } else { 0.0 }
            }));
        }
        let what = format!("planes {}, {self:?}", lab.machine.plane_operations);
        assert_near(&what, &lab.read(&output), &expected, self.output.tolerance());
    }
}

#[test]
fn rows_of_every_length_agree_with_plain_loops() {
    for (element, planes) in elements_and_planes() {
        for features in some([1, 8, 33, 768, 4099]) {
            Case::new(3, features, element).check(&lab(planes));
            Case { pitch: 64, ..Case::new(5, features, element) }.check(&lab(planes));
        }
    }
}

#[test]
fn rows_too_long_for_registers_agree_with_plain_loops() {
    // The last feature is in each of the reads that follow each other. An output in f32 shows one feature too many in a mean of thousands.
    for features in [8201, 9301, 10007, 11301] {
        let case = Case { residual: true, output: Element::F32, ..Case::new(2, features, Element::F16) };
        case.check(&lab(true));
        Case { element: Element::F32, gamma: Element::F32, rms: true, ..case }.check(&lab(false));
    }
    Case { residual: true, ..Case::new(2, 10007, Element::F16) }.check(&lab(true));
}

#[test]
fn every_option_agrees_with_plain_loops() {
    let lab = lab(true);
    let case = Case { pitch: 8, ..Case::new(4, 72, Element::F16) };
    let added = Case { residual: true, ..case };
    for case in [
        Case { rms: true, beta: false, ..case },
        Case { rms: true, ..case },
        Case { beta: false, ..case },
        added,
        Case { gamma: Element::F32, ..case },
        Case { output: Element::F32, ..case },
        Case { rms: true, beta: false, gamma: Element::F32, output: Element::F32, ..added },
        Case { element: Element::F32, ..case },
    ] {
        case.check(&lab);
    }
}

#[test]
fn many_rows_are_folded_over_the_axes_of_the_grid() {
    let lab = lab(true);
    let machine = Machine { max_cubes: [3, 4, 5], ..lab.machine };
    let lab = lab.with_machine(machine);
    // All lanes but one have something to add.
    for rows in [1, 12, 13, 59, 60] {
        Case::new(rows, 124, Element::F32).check(&lab);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let lab = lab(true);
    let tensor = |shape: &[usize]| lab.output(shape, Element::F32, 1);
    let input = tensor(&[2, 8]);
    let gamma = tensor(&[8]);
    let output = tensor(&[2, 8]);
    let fits =
        Norm { input: &input, residual: None, gamma: &gamma, beta: None, output: &output, epsilon: 0.1, rms: true };
    let refused = |norm: Norm<'_, Gpu>| launch(&lab.client, &lab.machine, norm);
    refuses("norm: `gamma` has shape [7], expected [8]", || refused(Norm { gamma: &tensor(&[7]), ..fits }));
    refuses("norm: `input` has shape [1, 2, 8], expected 2 axes", || {
        refused(Norm { input: &tensor(&[1, 2, 8]), ..fits })
    });
    refuses("norm: `beta` has shape [9]", || refused(Norm { beta: Some(&tensor(&[9])), ..fits }));
    refuses("norm: `residual` has shape [3, 8]", || refused(Norm { residual: Some(&tensor(&[3, 8])), ..fits }));
    refuses("norm: `output` has shape [2, 7]", || refused(Norm { output: &tensor(&[2, 7]), ..fits }));
    let transposed = TensorHandle::new(tensor(&[8, 2]).handle, vec![2, 8], vec![1, 2], Element::F32.storage());
    assert_eq!(
        refused(Norm { residual: Some(&transposed), ..fits }),
        Err(Unsupported::Stride { tensor: "residual", stride: 2 })
    );
    let in_f16 = lab.output(&[2, 8], Element::F16, 1);
    let answer = refused(Norm { residual: Some(&in_f16), ..fits });
    assert!(matches!(answer, Err(Unsupported::MixedTypes { tensor: "residual", .. })), "{answer:?}");
    // No Vulkan device of the tests computes with these.
    let brain = bf16::as_type_native_unchecked().storage_type();
    let in_bf16 = TensorHandle::new(in_f16.handle.clone(), vec![2, 8], vec![8, 1], brain);
    if !lab.client.properties().supports_type(brain) {
        assert_eq!(refused(Norm { output: &in_bf16, ..fits }), Err(Unsupported::ElementType(brain)));
    }
    let none = tensor(&[0, 8]);
    assert_eq!(refused(Norm { input: &none, output: &none, ..fits }), Ok(()));
}
