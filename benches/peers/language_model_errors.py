#!/usr/bin/env python3
"""Print how far the logits of `generate` and llama.cpp are from those of `transformers` in float64, with one GGUF file.

    pip install torch transformers gguf accelerate llama-cpp-python==0.3.36
    cargo build --release --example generate
    python benches/peers/language_model_errors.py --model FILE.gguf --generate target/release/examples/generate

`transformers` dequantises the weights of the file. An error is the largest difference of the logits after a text. Texts are fed
at once, and token by token: products of many rows, and of one.
"""

import argparse
import ctypes
import json
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from language_model import in_file_layout
from llama_cpp import llama_cpp as bindings
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

TEXTS = [
    "The capital of France is Paris, and the capital of Italy is",
    "Water boils at a lower temperature on a mountain, because the pressure of the air",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "In 1969, two people walked on the moon for the first time. They had travelled there in a spacecraft that",
    "To bake bread you need flour, water, salt and yeast. First, mix the flour and the yeast in a large bowl. Then add",
    "A list of prime numbers: 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41,",
    "Dear colleagues, thank you for your letter of last week. We have read it with great interest and",
    "Es war einmal ein Müller, der hatte drei Söhne, seine Mühle, einen Esel und einen",
]
OPTIONS = {
    "generate": [],
    "generate --round-activations 8": ["--round-activations", "8"],
    "generate --dtype fp32": ["--dtype", "fp32"],
}


def reference(path):
    """The ids of each text, and the logits after it."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float64, quantization_config=GgufConfig(dequantize=True)
    )
    texts = [tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        return texts, [model(torch.tensor([ids])).logits[0, -1].numpy() for ids in texts]


def ours(args, options, ids, logits):
    """`--check` prints the largest difference, whether it allows it or not."""
    record = {
        "source": "transformers",
        "prompt_ids": [ids],
        "attention_mask": [[1] * len(ids)],
        "generated_ids": [[int(np.argmax(logits))]],
        "prompt_logits": [logits.tolist()],
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(record, file)
        file.flush()
        command = [args.generate, "--model", args.model, "--check", file.name, *options]
        done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"prompt logits(?: differ by)? ([\d.e+-]+)", done.stdout + done.stderr)
    if not found:
        raise SystemExit(done.stderr)
    return float(found[1])


def theirs(args, one_by_one, ids, logits):
    model = llama_cpp.Llama(str(args.model), n_ctx=1024, n_ubatch=512, verbose=False)
    for part in [[token] for token in ids] if one_by_one else [ids]:
        model.eval(part)
    place = bindings.llama_get_logits_ith(model.ctx, -1)
    found = np.ctypeslib.as_array(ctypes.cast(place, ctypes.POINTER(ctypes.c_float)), logits.shape)
    return float(np.abs(found - logits).max())


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--model", required=True, type=Path)
    ap.add_argument("--generate", required=True, help="the program")
    args = ap.parse_args()
    in_file_layout()
    pairs = list(zip(*reference(args.model)))
    for fed, options, one_by_one in [("at once", [], False), ("token by token", ["--chunk", "1"], True)]:
        rows = {"llama.cpp": [theirs(args, one_by_one, *pair) for pair in pairs]}
        for name, own in OPTIONS.items():
            rows[name] = [ours(args, options + own, *pair) for pair in pairs]
        for name, errors in rows.items():
            print(f"{fed}, {name}: median {statistics.median(errors):.2g}, largest {max(errors):.2g}")


if __name__ == "__main__":
    main()
