//! Blocks of quantised weights hold what `gguf.quants.dequantize` says they do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use burn_deepspeed_core::block::BlockFormat;
use serde_json::Value;

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// What `tests/golden/generate_blocks.py` wrote: blocks and values of each format.
fn golden() -> BTreeMap<String, Value> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/gguf/blocks.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

#[test]
fn blocks_of_every_format_have_the_bits_of_the_reference() {
    let golden = golden();
    assert_eq!(golden.len(), BlockFormat::ALL.len());
    for format in BlockFormat::ALL {
        let case = &golden[&format.to_string()];
        let (blocks, expected) = (bytes(&case["blocks"]), bytes(&case["values"]));
        let expected: Vec<u32> = expected.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let mut values = vec![f32::NAN; expected.len()];
        format.dequantise(&blocks, &mut values);
        for (at, (value, bits)) in values.iter().zip(expected).enumerate() {
            assert_eq!(value.to_bits(), bits, "{format}, element {at}: {value}, expected {}", f32::from_bits(bits));
        }
    }
}

fn floats(hex: &Value) -> Vec<f32> {
    bytes(hex).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn floats_are_rounded_to_the_blocks_of_the_reference() {
    let (golden, mut formats) = (golden(), 0);
    for format in BlockFormat::ALL {
        let Some(case) = golden[&format.to_string()].get("rounded") else { continue };
        assert_eq!(format.quantise(&floats(&case["values"])), bytes(&case["blocks"]), "{format}");
        formats += 1;
    }
    assert_eq!(formats, 8);
}

/// The tables of these formats are uneven, so a value is compared with its neighbours.
#[test]
fn floats_are_rounded_to_the_nearest_value_of_a_table() {
    let values = floats(&golden()["Q4_0"]["rounded"]["values"]);
    for (format, least, most) in [(BlockFormat::IQ4_NL, 0.99, 1.01), (BlockFormat::MXFP4, 0.75, 1.2)] {
        let blocks = format.quantise(&values);
        for (block, values) in blocks.chunks(format.bytes()).zip(values.chunks(32)) {
            let mut own = [0.0; 32];
            format.dequantise(block, &mut own);
            // Every value that an element of this block can have.
            let mut all = Vec::new();
            for nibble in 0..16u8 {
                let mut other = block.to_vec();
                let first = format.bytes() - 16;
                other[first..].fill(nibble | nibble << 4);
                let mut values = [0.0; 32];
                format.dequantise(&other, &mut values);
                all.push(values[0]);
            }
            for (value, own) in values.iter().zip(own) {
                let nearest = all.iter().map(|other| (other - value).abs()).fold(f32::INFINITY, f32::min);
                // The scale was rounded to f16 after the elements were chosen.
                assert!((own - value).abs() <= nearest + value.abs() / 1000.0, "{format}: {value} became {own}");
            }
            // MXFP4 has 4 and 6 times its power of two, and the largest magnitude is between 4 and 8 times it.
            let [largest, reached] = [values, &own].map(|all| all.iter().fold(0.0f32, |a, b| a.max(b.abs())));
            assert!(reached >= largest * least && reached <= largest * most, "{format}: {largest} became {reached}");
        }
    }
}

#[test]
fn names_are_read_in_any_case() {
    assert_eq!("q4_k".parse(), Ok(BlockFormat::Q4_K));
    assert_eq!("BF16".parse(), Ok(BlockFormat::BF16));
    let error = "q4".parse::<BlockFormat>().unwrap_err().to_string();
    assert!(error.contains("`q4`") && error.contains("q4_0"), "{error}");
}

#[test]
#[should_panic(expected = "33 bytes of Q8_0 do not have 32 elements")]
fn a_part_of_a_block_has_no_elements() {
    BlockFormat::Q8_0.dequantise(&[0; 33], &mut [0.0; 32]);
}
