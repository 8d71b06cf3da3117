//! Heads with zeros after their features.

use burn_deepspeed_kernels::cube::pad_transform::launch;
use burn_deepspeed_kernels::cube::{Machine, PadTransform, Unsupported};

use crate::lab::{Element, Lab, by_head, lab, some};
use crate::oracle::noise;
use crate::refused::refuses;

/// Heads of a `[B, T, N·H]` tensor, so that batch, head and token have strides out of order.
fn check(lab: &Lab, [batch, heads, tokens, head_dim]: [usize; 4], size: usize, element: Element, pitch: usize) {
    let values: Vec<f32> =
        noise(batch * tokens * heads * head_dim, 1).iter().map(|value| element.round(*value)).collect();
    let packed = lab.floats(&values, &[batch, tokens, heads * head_dim], element, pitch);
    let padded = lab.output(&[batch, heads, tokens, size], element, pitch);
    let problem = PadTransform { heads: &by_head(&packed, heads), padded: &padded };
    assert_eq!(launch(&lab.client, &lab.machine, problem), Ok(()));
    let mut expected = vec![0.0; batch * heads * tokens * size];
    for (at, out) in expected.iter_mut().enumerate() {
        let (row, feature) = (at / size, at % size);
        let (b, n, t) = (row / tokens / heads, row / tokens % heads, row % tokens);
        if feature < head_dim {
            *out = values[((b * tokens + t) * heads + n) * head_dim + feature];
        }
    }
    let what = format!("{batch} × {heads} × {tokens} × {head_dim} to {size}, {element:?}, rows of {pitch}");
    assert_eq!(lab.read(&padded), expected, "{what}");
}

#[test]
fn every_head_size_is_padded() {
    let lab = lab(true);
    let sizes = [(1, 32), (7, 32), (31, 32), (32, 32), (40, 64), (65, 128), (80, 128), (129, 192)];
    for (head_dim, size) in some(sizes) {
        for &element in Element::ALL {
            check(&lab, [2, 3, 5, head_dim], size, element, 1);
            check(&lab, [1, 2, 17, head_dim], size, element, 64);
            // Tokens begin at whole vectors, and features are none.
            check(&lab, [2, 1, 5, head_dim], size, element, 64);
        }
    }
}

#[test]
fn many_heads_are_folded_over_the_axes_of_the_grid() {
    let lab = lab(true);
    let machine = Machine { max_cubes: [3, 4, 5], ..lab.machine };
    let lab = lab.with_machine(machine);
    // 59 and 61 cubes of 256 units.
    check(&lab, [1, 2, 236, 3], 32, Element::F32, 1);
    let heads = lab.output(&[1, 61, 8, 3], Element::F32, 1);
    let padded = lab.output(&[1, 61, 8, 32], Element::F32, 1);
    let problem = PadTransform { heads: &heads, padded: &padded };
    let answer = launch(&lab.client, &lab.machine, problem);
    assert!(matches!(answer, Err(Unsupported::TooManyCubes { limit: [3, 4, 5], .. })), "{answer:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let lab = lab(true);
    let refused = |shape: [usize; 4], element, padded: [usize; 4]| {
        let heads = lab.output(&shape, element, 1);
        let padded = lab.output(&padded, Element::F32, 1);
        launch(&lab.client, &lab.machine, PadTransform { heads: &heads, padded: &padded })
    };
    let fits = [1, 2, 3, 32];
    refuses("pad_transform: `padded` has shape [1, 2, 3, 32], expected [1, 2, 3, 33]", || {
        refused([1, 2, 3, 33], Element::F32, fits)
    });
    refuses("pad_transform: `padded` has shape [1, 2, 3, 32], expected [1, 2, 4, 32]", || {
        refused([1, 2, 4, 8], Element::F32, fits)
    });
    let answer = refused([1, 2, 3, 8], Element::F16, fits);
    assert!(matches!(answer, Err(Unsupported::MixedTypes { tensor: "padded", .. })), "{answer:?}");
}
