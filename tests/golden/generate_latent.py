#!/usr/bin/env python3
"""Write layers of latent attention: the norm before attention and the attention of DeepSeek V2 and V3, with inputs and outputs.

Sizes are odd where the class allows it (V2 rotates pairs in place, so its heads are even), multipliers are not 1, and biases and norms
have random weights. Each folder has the `config.json` that `transformers` saves, a checkpoint of one layer, and a prompt of 11 tokens in
two rows with what the layer makes of it, in float32.

    pip install torch transformers safetensors
    python generate_latent.py --out latent
"""
import argparse
import json
import os

import torch
from safetensors.torch import save_file

torch.set_grad_enabled(False)
HIDDEN, HEADS, TOKENS = 24, 3, 11


def layers():
    """Name -> the classes of attention, rotary embedding and norm, and a configuration."""
    from transformers.models.deepseek_v2 import configuration_deepseek_v2 as c2, modeling_deepseek_v2 as m2
    from transformers.models.deepseek_v3 import configuration_deepseek_v3 as c3, modeling_deepseek_v3 as m3
    v2 = (m2.DeepseekV2Attention, m2.DeepseekV2RotaryEmbedding, m2.DeepseekV2RMSNorm, c2.DeepseekV2Config)
    v3 = (m3.DeepseekV3Attention, m3.DeepseekV3RotaryEmbedding, m3.DeepseekV3RMSNorm, c3.DeepseekV3Config)
    def yarn(**more):
        return {"rope_type": "yarn", "rope_theta": 3000.0, "factor": 8.0, "original_max_position_embeddings": 12, "beta_fast": 4.0, **more}
    def sizes(nope=9, **more):
        return dict(hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=HEADS, num_hidden_layers=1, kv_lora_rank=14,
                    qk_nope_head_dim=nope, qk_rope_head_dim=6, v_head_dim=7, max_position_embeddings=96, rms_norm_eps=0.02, **more)
    return {
        "deepseek_v2": (*v2, sizes(nope=10, q_lora_rank=None, attention_bias=True, num_experts_per_tok=2, rope_parameters=yarn(mscale=0.7, mscale_all_dim=0.7))),
        "deepseek_v3": (*v3, sizes(q_lora_rank=10, rope_parameters=yarn(mscale=1.3, mscale_all_dim=0.6))),
        "deepseek_v3_half": (*v3, sizes(q_lora_rank=10, rope_interleave=False, attention_bias=True,
                                        rope_parameters={"rope_type": "default", "rope_theta": 500.0})),
    }


def write(folder, attention_class, rotary_class, norm_class, config_class, settings):
    config = config_class(**settings)
    config._attn_implementation = "eager"
    attention, rotary = attention_class(config, 0).eval(), rotary_class(config)
    norm = norm_class(HIDDEN, eps=config.rms_norm_eps)
    for name, parameter in [*attention.named_parameters(), *norm.named_parameters()]:
        scale = 0.5 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5
        parameter.copy_(torch.randn_like(parameter) * scale + (1.0 if "norm" in name or parameter.ndim == 1 and "bias" not in name else 0.0))
    x = torch.randn(2, TOKENS, HIDDEN)
    positions = torch.arange(TOKENS)[None].expand(2, TOKENS)
    mask = torch.full((TOKENS, TOKENS), torch.finfo(torch.float32).min).triu(1)[None, None]
    y, _ = attention(norm(x), position_embeddings=rotary(x, positions), attention_mask=mask)
    os.makedirs(folder, exist_ok=True)
    tensors = {f"model.layers.0.self_attn.{name}": tensor.contiguous() for name, tensor in attention.state_dict().items()}
    tensors["model.layers.0.input_layernorm.weight"] = norm.weight
    save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, os.path.join(folder, "model.safetensors"))
    save_file({"input": x, "output": y.contiguous()}, os.path.join(folder, "case.safetensors"))
    saved = config.to_diff_dict()
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(saved, file, indent=1, sort_keys=True)
        file.write("\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="latent")
    out = parser.parse_args().out
    for name, layer in layers().items():
        torch.manual_seed(sum(name.encode()))
        write(os.path.join(out, name), *layer)


if __name__ == "__main__":
    main()
