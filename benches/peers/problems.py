"""The workloads, their inputs, and reference results. Every program gets the same problems."""

import functools
import math
import pathlib
import random

import numpy as np

# Number of rows of a result that are compared with float64.
CHECKED_ROWS = 64
EPSILON = 1e-6
# Elements of a block, and the bytes of one.
BLOCK = 32
BLOCK_BYTES = {"Q4_0": 18, "Q8_0": 34}


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


def layer(name: str, title: str, hidden: int, heads: int, tokens: int, cached: int, group: str = "layer", **more) -> dict:
    """A LLaMA layer unless `more` says otherwise: `kv_heads`, `head_dim`, `window`, `model` with its norm of queries and keys, and
    `blocks`, the format that its matrices are rounded to."""
    workload = {
        "name": name, "title": title, "group": group, "kind": "layer",
        "hidden": hidden, "heads": heads, "tokens": tokens, "cached": cached,
        "kv_heads": heads, "head_dim": hidden // heads, "window": None, "model": "llama", "norm": False, "sinks": False,
        "blocks": None,
    } | more  # fmt: skip
    width, kv_width = heads * workload["head_dim"], workload["kv_heads"] * workload["head_dim"]
    window = workload["window"] or cached + tokens
    pairs = sum(min(cached + at + 1, window) for at in range(tokens))
    weights = hidden * (2 * width + 2 * kv_width)
    workload["flops"] = 2 * tokens * weights + 4 * width * pairs
    weights_bytes = weights * (BLOCK_BYTES[workload["blocks"]] / BLOCK if workload["blocks"] else 4)
    workload["bytes"] = round(weights_bytes) + 4 * (2 * kv_width * (min(cached, window) + tokens) + 2 * hidden * tokens)
    workload["limit"] = "read" if tokens == 1 else "matmul"
    return workload


def qwen(name: str, title: str, tokens: int, cached: int) -> dict:
    """Qwen 3 4B."""
    return layer(name, f"Qwen 3, {title}", 2560, 32, tokens, cached, "family", kv_heads=8, head_dim=128, model="qwen3", norm=True)


def gemma(name: str, title: str, tokens: int, cached: int) -> dict:
    """Gemma 3 4B, a layer with a window."""
    sizes = {"kv_heads": 4, "head_dim": 256, "window": 1024}
    return layer(name, f"Gemma 3, {title}", 2560, 8, tokens, cached, "family", **sizes, model="gemma3", norm=True)


def in_blocks(hidden: int, heads: int, tokens: int, cached: int) -> list[dict]:
    """A layer with matrices of each format."""
    what = f"{tokens} tokens" if tokens > 1 else "one token"
    return [
        layer(
            f"{name}-{hidden}-{cached or 'prompt'}", f"hidden {hidden}, {what}", hidden, heads, tokens, cached, "blocks", blocks=name
        )
        for name in BLOCK_BYTES
    ]  # fmt: skip


def length(which: str, keys: int) -> dict:
    sizes = (1, 8, 8, 64, keys, keys) if which == "prefill" else (1, 32, 8, 128, 1, keys)
    title = f"prompt of {keys}" if which == "prefill" else f"one token on {keys}"
    return attention(f"{which}-{keys}", title, sizes, "length", causal=True)


def limit(name: str, title: str, **sizes) -> dict:
    return {"name": name, "title": title, "group": "limit", "flops": 0, "bytes": 0} | sizes


def reading(name: str, mebibytes: int) -> dict:
    """The sum of an array of this size."""
    sizes = {"elements": mebibytes << 18, "bytes": mebibytes << 20}
    return limit(name, f"{mebibytes} MiB", kind="read", limit="read", **sizes)


def last_level_cache() -> int:
    """Bytes of the last-level cache of the first processor; 16 MiB where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20}
    files = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [text for text in (file.read_text().strip() for file in files) if text[-1] in units]
    return max((int(text[:-1]) * units[text[-1]] for text in sizes), default=16 << 20)


def workloads(folder: pathlib.Path) -> list[dict]:
    """All workloads, with the limits first and last. The encoder is written to `folder`."""
    chance = random.Random(4)
    padded = [chance.randint(64, 128) for _ in range(8)]
    limits = [
        limit(f"matmul-{size}", f"product of {size}²", kind="matmul", size=size, flops=2 * size**3, limit="matmul")
        for size in (1024, 1536, 2048)
    ]
    limits.append(reading("read", 256))
    limits.append(reading("read-cache", max(4, last_level_cache() // 4 >> 20)))
    limits.append(limit("peak", "multiply-adds", kind="peak", steps=1 << 28, flops=2 << 28, limit="peak"))
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
        qwen("L3-prompt", "prompt of 512", 512, 0),
        qwen("L3-512", "one token on 512", 1, 512),
        qwen("L3-4096", "one token on 4096", 1, 4096),
        gemma("L4-prompt", "prompt of 2048", 2048, 0),
        gemma("L4-512", "one token on 512", 1, 512),
        gemma("L4-4096", "one token on 4096", 1, 4096),
        *in_blocks(1024, 16, 512, 0),
        *in_blocks(1024, 16, 1, 512),
        *in_blocks(4096, 32, 512, 0),
        *in_blocks(4096, 32, 1, 512),
        sentences | {"folder": str(folder), "batch": 16, "sentences": 64},
        *(length("prefill", 2**power) for power in range(7, 15)),
        *(length("decode", 2**power) for power in range(7, 15)),
        *limits,
    ]


def smoke_workloads() -> list[dict]:
    """A tiny problem of every kind whose inputs need no other package."""
    sizes = {"kv_heads": 2, "head_dim": 32}
    return [
        limit("matmul-64", "product of 64²", kind="matmul", size=64, flops=2 * 64**3, limit="matmul"),
        reading("read", 1),
        limit("peak", "multiply-adds", kind="peak", steps=1 << 16, flops=2 << 16, limit="peak"),
        attention("P1", "prompt of 17", (1, 4, 4, 32, 17, 17), causal=True),
        attention("D1", "one token on 65, grouped heads", (1, 4, 2, 32, 1, 65), causal=True),
        layer("L1-prompt", "hidden 64, 17 tokens", 64, 2, 17, 0),
        layer("L1-33", "hidden 64, one token", 64, 2, 1, 33),
        layer("L3-33", "Qwen 3, one token on 33", 64, 4, 1, 33, "family", model="qwen3", norm=True, **sizes),
        *in_blocks(64, 2, 17, 0),
        *in_blocks(64, 2, 1, 33),
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


def attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, bias: np.ndarray | float = 0.0, sink: float = -math.inf
) -> np.ndarray:
    """One query in float64: softmax(query · keyᵀ / √features + bias) · value. The sink joins the sum of the softmax."""
    scores = key.astype(np.float64) @ query.astype(np.float64) / math.sqrt(query.size) + bias
    most = max(scores.max(), sink)
    weights = np.exp(scores - most)
    return weights @ value.astype(np.float64) / (weights.sum() + math.exp(sink - most))


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


def layer_sizes(workload: dict) -> tuple[int, ...]:
    return tuple(workload[key] for key in ("hidden", "heads", "kv_heads", "head_dim"))


@functools.lru_cache(maxsize=1)
def layer_weights(hidden: int, heads: int, kv_heads: int, size: int) -> tuple[np.ndarray, ...]:
    """Gamma, QKV and output matrix, `[in, out]`."""
    gamma = noise(11, (hidden,), 0.1) + np.float32(1)
    return gamma, noise(12, (hidden, (heads + 2 * kv_heads) * size), 0.02), noise(13, (heads * size, hidden), 0.02)


def blocks(matrix: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A matrix `[out, in]` in the blocks of llama.cpp: integers of the same shape, and a scale for each 32 of them, which is an f16."""
    parts = matrix.reshape(len(matrix), -1, BLOCK)
    most = np.take_along_axis(parts, np.abs(parts).argmax(-1, keepdims=True), -1)
    scales = most / np.float32(-8) if name == "Q4_0" else np.abs(most) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    if name == "Q4_0":
        integers = np.clip(np.trunc((parts.astype(np.float64) * inverse + 8.5).astype(np.float32)), 0, 15) - 8
    else:
        scaled = parts * inverse
        integers = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    return integers.astype(np.int8).reshape(matrix.shape), scales[..., 0].astype(np.float16)


def rounded(matrix: np.ndarray, name: str) -> np.ndarray:
    """The values of a matrix `[in, out]` in blocks."""
    integers, scales = blocks(np.ascontiguousarray(matrix.T), name)
    return (integers.reshape(*scales.shape, BLOCK) * scales[..., None].astype(np.float32)).reshape(integers.shape).T


def norm_weights(size: int) -> list[np.ndarray]:
    """Factors of the features of queries and of keys, after their norm."""
    return [noise(seed, (size,), 0.1) + np.float32(1) for seed in (17, 18)]


def rotary_tables(workload: dict) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the new tokens, `[T, H / 2]`, in float64."""
    cached, tokens, size = workload["cached"], workload["tokens"], workload["head_dim"]
    angles = np.arange(cached, cached + tokens)[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)
    return np.cos(angles), np.sin(angles)


def layer_reference(workload: dict, rows: list[int]) -> np.ndarray:
    hidden, heads, kv_heads, size = layer_sizes(workload)
    tokens, cached, window = workload["tokens"], workload["cached"], workload["window"] or math.inf
    gamma, qkv, output = layer_weights(hidden, heads, kv_heads, size)
    if workload["blocks"]:
        qkv, output = (rounded(matrix, workload["blocks"]) for matrix in (qkv, output))
    input_ = noise(14, (tokens, hidden)).astype(np.float64)

    def rms(side: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return side / np.sqrt((side**2).mean(-1, keepdims=True) + EPSILON) * weight

    split = np.split(rms(input_, gamma) @ qkv, [heads * size, (heads + kv_heads) * size], axis=1)
    query, key, value = (side.reshape(tokens, -1, size).swapaxes(0, 1) for side in split)
    if workload["norm"]:
        query, key = map(rms, (query, key), norm_weights(size))
    cosine, sine = rotary_tables(workload)

    def rotated(side: np.ndarray) -> np.ndarray:
        first, second = np.split(side, 2, axis=-1)
        return np.concatenate((first * cosine - second * sine, second * cosine + first * sine), axis=-1)

    query, key = rotated(query), rotated(key)
    past = [noise(seed, (kv_heads, cached, size)) for seed in (15, 16)]
    key, value = (np.concatenate(pair, axis=1) for pair in zip(past, (key, value), strict=True))
    sinks = noise(19, (heads,)) if workload["sinks"] else [-math.inf] * heads

    def context(row: int) -> np.ndarray:
        at = cached + row
        seen = slice(int(max(0, at + 1 - window)), at + 1)
        groups = [head // (heads // kv_heads) for head in range(heads)]
        one = zip(query[:, row], groups, sinks, strict=True)
        return np.concatenate([attend(head, key[group, seen], value[group, seen], sink=sink) for head, group, sink in one])

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
