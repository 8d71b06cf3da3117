"""PyTorch and `transformers`, asked by `measure.py` for the same problems as `src/main.rs`, over the same lines of JSON."""

import copy
import functools
import json
import math
import os
import pathlib
import random
import re
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from problems import EPSILON, layer_sizes, layer_weights, noise, norm_weights, rotary_tables

Call = Callable[[], torch.Tensor]


# Attention.


@functools.lru_cache(maxsize=1)
def inputs(*sizes: int) -> tuple[torch.Tensor, ...]:
    """Query, key, value; the same tensors for every implementation."""
    batch, heads, kv_heads, features, queries, keys = sizes
    shapes = ((batch, heads, queries, features), *2 * [(batch, kv_heads, keys, features)])
    return tuple(torch.from_numpy(noise(seed, shape)) for seed, shape in enumerate(shapes, 1))


def sizes(workload: dict) -> list[int]:
    return [workload[key] for key in ("batch", "heads", "kv_heads", "head_dim", "queries", "keys")]


def slopes(heads: int) -> torch.Tensor:
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


def additive(workload: dict) -> torch.Tensor | None:
    """The addend of the scores, `[B or 1, N or 1, T or 1, S]`: the fastest form of a mask. A single query sees everything."""
    _, heads, _, _, queries, keys = sizes(workload)
    query, key = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None]
    hidden = torch.zeros(1, 1, 1, keys, dtype=torch.bool)
    if workload["causal"] and queries > 1:
        hidden = hidden | (key > query)
    if workload["window"]:
        hidden = hidden | (key <= query - workload["window"])
    if workload["lengths"]:
        hidden = hidden | (key >= torch.tensor(workload["lengths"])[:, None])[:, None, None]
    if not hidden.any():
        return None
    bias = slopes(heads)[:, None, None] * (key - query) if workload["alibi"] else torch.zeros(1)
    return torch.where(hidden, -math.inf, bias)


def sdpa(workload: dict) -> Call:
    query, key, value = inputs(*sizes(workload))
    causal = workload["causal"] and not workload["window"] and not workload["alibi"] and query.shape[2] > 1
    mask = None if causal else additive(workload)
    grouped = query.shape[1] != key.shape[1]
    return lambda: functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


def unfused(workload: dict) -> Call:
    query, key, value = inputs(*sizes(workload))
    mask, scale, groups = additive(workload), 1 / math.sqrt(query.shape[-1]), query.shape[1] // key.shape[1]

    def call() -> torch.Tensor:
        keys, values = (side if groups == 1 else side.repeat_interleave(groups, 1) for side in (key, value))
        scores = torch.matmul(query, keys.transpose(2, 3)).mul_(scale)
        if mask is not None:
            scores += mask
        return torch.matmul(functional.softmax(scores, dim=-1), values)

    return call


def flex(workload: dict) -> Call:
    query, key, value = inputs(*sizes(workload))
    batch, heads, _, _, queries, keys = sizes(workload)
    block_mask = score_mod = None
    window, lengths = workload["window"] or keys + 1, workload["lengths"]
    if lengths:
        real = torch.tensor(lengths)
        block_mask = create_block_mask(lambda b, h, q, k: k < real[b], batch, None, queries, keys, device="cpu")
    elif workload["causal"] and queries > 1:
        seen = lambda b, h, q, k: (k <= q) & (q - k < window)  # noqa: E731
        block_mask = create_block_mask(seen, None, None, queries, keys, device="cpu")
    if workload["alibi"]:
        slope = slopes(heads)
        score_mod = lambda score, b, h, q, k: score + slope[h] * (k - q)  # noqa: E731
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(
        query, key, value, score_mod=score_mod, block_mask=block_mask, enable_gqa=query.shape[1] != key.shape[1]
    )


# Layers.


def layer(
    workload: dict, attention: str, static: bool = False, int8: bool = False, dtype: torch.dtype = torch.float32
) -> Call:
    """The norm and the attention of a model. What `transformers` computes once for all layers, rotary tables and masks, is not timed."""
    from transformers.cache_utils import DynamicCache, StaticCache
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    hidden, heads, kv_heads, size = layer_sizes(workload)
    tokens, cached, window = workload["tokens"], workload["cached"], workload["window"]
    module = layer_attention(workload, attention)
    norm = LlamaRMSNorm(hidden, EPSILON)
    norm.weight.data = torch.from_numpy(layer_weights(hidden, heads, kv_heads, size)[0])
    if int8:
        module = torch.ao.quantization.quantize_dynamic(copy.deepcopy(module), {torch.nn.Linear}, dtype=torch.qint8)
    if dtype != torch.float32:
        module, norm = (copy.deepcopy(part).to(dtype) for part in (module, norm))
    input_ = torch.from_numpy(noise(14, (1, tokens, hidden))).to(dtype)
    rotary = [torch.from_numpy(table).to(dtype).repeat(1, 2)[None] for table in rotary_tables(workload)]
    past = [torch.from_numpy(noise(seed, (1, kv_heads, cached, size))).to(dtype) for seed in (15, 16)]
    if window:
        # The cache of a layer with a window keeps what the next token sees.
        past = [side[:, :, 1 - window :] for side in past]
    before = past[0].shape[2]
    mask = None
    if attention == "eager" or window and before + tokens > window:
        at, key = torch.arange(before, before + tokens)[:, None], torch.arange(before + tokens)
        hidden_pairs = (key > at) | (key <= at - (window or before + tokens))
        mask = torch.where(hidden_pairs, -math.inf, 0.0)[None, None]
    cache = StaticCache(module.config, max_cache_len=cached + tokens) if static else DynamicCache()
    cache.update(*(past if cached else [torch.zeros(1, kv_heads, tokens, size, dtype=dtype)] * 2), 0)
    stored = cache.layers[0]

    def call() -> torch.Tensor:
        # Back to what was cached before the call, without a copy.
        if static:
            stored.cumulative_length.fill_(cached)
        else:
            stored.keys, stored.values = (side if cached else side.new_empty(0) for side in past)
        return module(norm(input_), position_embeddings=rotary, attention_mask=mask, past_key_values=cache)[0]

    return call


@functools.lru_cache(maxsize=1)
def projections(*sizes: int) -> list[torch.nn.Parameter]:
    """The matrices of query, key, value and output, `[out, in]`; the same for every implementation."""
    _, heads, kv_heads, size = sizes
    _, qkv, output = (torch.from_numpy(weight) for weight in layer_weights(*sizes))
    matrices = [matrix.T.contiguous() for matrix in (*qkv.split([heads * size, *2 * [kv_heads * size]], 1), output)]
    return [torch.nn.Parameter(matrix, requires_grad=False) for matrix in matrices]


def layer_attention(workload: dict, attention: str) -> torch.nn.Module:
    """The attention module of the model of a workload, with its weights."""
    from transformers.models.gemma3 import modeling_gemma3 as gemma3
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.qwen3 import modeling_qwen3 as qwen3

    hidden, heads, kv_heads, size = layer_sizes(workload)
    sizes = {
        "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": size,
        "num_hidden_layers": 1, "max_position_embeddings": workload["cached"] + workload["tokens"], "rms_norm_eps": EPSILON,
    }  # fmt: skip
    match workload["model"]:
        case "qwen3":
            config, module = qwen3.Qwen3Config(**sizes), qwen3.Qwen3Attention
        case "gemma3":
            window = {"sliding_window": workload["window"], "layer_types": ["sliding_attention"]}
            config, module = gemma3.Gemma3TextConfig(**sizes, query_pre_attn_scalar=size, **window), gemma3.Gemma3Attention
        case _:
            config, module = llama.LlamaConfig(**sizes), llama.LlamaAttention
    config._attn_implementation = attention
    with torch.device("meta"):
        module = module(config, 0).eval()
    linears = (module.q_proj, module.k_proj, module.v_proj, module.o_proj)
    for linear, matrix in zip(linears, projections(hidden, heads, kv_heads, size), strict=True):
        linear.weight = matrix
    if workload["norm"]:
        # Gemma stores the factors minus 1.
        less = float(workload["model"] == "gemma3")
        for norm, weight in zip((module.q_norm, module.k_norm), norm_weights(size), strict=True):
            norm.weight = torch.nn.Parameter(torch.from_numpy(weight) - less, requires_grad=False)
    return module


# The encoder.


def write_encoder(folder: pathlib.Path, sentences: int):
    """A BERT of all-MiniLM-L6-v2's sizes with random weights, a tokenizer of made-up words, and sentences of 8 to 128 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    words = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{at}" for at in range(30000))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
    )
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(folder / "tokenizer.json"))
    chance = random.Random(6)
    lengths = [chance.randint(8, 128) - 2 for _ in range(sentences)]
    text = (" ".join(f"w{chance.randrange(30000)}" for _ in range(length)) for length in lengths)
    (folder / "sentences.txt").write_text("\n".join(text) + "\n")


def encoder(workload: dict, dtype: torch.dtype = torch.float32, attention: str = "sdpa", int8: bool = False) -> Call:
    """From text to unit vectors, the mean over tokens, in batches."""
    from tokenizers import Tokenizer
    from transformers import BertModel

    folder = pathlib.Path(workload["folder"])
    model = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation=attention, dtype=dtype).eval()
    if int8:
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sentences = (folder / "sentences.txt").read_text().splitlines()
    batches = [sentences[at : at + workload["batch"]] for at in range(0, len(sentences), workload["batch"])]

    def embed(batch: list[str]) -> torch.Tensor:
        encodings = tokenizer.encode_batch(batch)
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(dtype)
        return functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)

    return lambda: torch.cat([embed(batch) for batch in batches])


# Answers.


def matmul(workload: dict) -> Call:
    lhs, rhs = (torch.from_numpy(noise(seed, (workload["size"],) * 2)) for seed in (1, 2))
    return lambda: lhs @ rhs


IMPLEMENTATIONS: dict[str, Callable[[dict], Call]] = {
    "sdpa": sdpa,
    "unfused": unfused,
    "flex-attention": flex,
    "transformers-sdpa": lambda workload: encoder(workload) if workload["kind"] == "encoder" else layer(workload, "sdpa"),
    "transformers-static": lambda workload: layer(workload, "sdpa", static=True),
    "transformers-eager": lambda workload: layer(workload, "eager"),
    "transformers-bf16": lambda workload: layer(workload, "sdpa", static=True, dtype=torch.bfloat16),
    "int8": lambda workload: (
        encoder(workload, int8=True) if workload["kind"] == "encoder" else layer(workload, "sdpa", int8=True)
    ),
    "torch-matmul": matmul,
}


def timed(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def status(field: str) -> int:
    """A size in bytes of `/proc/self/status`."""
    return 1024 * int(re.search(rf"^{field}:\s*(\d+)", pathlib.Path("/proc/self/status").read_text(), re.M)[1])


def answer(calls: dict[str, Call], request: dict) -> dict:
    match request["do"]:
        case "about":
            import transformers

            return {"versions": {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}}
        case "prepare":
            name = request["implementation"]
            call = IMPLEMENTATIONS[name](request["workload"])
            result = call()
            rows = result.float().reshape(-1, request["width"])[request["rows"]].tolist() if request["rows"] else []
            del result
            calls[request["key"]] = call
            return {"rows": rows, "seconds": [timed(call)]}
        case "time":
            call = calls[request["implementation"]]
            if request["warm"]:
                call()
            return {"seconds": [timed(call) for _ in range(request["calls"])]}
        case "memory":
            build = IMPLEMENTATIONS[request["implementation"]]
            small = build(request["small"])
            small(), small()
            call = build(request["workload"])
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            call()
            return {"bytes": max(0, status("VmHWM") - before)}
        case "encoder":
            workload = request["workload"]
            write_encoder(pathlib.Path(workload["folder"]), workload["sentences"])
            return {"rows": encoder(workload, torch.float64, "eager")()[request["rows"]].tolist()}
        case "forget":
            calls.clear()
            inputs.cache_clear()
    return {}


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    calls: dict[str, Call] = {}
    for line in sys.stdin:
        try:
            with torch.inference_mode():
                reply = answer(calls, json.loads(line))
        except Exception as error:  # whatever it fails with is the answer
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
