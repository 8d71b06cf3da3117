"""The workloads, their inputs, and reference results. Every program gets the same problems."""

import functools
import math
import pathlib
import random

import numpy as np

# Number of rows of a result that are compared with float64.
CHECKED_ROWS = 64
EPSILON = 1e-6


def attention(name: str, title: str, sizes: tuple, group: str = "attention", **masks) -> dict:
    """Sizes are batch, query heads, key heads, features, queries, keys."""
    keys = ("batch", "heads", "kv_heads", "head_dim", "queries", "keys")
    workload = {"name": name, "title": title, "group": group, "kind": "attention", **dict(zip(keys, sizes, strict=True))}
    workload |= {"causal": False, "window": None, "alibi": False, "lengths": None} | masks
    batch, heads, kv_heads, head_dim, queries, keys = sizes
    seen = sum(len(visible(workload, row, query)) for row in range(batch) for query in range(queries))
    workload["flops"] = 4 * heads * head_dim * seen
    workload["bytes"] = 4 * 2 * batch * head_dim * (heads * queries + kv_heads * keys)
    workload["limit"] = "read" if queries == 1 else "matmul"
    return workload


def layer(name: str, title: str, hidden: int, heads: int, tokens: int, cached: int) -> dict:
    pairs = tokens * cached + tokens * (tokens + 1) // 2
    return {
        "name": name, "title": title, "group": "layer", "kind": "layer",
        "hidden": hidden, "heads": heads, "tokens": tokens, "cached": cached,
        "flops": 8 * tokens * hidden**2 + 4 * hidden * pairs,
        "bytes": 4 * (4 * hidden**2 + 2 * hidden * (cached + tokens) + 2 * hidden * tokens),
        "limit": "read" if tokens == 1 else "matmul",
    }  # fmt: skip


def length(which: str, keys: int) -> dict:
    sizes = (1, 8, 8, 64, keys, keys) if which == "prefill" else (1, 32, 8, 128, 1, keys)
    title = f"prompt of {keys}" if which == "prefill" else f"one token on {keys}"
    return attention(f"{which}-{keys}", title, sizes, "length", causal=True)


def limit(name: str, title: str, **sizes) -> dict:
    return {"name": name, "title": title, "group": "limit", "flops": 0, "bytes": 0} | sizes


def workloads(folder: pathlib.Path) -> list[dict]:
    """All workloads, with the limits first and last. The encoder is written to `folder`."""
    chance = random.Random(4)
    padded = [chance.randint(64, 128) for _ in range(8)]
    limits = [
        limit(f"matmul-{size}", f"product of {size}²", kind="matmul", size=size, flops=2 * size**3, limit="matmul")
        for size in (1024, 1536, 2048)
    ]
    limits.append(limit("read", "256 MiB", kind="read", elements=64 << 20, bytes=256 << 20, limit="read"))
    sentences = {"name": "M1", "title": "64 sentences", "group": "encoder", "kind": "encoder", "limit": None}
    return [
        *limits,
        attention("P1", "prompt of 512", (1, 12, 12, 64, 512, 512), causal=True),
        attention("P2", "prompt of 2048", (1, 16, 16, 64, 2048, 2048), causal=True),
        attention("P3", "prompt of 1024, grouped heads", (1, 32, 8, 128, 1024, 1024), causal=True),
        attention("P4", "eight padded texts of 64 to 128", (8, 12, 12, 64, 128, 128), lengths=padded),
        attention("P5", "prompt of 1024, ALiBi", (1, 16, 16, 64, 1024, 1024), causal=True, alibi=True),
        attention("P6", "prompt of 2048, window of 256", (1, 16, 16, 64, 2048, 2048), causal=True, window=256),
        attention("D1", "one token on 2048", (1, 32, 32, 128, 1, 2048), causal=True),
        attention("D2", "eight rows on 2048, grouped heads", (8, 32, 8, 128, 1, 2048), causal=True),
        attention("D3", "one token on 16384, grouped heads", (1, 32, 8, 128, 1, 16384), causal=True),
        attention("X1", "4096 pixels to 77 words", (2, 8, 8, 40, 4096, 77)),
        attention("X2", "4096 pixels to themselves", (2, 8, 8, 40, 4096, 4096)),
        layer("L1-prompt", "hidden 1024, 512 tokens", 1024, 16, 512, 0),
        layer("L1-512", "hidden 1024, one token", 1024, 16, 1, 512),
        layer("L1-4096", "hidden 1024, one token", 1024, 16, 1, 4096),
        layer("L2-prompt", "hidden 4096, 512 tokens", 4096, 32, 512, 0),
        layer("L2-512", "hidden 4096, one token", 4096, 32, 1, 512),
        layer("L2-4096", "hidden 4096, one token", 4096, 32, 1, 4096),
        sentences | {"folder": str(folder), "batch": 16, "sentences": 64},
        *(length("prefill", 2**power) for power in range(7, 15)),
        *(length("decode", 2**power) for power in range(7, 15)),
        *limits,
    ]


# Inputs and the reference.


def noise(seed: int, shape: tuple, deviation: float = 1.0) -> np.ndarray:
    """Numbers between ±√3 · deviation, the same as `noise` of `src/workload.rs`."""
    bits = np.arange(math.prod(shape), dtype=np.uint32)
    bits += np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits ^= bits >> np.uint32(shift)
        bits *= np.uint32(factor)
    bits >>= np.uint32(8)
    values = bits.astype(np.float32)
    values /= np.float32(1 << 23)
    values -= np.float32(1)
    values *= np.float32(math.sqrt(3) * deviation)
    return values.reshape(shape)


def visible(workload: dict, row: int, query: int) -> range:
    """The keys that a query sees."""
    at = query + workload["keys"] - workload["queries"]
    end = min(at + 1, workload["keys"]) if workload["causal"] else workload["keys"]
    if workload["lengths"]:
        end = min(end, workload["lengths"][row])
    return range(max(0, at + 1 - workload["window"]) if workload["window"] else 0, end)


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """One query in float64: softmax(query · keyᵀ / √features + bias) · value."""
    scores = key.astype(np.float64) @ query.astype(np.float64) / math.sqrt(query.size) + bias
    weights = np.exp(scores - scores.max())
    return weights @ value.astype(np.float64) / weights.sum()


def attention_reference(workload: dict, rows: list[int]) -> np.ndarray:
    batch, heads, kv_heads, features = (workload[key] for key in ("batch", "heads", "kv_heads", "head_dim"))
    queries, keys = workload["queries"], workload["keys"]
    query = noise(1, (batch, heads, queries, features))
    key, value = (noise(seed, (batch, kv_heads, keys, features)) for seed in (2, 3))

    def row(at: int) -> np.ndarray:
        text, head, token = np.unravel_index(at, (batch, heads, queries))
        seen = visible(workload, text, token)
        seen, group = slice(seen.start, seen.stop), (text, head // (heads // kv_heads))
        distance = np.arange(keys)[seen] - (token + keys - queries)
        bias = 2.0 ** (-8 * (head + 1) / heads) * distance if workload["alibi"] else 0.0
        return attend(query[text, head, token], key[group][seen], value[group][seen], bias)

    return np.stack([row(at) for at in rows])


@functools.lru_cache(maxsize=1)
def layer_weights(hidden: int) -> tuple[np.ndarray, ...]:
    """Gamma, QKV and output matrix, `[in, out]`."""
    gamma = noise(11, (hidden,), 0.1) + np.float32(1)
    return gamma, noise(12, (hidden, 3 * hidden), 0.02), noise(13, (hidden, hidden), 0.02)


def layer_reference(workload: dict, rows: list[int]) -> np.ndarray:
    hidden, heads, tokens, cached = (workload[key] for key in ("hidden", "heads", "tokens", "cached"))
    gamma, qkv, output = layer_weights(hidden)
    size = hidden // heads
    input_ = noise(14, (tokens, hidden)).astype(np.float64)
    normed = input_ / np.sqrt((input_**2).mean(1, keepdims=True) + EPSILON) * gamma
    query, key, value = (normed @ qkv).reshape(tokens, 3, heads, size).transpose(1, 2, 0, 3)
    angles = np.arange(cached, cached + tokens)[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)

    def rotated(side: np.ndarray) -> np.ndarray:
        first, second = np.split(side, 2, axis=-1)
        cosine, sine = np.cos(angles), np.sin(angles)
        return np.concatenate((first * cosine - second * sine, second * cosine + first * sine), axis=-1)

    query, key = rotated(query), rotated(key)
    past = [noise(seed, (heads, cached, size)) for seed in (15, 16)]
    key, value = (np.concatenate(pair, axis=1) for pair in zip(past, (key, value), strict=True))

    def context(row: int) -> np.ndarray:
        seen = cached + row + 1
        return np.concatenate([attend(query[at, row], key[at, :seen], value[at, :seen]) for at in range(heads)])

    return np.stack([context(row) for row in rows]) @ output


def checked_rows(workload: dict) -> list[int]:
    """The first and last row of a result and some between."""
    match workload["kind"]:
        case "attention":
            count = workload["batch"] * workload["heads"] * workload["queries"]
        case "layer":
            count = workload["tokens"]
        case "encoder":
            count = workload["sentences"]
        case _:
            return []
    between = random.Random(5).sample(range(count), min(count, CHECKED_ROWS))
    return sorted({0, count - 1, *between})
