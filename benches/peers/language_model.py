#!/usr/bin/env python3
"""Time `generate` and llama.cpp with one GGUF file, in turns, and print the medians.

    pip install llama-cpp-python==0.3.36
    cargo build --release --example generate
    python benches/peers/language_model.py --model FILE.gguf --generate target/release/examples/generate --threads 1
"""

import argparse
import re
import statistics
import subprocess
import time

import llama_cpp
from llama_cpp import llama_cpp as bindings


def ours(args, ids):
    command = [args.generate, "--model", args.model, "--threads", str(args.threads), "--print-ids",
               "--prompt-ids", ",".join(map(str, ids)), "--max-new-tokens", str(args.tokens + 1)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = re.search(r"prompt: \d+ tokens in ([\d.]+) s; generated \d+, ([\d.]+) tokens/s", text)
    return float(found[1]), float(found[2])


def in_file_layout():
    """Keep llama.cpp from repacking weights: its products on AMX (0.3.36) end in a segmentation fault with Q4_1."""
    default = bindings.llama_model_default_params

    def parameters():
        own = default()
        own.use_extra_bufts = False
        return own

    bindings.llama_model_default_params = parameters


def theirs(args, ids):
    model = llama_cpp.Llama(args.model, n_ctx=1024, n_threads=args.threads, n_threads_batch=args.threads,
                            n_ubatch=512, verbose=False)
    started = time.perf_counter()
    model.eval(ids)
    prompt = time.perf_counter() - started
    started = time.perf_counter()
    for step in range(args.tokens):
        model.eval([ids[step % len(ids)]])
    return prompt, args.tokens / (time.perf_counter() - started)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--model", required=True)
    ap.add_argument("--generate", required=True, help="the program")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    ap.add_argument("--tokens", type=int, default=64, help="tokens after it")
    ap.add_argument("--rounds", type=int, default=5)
    args = ap.parse_args()
    in_file_layout()
    ids = [at * 37 % 40000 + 100 for at in range(args.prompt)]
    rounds = [(ours(args, ids), theirs(args, ids)) for _ in range(args.rounds)]
    for name, side in [("generate", 0), ("llama.cpp", 1)]:
        prompt, rate = (statistics.median(one[side][number] for one in rounds) for number in (0, 1))
        print(f"{name}: prompt of {args.prompt} tokens in {prompt:.3f} s, {rate:.1f} tokens/s after it")


if __name__ == "__main__":
    main()
