#!/usr/bin/env python3
"""Write GGUF files that hold a small tokenizer and nothing else, and the ids that it gives to some texts.

Ids are those of `transformers` for the same file. Where it takes another split than the models do, they are those of a tokenizer that is
put together here: single digits for `smollm`, NFC for `qwen2`.

    pip install transformers tokenizers gguf
    python generate_gguf_tokenizers.py --out gguf_tokenizers
"""
import argparse
import json
import os

import gguf
import tokenizers as tk

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind; it's what dogs do.",
    "There were 12345 foxes in 2024, then 987 in 2025: what's left of them we'll see.",
    "def add(left, right):\n    return left + right  # the sum\n\n",
    "Über die Größe der Straße läßt sich streiten, naïve façade.",
    "quick quick brown brown fox fox the the dog dog over over lazy lazy jumps jumps",
] * 4
TEXTS = ["The quick brown fox", " the  dogs   over", "12345 and 67", "it's WE'LL don't", "Größe naïve 東京 🦊", "a\n\n  b\n\tc ",
         "x<|end|>y <|end|> z", "caf\u0065\u0301 über", "(left + right)...!!", "", "tool<think>fox</think>"]
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def writer(path, arch, model, tokens, kinds, **flags):
    file = gguf.GGUFWriter(path, arch)
    file.add_tokenizer_model(model)
    file.add_token_list(tokens)
    file.add_token_types(kinds)
    for key, value in flags.items():
        getattr(file, f"add_{key}")(value)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def trained(pre, alphabet, count):
    """Tokens in the order of their ids, and merges."""
    tokenizer = tk.Tokenizer(tk.models.BPE())
    tokenizer.pre_tokenizer = pre
    trainer = tk.trainers.BpeTrainer(vocab_size=count, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def from_transformers(path):
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
    architecture, record, _ = get_gguf_tokenizer(path)
    return convert_gguf_tokenizer(architecture, record)[0]


def of_bytes(folder, pre, bos=None):
    level = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens, merges = trained(level, tk.pre_tokenizers.ByteLevel.alphabet(), 360)
    special = ["<|begin|>", "<|end|>"]
    tokens = special + tokens + ["<think>", "</think>"]
    kinds = [CONTROL] * 2 + [NORMAL] * (len(tokens) - 4) + [USER] * 2
    path = os.path.join(folder, f"{pre}.gguf")
    flags = {} if bos is None else {"add_bos_token": bos}
    writer(path, "llama", "gpt2", tokens, kinds, tokenizer_pre=pre, token_merges=[" ".join(merge) for merge in merges],
           bos_token_id=0, eos_token_id=1, **flags)
    own = from_transformers(path)
    if pre == "smollm":
        own.pre_tokenizer = tk.pre_tokenizers.Sequence([tk.pre_tokenizers.Digits(individual_digits=True), level])
    if pre == "qwen2":
        own.normalizer = tk.normalizers.NFC()
    return own, [0] if (pre == "llama-bpe" if bos is None else bos) else []


def of_sentences(folder, name, arch, prefix):
    metaspace = tk.pre_tokenizers.Metaspace(prepend_scheme="always" if prefix else "never")
    pieces, _ = trained(metaspace, [], 260)
    pieces = [piece for piece in pieces if len(piece) == 1 or not set(piece) == {"\u2581"}]
    pieces.sort(key=len)  # scores follow the order, as in Gemma
    blanks = ["  ", "    "] if arch.startswith("gemma") else ["\u2581\u2581"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + blanks + pieces + ["<|end|>"]
    blank = USER if arch.startswith("gemma") else NORMAL
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [blank] * len(blanks) + [NORMAL] * len(pieces) + [CONTROL]
    path = os.path.join(folder, f"{name}.gguf")
    writer(path, arch, "llama", tokens, kinds, token_scores=[-float(at) for at in range(len(tokens))],
           bos_token_id=1, eos_token_id=2, unk_token_id=0, add_space_prefix=prefix, add_bos_token=True)
    own = from_transformers(path)
    if prefix:
        # llama.cpp adds a space after each special token.
        own.pre_tokenizer = None
        own.normalizer = tk.normalizers.Sequence(
            [tk.normalizers.Prepend("\u2581"), tk.normalizers.Replace(" ", "\u2581")])
    return own, [1]


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", default="gguf_tokenizers")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    cases = {pre: of_bytes(args.out, pre) for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2")}
    cases["dbrx"] = of_bytes(args.out, "dbrx", bos=True)
    cases["llama"] = of_sentences(args.out, "llama", "llama", True)
    cases["gemma"] = of_sentences(args.out, "gemma", "gemma3", False)
    expected = {}
    for name, (tokenizer, before) in cases.items():
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        expected[name] = [{"text": text, "ids": before + ids, "decoded": tokenizer.decode(ids)} for text, ids in zip(TEXTS, ids)]
        size = os.path.getsize(os.path.join(args.out, f"{name}.gguf")) / 1024
        print(f"{name:10s} {sum(map(len, ids)):4d} ids {size:5.0f} KiB")
    with open(os.path.join(args.out, "expected.json"), "w") as f:
        json.dump(expected, f, indent=0)


if __name__ == "__main__":
    main()
