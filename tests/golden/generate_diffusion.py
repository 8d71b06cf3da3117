#!/usr/bin/env python3
"""Write the conformance cases of diffusion transformers and VAEs with the attention of `diffusers`, next to those of generate.py.

    pip install torch diffusers safetensors
    python generate_diffusion.py --out cases
"""
import math

import diffusers
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxPosEmbed

from generate import base_config, main, spread, write

NORM = dict(kind="rms", weights="shared", epsilon=1e-6)


def config(attention, **kw):
    fields = dict(hidden_size=attention.query_dim, heads=attention.heads, triangular_masking=False, pre_layer_norm=False)
    return base_config(**fields, head_dim=attention.inner_dim // attention.heads, **kw)


def weights(attention):
    return {f"weights.{name}": value for name, value in attention.state_dict().items()}


def store(out, name, module, attention, cfg, call, extra):
    tensors = weights(attention) | {f"call0.{key}": value for key, value in call.items()}
    source = f"diffusers {diffusers.__version__} {type(attention).__name__}/{type(attention.processor).__name__}"
    calls = [{key: f"call0.{key}" for key in call}]
    write(out, name, module, cfg, calls, tensors, source, layer_id=0, extra=extra)


def sd3(name, hidden, heads, text, tokens, qk_norm, last, seed, out):
    """Image and text tokens, or image tokens alone (`attn2`)."""
    torch.manual_seed(seed)
    parts = {} if text is None else dict(added_kv_proj_dim=text, context_pre_only=last)
    attention = Attention(query_dim=hidden, heads=heads, dim_head=hidden // heads, out_dim=hidden, bias=True, eps=1e-6,
                          qk_norm=qk_norm, processor=JointAttnProcessor2_0(), **parts).eval()
    spread(attention, 1.3 / math.sqrt(hidden))
    image = torch.randn(2, tokens[0], hidden)
    call = {"input": image}
    if text is None:
        call["output"] = attention(image)
    else:
        call["text"] = torch.randn(2, tokens[1], text)
        call["output"], text_output = attention(image, encoder_hidden_states=call["text"])
        if not last:
            call["text_output"] = text_output
    cfg = config(attention, **({} if qk_norm is None else dict(qk_norm=NORM)))
    streams = {} if text is None else dict(text=text, text_output=not last)
    store(out, name, "DeepSpeedJointAttention", attention, cfg, call, {"joint": streams})


def flux(name, hidden, heads, axes, words, grid, single, seed, out):
    """A double block with text and image, or a single block with both in one stream and no output projection."""
    torch.manual_seed(seed)
    parts = dict(pre_only=True) if single else dict(added_kv_proj_dim=hidden, context_pre_only=False)
    attention = FluxAttention(query_dim=hidden, heads=heads, dim_head=hidden // heads, out_dim=hidden, bias=True, eps=1e-6,
                              **parts).eval()
    spread(attention, 1.3 / math.sqrt(hidden))
    rows, columns = grid
    patches = torch.tensor([[1, row, column] for row in range(rows) for column in range(columns)])
    ids = torch.cat([torch.zeros(words, 3, dtype=torch.long), patches])
    rotary = FluxPosEmbed(theta=10000, axes_dim=axes)(ids)
    text, image = torch.randn(2, words, hidden), torch.randn(2, rows * columns, hidden)
    call = {"axes_ids": ids.T.reshape(3, 1, -1)}
    if single:
        call["input"] = torch.cat([text, image], dim=1)
        call["output"] = attention(call["input"], image_rotary_emb=rotary)
        streams = dict(image_output=False)
    else:
        call["input"], call["text"] = image, text
        call["output"], call["text_output"] = attention(image, encoder_hidden_states=text, image_rotary_emb=rotary)
        streams = dict(text=hidden, text_first=True)
    sections = dict(pairs=[size // 2 for size in axes], order="separate")
    cfg = config(attention, qk_norm=NORM, rotary_dim=sum(axes), rope_sections=sections)
    store(out, name, "DeepSpeedJointAttention", attention, cfg, call, {"joint": streams})


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn", "group_norm": "group_norm"}


def vae(name, channels, heads, groups, factor, size, old_names, seed, out):
    torch.manual_seed(seed)
    attention = Attention(channels, heads=heads, dim_head=channels // heads, rescale_output_factor=factor, eps=1e-6,
                          norm_num_groups=groups, residual_connection=True, bias=True, upcast_softmax=True).eval()
    spread(attention, 1.3 / math.sqrt(channels))
    image = torch.randn(2, channels, *size) * 2 + 0.5
    call = {"input": image, "output": attention(image)}
    block = dict(groups=groups, epsilon=1e-6, rescale_output_factor=factor)
    if old_names:
        renamed = {}
        for key, value in attention.state_dict().items():
            path, end = key.rsplit(".", 1)
            kernel = value[..., None, None] if value.dim() == 2 else value
            renamed[f"{OLD[path]}.{end}"] = kernel
        attention.state_dict = lambda: renamed
    store(out, name, "DeepSpeedVaeAttention", attention, config(attention), call, {"vae": block})


def diffusion_set(out):
    return [
        ("sd3_joint", lambda: sd3("sd3_joint", 48, 4, 36, (9, 5), None, False, 40, out)),
        ("sd35_joint_last", lambda: sd3("sd35_joint_last", 48, 4, 36, (9, 5), "rms_norm", True, 41, out)),
        ("sd35_attn2", lambda: sd3("sd35_attn2", 48, 4, None, (11,), "rms_norm", False, 42, out)),
        ("flux_double", lambda: flux("flux_double", 48, 4, (2, 4, 6), 5, (3, 4), False, 43, out)),
        ("flux_single", lambda: flux("flux_single", 48, 4, (2, 4, 6), 5, (3, 4), True, 44, out)),
        ("vae", lambda: vae("vae", 40, 1, 8, 1.5, (5, 3), False, 45, out)),
        ("vae_old_names", lambda: vae("vae_old_names", 48, 4, 6, 1.0, (3, 7), True, 46, out)),
    ]


if __name__ == "__main__":
    main(diffusion_set)
