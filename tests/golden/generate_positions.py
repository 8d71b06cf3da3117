"""Writes `positions.json`: rotary frequencies, angles in sections, and windows, as `transformers` 5.23 computes them.

Frequencies come from `ROPE_INIT_FUNCTIONS` of `modeling_rope_utils.py`, angles from `Qwen2VLRotaryEmbedding` and
`Qwen3VLTextRotaryEmbedding`, windows from `masking_utils.py`.

    python tests/golden/generate_positions.py
"""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, Qwen2VLTextConfig, Qwen3VLTextConfig
from transformers import masking_utils as masks
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding


def factors(pairs, first, step):
    return [round(first + step * i, 4) for i in range(pairs)]


LONG = {"rope_type": "longrope", "short_factor": factors(8, 1.0, 0.05), "long_factor": factors(8, 1.5, 0.5)}
FEW = {"rope_type": "longrope", "short_factor": factors(3, 1.0, 0.1), "long_factor": factors(3, 2.0, 1.5)}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# A record, features of a head, and `max_position_embeddings`.
RECORDS = [
    (LONG | {"original_max_position_embeddings": 8}, 16, 256),
    (LONG | {"original_max_position_embeddings": 8, "factor": 3.0}, 16, 256),
    (LONG | {"original_max_position_embeddings": 8, "factor": 0.5}, 16, 256),
    (LONG | {"original_max_position_embeddings": 8, "attention_factor": 1.25}, 16, 256),
    (FEW | {"original_max_position_embeddings": 16, "partial_rotary_factor": 0.4}, 16, 64),
    (YARN, 16, 512),
    (YARN | {"truncate": False}, 16, 512),
    (YARN | {"truncate": False, "beta_fast": 4.0, "beta_slow": 2.0, "rope_theta": 150000.0}, 64, 512),
    (YARN | {"truncate": False, "partial_rotary_factor": 0.5, "attention_factor": 0.9}, 32, 512),
    (YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}, 16, 512),
    ({"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}, 32, 512),
    ({"rope_type": "proportional", "partial_rotary_factor": 0.3, "factor": 4.0}, 18, 512),
    ({"rope_type": "proportional"}, 16, 512),
    ({"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5}, 16, 512),
    ({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.75}, 16, 32),
    (LLAMA3 | {"original_max_position_embeddings": 64, "partial_rotary_factor": 0.5}, 32, 512),
]
LENGTHS = [1, 8, 9, 16, 17, 33, 100]


def frequencies():
    for record, head_dim, positions in RECORDS:
        config = LlamaConfig(
            hidden_size=2 * head_dim,
            num_attention_heads=2,
            head_dim=head_dim,
            max_position_embeddings=positions,
            rope_parameters=dict(record),
        )
        lengths = LENGTHS if record["rope_type"] in ("longrope", "dynamic") else [1]
        results = []
        for length in lengths:
            inv_freq, amplitude = ROPE_INIT_FUNCTIONS[record["rope_type"]](config, "cpu", seq_len=length)
            results.append({"length": length, "frequencies": inv_freq.tolist(), "amplitude": amplitude})
        yield {"record": record, "head_dim": head_dim, "max_position_embeddings": positions, "results": results}


def sections():
    ids = torch.tensor([[0, 1, 1, 1, 1, 3, 9, 31], [0, 1, 1, 2, 2, 3, 7, 31], [0, 1, 2, 1, 2, 3, 11, 31]])[:, None]
    classes = [
        ("chunked", Qwen2VLTextConfig, Qwen2VLRotaryEmbedding, {"rope_type": "default"}, [2, 3, 3]),
        ("interleaved", Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding, {"rope_type": "default"}, [4, 2, 2]),
        ("interleaved", Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding, {"rope_type": "default"}, [2, 3, 3]),
        ("chunked", Qwen2VLTextConfig, Qwen2VLRotaryEmbedding, YARN, [4, 3, 1]),
    ]
    for order, config, embedding, record, pairs in classes:
        record = record | {"mrope_section": pairs, "rope_theta": 10000.0}
        config = config(
            hidden_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
            rope_parameters=dict(record),
        )
        cos, sin = embedding(config)(torch.zeros(1), ids)
        half = cos.shape[-1] // 2
        yield {
            "order": order, "record": record, "head_dim": 16, "ids": ids[:, 0].tolist(),
            "cosines": cos[0, :, :half].flatten().tolist(), "sines": sin[0, :, :half].flatten().tolist(),
        }  # fmt: skip


def windows():
    """Rows of a mask, 1 where a query sees a key. `padding` counts the hidden keys before each row's first token."""
    keys = 13

    def rows(function, padding):
        seen = lambda b, q, k: k >= padding[b] and bool(function(b, 0, torch.tensor(q), torch.tensor(k)))
        line = lambda b, q: "".join("1" if seen(b, q, k) else "0" for k in range(keys))
        return [[line(b, q) for q in range(keys)] for b in range(len(padding))]

    for size in (1, 4, 5, 20):
        padding = [0, 3, 6]
        function = masks.chunked_causal_mask_function(size, torch.tensor(padding))
        yield {"kind": "chunked", "window_size": size, "padding": padding, "rows": rows(function, padding)}
    for size in (1, 4, 5, 40):
        padding = [0, 2]
        # `sliding_window` of a `ModernBertConfig` is half of its `local_attention`.
        function = masks.sliding_window_bidirectional_mask_function(size // 2)
        yield {"kind": "symmetric", "window_size": size, "padding": padding, "rows": rows(function, padding)}


if __name__ == "__main__":
    found = {"frequencies": list(frequencies()), "sections": list(sections()), "windows": list(windows())}
    lines = [f'  "{key}": [\n    ' + ",\n    ".join(map(json.dumps, cases)) + "\n  ]" for key, cases in found.items()]
    Path(__file__).with_name("positions.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
