#!/usr/bin/env python3
"""Write blocks of each quantised format with random bits and finite scales, and what they hold in float32.

Values are those of `gguf.quants.dequantize`. The package has no MXFP4, whose values are those of the OCP specification.

    pip install gguf numpy
    python generate_blocks.py --out gguf/blocks.json
"""
import argparse
import json

import gguf
import numpy as np

BLOCKS = 3
# Places of the float16 numbers in a block.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0]}

# What the package rounds to.
ROUNDED = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def mxfp4(blocks):
    """Floats E2M1 times a power of two: `exponent | 16 bytes`, low halves first."""
    floats = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float64)
    floats = np.concatenate([floats, -floats])
    halves = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=-1)
    values = floats[halves] * np.exp2(blocks[:, :1].astype(np.float64) - 127)
    return np.where(halves == 8, 0.0, values).astype(np.float32)  # ggml has no negative zero


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", default="gguf/blocks.json")
    args = ap.parse_args()
    rng, formats = np.random.default_rng(7), {}
    for name, places in SCALES.items():
        kind = gguf.GGMLQuantizationType[name]
        blocks = rng.integers(0, 256, (BLOCKS, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        for at in places:
            scales = (rng.uniform(0.01, 2, (BLOCKS, 1)) * rng.choice([-1, 1], (BLOCKS, 1))).astype(np.float16)
            scales[-1] = 6e-6  # a subnormal one
            blocks[:, at:at + 2] = scales.view(np.uint8)
        formats[name] = (blocks, gguf.quants.dequantize(blocks, kind))
    blocks = rng.integers(0, 256, (BLOCKS + 2, 17), dtype=np.uint8)
    blocks[:, 0] = [0, 1, 2, 120, 130]
    formats["MXFP4"] = (blocks, mxfp4(blocks))
    for name in ("F32", "F16", "BF16"):
        blocks = gguf.quants.quantize(rng.normal(0, 1, (BLOCKS, 32)).astype(np.float32), gguf.GGMLQuantizationType[name])
        formats[name] = (blocks, gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]))
    record = {name: {"blocks": blocks.tobytes().hex(), "values": values.astype("<f4").tobytes().hex()}
              for name, (blocks, values) in formats.items()}
    # Values of several sizes, a block of zeros, and one whose largest magnitude is negative.
    values = (rng.normal(0, 1, (8, 32)) * np.exp2(rng.integers(-12, 6, (8, 1)))).astype(np.float32)
    values[2], values[3, 5] = 0, -20
    for name in ROUNDED:
        blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
        record[name]["rounded"] = {"values": values.astype("<f4").tobytes().hex(), "blocks": blocks.tobytes().hex()}
    with open(args.out, "w") as f:
        json.dump(record, f, indent=0)


if __name__ == "__main__":
    main()
