//! Every argument that does not fit is named, before any work.

use burn_deepspeed_core::layout::RotaryLayout;
use burn_deepspeed_core::qk_norm::QkNormKind;
use burn_deepspeed_kernels::cpu::attention::{Attention, Cached, Heads};
use burn_deepspeed_kernels::cpu::decode::decode;
use burn_deepspeed_kernels::cpu::flash::flash;
use burn_deepspeed_kernels::cpu::masks::{Broadcast, Masks};
use burn_deepspeed_kernels::cpu::norm::{Norm, norm};
use burn_deepspeed_kernels::cpu::product::{InputElements, Int8Matrix, Matrix, Product, product};
use burn_deepspeed_kernels::cpu::scatter::{HeadNorm, Places, Rotation, Scatter, scatter, scatter_int8};
use half::{bf16, f16};

use crate::refused::refuses;

/// 2 rows, 4 query heads over 2 key heads, 3 tokens, 7 slots, heads of 5 features.
fn fits<'a>(elements: &'a [f32], masks: Masks<'a>) -> Attention<'a> {
    Attention {
        batch: 2,
        heads: 4,
        kv_heads: 2,
        tokens: 3,
        capacity: 7,
        head_dim: 5,
        value_dim: 5,
        query: Heads::dense(&elements[..120], 4, 3, 5),
        key: Heads::dense(&elements[..140], 2, 7, 5).into(),
        value: Heads::dense(&elements[..140], 2, 7, 5).into(),
        scale: 1.0,
        sinks: None,
        masks,
    }
}

/// Both attention kernels refuse a problem.
#[track_caller]
fn attention_refuses(expected: &str, problem: Attention<'_>) {
    refuses(&format!("flash: {expected}"), || flash(&problem, &mut [0.0; 120]));
    refuses(&format!("decode: {expected}"), || decode(&problem, &mut [0.0; 120]));
}

#[test]
fn attention_names_the_tensor_that_does_not_fit() {
    let elements = [1.0; 200];
    let fits = fits(&elements, Masks::full(&[0, 4], &[3, 7]));
    flash(&fits, &mut [0.0; 120]);
    decode(&fits, &mut [0.0; 120]);

    refuses("flash: `output` has 119 elements, expected 120", || flash(&fits, &mut [0.0; 119]));
    refuses("decode: `output` has 119 elements, expected 120", || decode(&fits, &mut [0.0; 119]));
    let heads = |elements: &'static [f32]| Heads::dense(elements, 2, 7, 5);
    attention_refuses(
        "`query` has 4 heads, expected a multiple of the 3 heads of `key`",
        Attention { kv_heads: 3, ..fits },
    );
    attention_refuses(
        "`query` has 4 heads, expected a multiple of the 0 heads of `key`",
        Attention { kv_heads: 0, ..fits },
    );
    attention_refuses("`sinks` has 3 elements, expected 4", Attention { sinks: Some(&[0.0; 3]), ..fits });
    attention_refuses("`query` has heads without features", Attention { head_dim: 0, ..fits });
    let query = Heads::dense(&elements[..119], 4, 3, 5);
    attention_refuses("`query` has 119 elements, [2, 4, 3, 5] with its strides needs 120", Attention { query, ..fits });
    let far = Heads { batch: usize::MAX, ..fits.query };
    attention_refuses("`query` has 120 elements", Attention { query: far, ..fits });
    attention_refuses("`key` has 139 elements", Attention { key: heads(&[1.0; 139]).into(), ..fits });
    attention_refuses("`value` has 139 elements", Attention { value: heads(&[1.0; 139]).into(), ..fits });
    // The cache of another model: other heads, slots, features.
    for other in [Heads::dense(&elements[..70], 1, 7, 5), Heads::dense(&elements[..60], 2, 3, 5)] {
        attention_refuses("`key` has", Attention { key: other.into(), ..fits });
        attention_refuses("`value` has", Attention { value: other.into(), ..fits });
    }
    attention_refuses("`key` has 140 elements", Attention { head_dim: 5, capacity: 8, ..fits });

    let int8 = |elements: &'static [i8], scales: &'static [f32]| Cached::Int8 {
        elements: Heads::dense(elements, 2, 7, 5),
        scales,
    };
    attention_refuses("`key` has 139 elements", Attention { key: int8(&[1; 139], &[1.0; 28]), ..fits });
    let halves = Heads::dense(&[f16::ONE; 139][..], 2, 7, 5);
    attention_refuses("`key` has 139 elements", Attention { key: halves.into(), ..fits });
    let halves = Heads::dense(&[bf16::ONE; 139][..], 2, 7, 5);
    attention_refuses("`value` has 139 elements", Attention { value: halves.into(), ..fits });
    attention_refuses("`key` has 27 scales, expected 28", Attention { key: int8(&[1; 140], &[1.0; 27]), ..fits });
    attention_refuses("`value` has 29 scales, expected 28", Attention { value: int8(&[1; 140], &[1.0; 29]), ..fits });
}

#[test]
fn attention_names_the_mask_that_does_not_fit() {
    let elements = [1.0; 200];
    let with = |masks| fits(&elements, masks);
    let full = Masks::full(&[0, 4], &[3, 7]);
    attention_refuses("`starts` has 1 elements, expected 2", with(Masks { starts: &[0], ..full }));
    attention_refuses("`ends` has 3 elements, expected 2", with(Masks { ends: &[1, 2, 3], ..full }));
    attention_refuses("`origins` has 1 elements, expected 2", with(Masks { origins: Some(&[0]), ..full }));
    attention_refuses("`ends` has 8, expected at most 7", with(Masks { ends: &[3, 8], ..full }));
    attention_refuses("`starts` has 18446744073709551615", with(Masks { starts: &[0, usize::MAX], ..full }));
    attention_refuses(
        "`hidden` has 12 elements, expected at least 7 for each of 2 rows",
        with(Masks { hidden: Some(&[false; 12]), ..full }),
    );
    attention_refuses(
        "`hidden` has 15 elements, expected at least 7 for each of 2 rows",
        with(Masks { hidden: Some(&[false; 15]), ..full }),
    );
    let slopes = Some(&[1.0; 4][..]);
    attention_refuses(
        "`positions` has 12 elements, expected at least 7 for each of 2 rows",
        with(Masks { positions: Some(&[0; 12]), slopes, ..full }),
    );
    attention_refuses("`slopes` has 3 elements, expected 4", with(Masks { slopes: Some(&[1.0; 3]), ..full }));
    for shape in [[3, 1, 1, 1], [1, 2, 1, 1], [1, 1, 2, 1], [1, 1, 1, 6], [1, 1, 1, 0], [1, 1, 1, usize::MAX]] {
        let elements = shape.iter().fold(1usize, |product, size| product.saturating_mul(*size)).min(12);
        let pairs = Some(Broadcast { elements: &[false; 12][..elements], shape });
        let bias = Some(Broadcast { elements: &[0.0; 12][..elements], shape });
        attention_refuses("`pairs` has", with(Masks { pairs, ..full }));
        attention_refuses("`bias` has", with(Masks { bias, ..full }));
    }
    let short = Some(Broadcast { elements: &[0.0; 6][..], shape: [1, 1, 1, 7] });
    attention_refuses("`bias` has 6 elements, expected 7", with(Masks { bias: short, ..full }));
}

#[test]
fn a_product_names_what_does_not_fit() {
    let matrix = Matrix { elements: &[0.0; 15], inputs: 3, outputs: 5, input_stride: 5, output_stride: 1 };
    let fits =
        Product { input: &[0.0; 6], elements: InputElements::F32, sequence: 1, matrix, bias: None, width: 8, first: 2 };
    let refused = |expected: &str, problem: Product<'_, Matrix<'_>>, len: usize| {
        refuses(expected, || product(&problem, &mut vec![0.0; len]));
    };
    product(&fits, &mut [0.0; 16]);
    refused("product: `input` has 5 elements, rows have 3", Product { input: &[0.0; 5], ..fits }, 16);
    refused("product: `output` has 15 elements, expected 2 · 8", fits, 15);
    refused("product: `output` has 16 elements", Product { width: usize::MAX / 2 + 9, ..fits }, 16);
    refused("product: 5 features from 4 on do not fit into 8", Product { first: 4, ..fits }, 16);
    refused("product: 5 features from 18446744073709551615 on", Product { first: usize::MAX, ..fits }, 16);
    refused("product: `bias` has 4 elements, expected 5", Product { bias: Some(&[0.0; 4]), ..fits }, 16);
    // Strides whose products do not fit into 64 bits.
    for matrix in [
        Matrix { input_stride: usize::MAX / 2 + 1, ..matrix },
        Matrix { output_stride: usize::MAX, ..matrix },
        Matrix { elements: &[0.0; 14], ..matrix },
    ] {
        for sequence in [1, 60, 600] {
            refused("product: `matrix` has", Product { matrix, sequence, ..fits }, 16);
        }
    }
    let nothing = Matrix { inputs: 0, ..matrix };
    refused("product: `input` has 6 elements, rows have 0", Product { matrix: nothing, ..fits }, 16);

    let int8 =
        Int8Matrix { elements: &[0; 15], inputs: 3, outputs: 5, scales: &[1.0; 10], output_block: 1, input_block: 2 };
    for (expected, matrix) in [
        ("product: `matrix` has 14 elements, expected 15", Int8Matrix { elements: &[0; 14], ..int8 }),
        ("product: 9 scales for 10 blocks", Int8Matrix { scales: &[1.0; 9], ..int8 }),
        ("product: blocks of 0 outputs and 2 inputs", Int8Matrix { output_block: 0, ..int8 }),
        ("product: blocks of 1 outputs and 0 inputs", Int8Matrix { input_block: 0, ..int8 }),
    ] {
        let problem = Product {
            input: &[0.0; 6],
            elements: InputElements::F32,
            sequence: 1,
            matrix,
            bias: None,
            width: 5,
            first: 0,
        };
        refuses(expected, || product(&problem, &mut [0.0; 10]));
    }
}

#[test]
fn a_norm_names_what_does_not_fit() {
    let fits = Norm { input: &[1.0; 6], residual: None, gamma: &[1.0; 3], beta: None, epsilon: 0.1, rms: true };
    refuses("norm: `output` has 5 elements, expected 6", || norm(&fits, &mut [0.0; 5]));
    refuses("norm: `beta` has 2 elements, expected 3", || norm(&Norm { beta: Some(&[0.0; 2]), ..fits }, &mut [0.0; 6]));
    refuses("norm: `input` has 6 elements, rows have 0", || norm(&Norm { gamma: &[], ..fits }, &mut [0.0; 6]));
    norm(&Norm { input: &[], gamma: &[], ..fits }, &mut []);
}

#[test]
fn a_scatter_names_what_does_not_fit() {
    let places = Places::Slots { slots: 4, starts: &[1, 2], counts: &[2, 1] };
    let rotation = Rotation { cos: &[1.0; 4], sin: &[0.0; 4], half: 1, layout: RotaryLayout::Half };
    let fits = Scatter {
        input: &[0.0; 32],
        width: 8,
        first: 1,
        heads: 2,
        head_dim: 3,
        tokens: 2,
        norm: None,
        rotation: Some(rotation),
        factors: None,
        places,
    };
    let norm = HeadNorm {
        kind: QkNormKind::Rms,
        epsilon: 0.0,
        weights: None,
        plus_one: false,
        after_rotation: false,
        mean_squares: None,
    };
    let normed = |norm| Scatter { norm: Some(norm), ..fits };
    scatter(&fits, &mut [0.0; 48]);
    let slots = |starts: &'static [usize], counts: &'static [usize]| Places::Slots { slots: 4, starts, counts };
    for (expected, problem) in [
        ("scatter: 2 heads of 3 from 3 on, rows have 8", Scatter { first: 3, ..fits }),
        ("scatter: 9223372036854775808 heads of 3", Scatter { heads: 1 << 63, ..fits }),
        ("scatter: `input` has 31 elements, rows have 16", Scatter { input: &[0.0; 31], ..fits }),
        ("scatter: `input` has 32 elements, rows have 0", Scatter { tokens: 0, ..fits }),
        (
            "scatter: 2 pairs in heads of 3 features",
            Scatter { rotation: Some(Rotation { half: 2, ..rotation }), ..fits },
        ),
        (
            "scatter: `cos` has 3 elements, expected 4",
            Scatter { rotation: Some(Rotation { cos: &[1.0; 3], ..rotation }), ..fits },
        ),
        (
            "scatter: `sin` has 5 elements, expected 4",
            Scatter { rotation: Some(Rotation { sin: &[1.0; 5], ..rotation }), ..fits },
        ),
        ("scatter: `weights` has 4 elements, expected 6", normed(HeadNorm { weights: Some(&[1.0; 4]), ..norm })),
        (
            "scatter: `mean_squares` has 3 elements, expected 4",
            normed(HeadNorm { kind: QkNormKind::RmsOfAllHeads, mean_squares: Some(&[1.0; 3]), ..norm }),
        ),
        (
            "scatter: `mean_squares` has 4 elements, expected None",
            normed(HeadNorm { mean_squares: Some(&[1.0; 4]), ..norm }),
        ),
        (
            "scatter: `after_rotation` is true for a norm of all heads, expected false",
            normed(HeadNorm { kind: QkNormKind::RmsOfAllHeads, after_rotation: true, ..norm }),
        ),
        ("scatter: `factors` has 5 elements, expected 4", Scatter { factors: Some(&[1.0; 5]), ..fits }),
        ("scatter: `starts` has 1 elements, expected 2", Scatter { places: slots(&[0], &[1, 1]), ..fits }),
        ("scatter: `counts` has 3 elements, expected 2", Scatter { places: slots(&[0, 0], &[1, 1, 1]), ..fits }),
        ("scatter: `counts` has 3, expected at most 2 tokens", Scatter { places: slots(&[0, 0], &[1, 3]), ..fits }),
        ("scatter: 2 tokens from slot 3 on, of 4", Scatter { places: slots(&[0, 3], &[1, 2]), ..fits }),
        (
            "scatter: 1 tokens from slot 18446744073709551615 on",
            Scatter { places: slots(&[usize::MAX, 3], &[1, 1]), ..fits },
        ),
    ] {
        refuses(expected, || scatter(&problem, &mut [0.0; 48]));
        refuses(expected, || scatter_int8(&problem, &mut [0; 48], &mut [0.0; 16]));
    }
    refuses("scatter: `output` has 47 elements, expected 48", || scatter(&fits, &mut [0.0; 47]));
    refuses("scatter: `elements` has 47 elements, expected 48", || scatter_int8(&fits, &mut [0; 47], &mut [0.0; 16]));
    refuses("scatter: `scales` has 15 elements, expected 16", || scatter_int8(&fits, &mut [0; 48], &mut [0.0; 15]));
}
