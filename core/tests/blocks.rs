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

#[test]
#[should_panic(expected = "33 bytes of Q8_0 do not have 32 elements")]
fn a_part_of_a_block_has_no_elements() {
    BlockFormat::Q8_0.dequantise(&[0; 33], &mut [0.0; 32]);
}
