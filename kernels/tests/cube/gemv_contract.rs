//! Products with arguments that do not fit.

use burn_deepspeed_core::layout::Orientation;
use burn_deepspeed_kernels::cube::gemv::{Gemv, Int8, MOST_ROWS, Matrix, Norm, NormKind, launch};
use burn_deepspeed_kernels::cube::{Machine, Unsupported};

use crate::lab::{Element, Tensor, lab};
use crate::refused::refuses;

#[test]
fn int8_that_does_not_fit_is_refused() {
    let lab = lab(true);
    let (input, output) = (lab.output(&[2, 8], Element::F32, 1), lab.output(&[2, 4], Element::F32, 1));
    let bytes = lab.bytes(&[1; 32], &[4, 8], 1);
    let attempt = |elements: &Tensor, scales: &Tensor, blocks: [usize; 2]| {
        let matrix = Matrix::Int8(Int8 { elements, scales, blocks });
        let arguments =
            Gemv { input: &input, norm: None, matrix, bias: None, output: &output, offset: 0, normed: None };
        launch(&lab.client, &lab.machine, arguments)
    };
    let scales = |shape: &[usize], element: Element| lab.output(shape, element, 1);
    assert_eq!(attempt(&bytes, &scales(&[2, 3], Element::F32), [3, 3]), Ok(()));

    refuses("gemv: `scales` has shape [2, 3], expected [2, 2]", || {
        attempt(&bytes, &scales(&[2, 3], Element::F32), [3, 4])
    });
    refuses("gemv: `blocks` is [0, 8]", || attempt(&bytes, &scales(&[4, 1], Element::F32), [0, 8]));
    refuses("gemv: `matrix` has shape [4, 7], expected [4, 8]", || {
        attempt(&lab.bytes(&[1; 28], &[4, 7], 1), &scales(&[4, 1], Element::F32), [1, 8])
    });
    let (given, expected) = (Element::F16.storage(), Element::F32.storage());
    let refused = attempt(&bytes, &scales(&[4, 1], Element::F16), [1, 8]);
    assert_eq!(refused, Err(Unsupported::MixedTypes { tensor: "scales", given, expected }));
    let floats = lab.output(&[4, 8], Element::F32, 1);
    let refused = attempt(&floats, &scales(&[4, 1], Element::F32), [1, 8]);
    let (given, expected) = (Element::F32.storage(), bytes.dtype);
    assert_eq!(refused, Err(Unsupported::MixedTypes { tensor: "matrix", given, expected }));
}

#[test]
fn what_does_not_fit_is_refused() {
    let lab = lab(true);
    let tensor = |shape: &[usize]| lab.output(shape, Element::F32, 1);
    let attempt = |machine: &Machine, input: &Tensor, matrix: &Tensor, offset: usize, output: &Tensor| {
        let matrix = Matrix::Dense(matrix, Orientation::OutputInput);
        let arguments = Gemv { input, norm: None, matrix, bias: None, output, offset, normed: None };
        launch(&lab.client, machine, arguments)
    };
    let (input, matrix, output) = (tensor(&[2, 8]), tensor(&[4, 8]), tensor(&[2, 6]));
    assert_eq!(attempt(&lab.machine, &input, &matrix, 2, &output), Ok(()));

    refuses("gemv: `output` has 6 columns, expected at least 7: 4 from 3 on", || {
        attempt(&lab.machine, &input, &matrix, 3, &output)
    });
    refuses("gemv: `output` has 6 columns", || attempt(&lab.machine, &input, &matrix, usize::MAX, &output));
    refuses("gemv: `output` has shape [3, 6], expected [2, 6]", || {
        attempt(&lab.machine, &input, &matrix, 0, &tensor(&[3, 6]))
    });
    refuses("gemv: `matrix` has shape [4, 7], expected [4, 8]", || {
        attempt(&lab.machine, &input, &tensor(&[4, 7]), 0, &output)
    });
    let refused = attempt(&lab.machine, &tensor(&[9, 8]), &matrix, 0, &tensor(&[9, 6]));
    assert_eq!(refused, Err(Unsupported::Rows { rows: 9, limit: MOST_ROWS }));
    refuses("gemv: `input` has shape [1, 2, 8], expected 2 axes", || {
        attempt(&lab.machine, &tensor(&[1, 2, 8]), &matrix, 0, &output)
    });
    let attempt_with = |norm: Option<Norm<'_, _>>, bias: Option<&Tensor>, normed: Option<&Tensor>| {
        let matrix = Matrix::Dense(&matrix, Orientation::OutputInput);
        let arguments = Gemv { input: &input, norm, matrix, bias, output: &output, offset: 0, normed };
        launch(&lab.client, &lab.machine, arguments)
    };
    let (seven, eight) = (tensor(&[7]), tensor(&[8]));
    let norm = |gamma, beta| Some(Norm { kind: NormKind::LayerNorm, gamma, beta: Some(beta), epsilon: 0.1 });
    refuses("gemv: `bias` has shape [7], expected [4]", || attempt_with(None, Some(&seven), None));
    refuses("gemv: `gamma` has shape [7], expected [8]", || attempt_with(norm(&seven, &eight), None, None));
    refuses("gemv: `beta` has shape [7], expected [8]", || attempt_with(norm(&eight, &seven), None, None));
    refuses("gemv: `normed` has shape [2, 6], expected [2, 8]", || attempt_with(None, None, Some(&output)));
    let half = lab.output(&[4, 8], Element::F16, 1);
    let refused = attempt(&lab.machine, &input, &half, 0, &output);
    let (given, expected) = (Element::F16.storage(), Element::F32.storage());
    assert_eq!(refused, Err(Unsupported::MixedTypes { tensor: "matrix", given, expected }));
    let little = Machine { shared_bytes: 1000, ..lab.machine };
    assert!(matches!(attempt(&little, &input, &matrix, 0, &output), Err(Unsupported::SharedMemory { .. })));
    let few = Machine { max_cubes: [0, 1, 1], ..lab.machine };
    assert!(matches!(attempt(&few, &input, &matrix, 0, &output), Err(Unsupported::TooManyCubes { .. })));
}
