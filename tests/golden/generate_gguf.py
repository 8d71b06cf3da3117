#!/usr/bin/env python3
"""Write tiny checkpoints as GGUF files, and what `transformers` generates from the weights that they hold.

Each model is written in formats that differ from matrix to matrix, as llama.cpp's converter stores it: names of the `gguf` package,
rows of queries and keys in pairs, norms of Gemma plus 1. Before it generates, every weight becomes what its blocks hold.

    pip install torch transformers gguf
    python generate_gguf.py --out gguf
"""
import argparse
import json
import math
import os

import gguf
import numpy as np
import torch

import generate_families

torch.set_grad_enabled(False)
VOCAB, HIDDEN, INNER, HEADS, KV, WINDOW = 64, 32, 96, 4, 2, 5
FORMATS = ["Q8_0", "Q5_1", "F16", "Q4_1", "Q5_0", "BF16", "Q4_0", "F32"]
# Names that the package does not know for an architecture, or that its converter writes in another way.
EXTRA = {"lm_head": "output", "embed_out": "output"}


def models():
    """Architecture -> a model."""
    import transformers as tf
    common = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=None, pad_token_id=0, tie_word_embeddings=False)

    def lm(layers=2, **more):
        return {**dict(hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=layers, num_attention_heads=HEADS,
                       num_key_value_heads=KV, max_position_embeddings=96), **common, **more}

    def rope(theta=10000.0, **more):
        return {"rope_type": "default", "rope_theta": theta, **more}
    llama3 = {**rope(5e4), "rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
              "original_max_position_embeddings": 24}
    yarn = {"rope_type": "yarn", "rope_theta": 3e4, "factor": 4.0, "original_max_position_embeddings": 24}
    long = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1], "long_factor": [1.5, 3.0],
            "partial_rotary_factor": 0.5}
    gemma3_rope = {"sliding_attention": rope(), "full_attention": {**rope(1e6), "rope_type": "linear", "factor": 4.0}}
    falcon = dict(hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS, ffn_hidden_size=INNER, max_position_embeddings=96)
    return {
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(rope_parameters=rope(700.0), rms_norm_eps=2e-3, **lm(3, tie_word_embeddings=True))),
        "llama_rope_factors": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(rope_parameters=llama3, attention_bias=True, mlp_bias=True, head_dim=16, **lm())),
        "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(rope_parameters=yarn, rms_norm_eps=2e-3, **lm())),
        "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(head_dim=16, rope_parameters=rope(1e6), **lm(tie_word_embeddings=True))),
        "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(head_dim=16, rope_parameters=rope(), **lm(tie_word_embeddings=True))),
        "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(head_dim=16, query_pre_attn_scalar=16, sliding_window=WINDOW, attn_logit_softcapping=7.0, final_logit_softcapping=9.0, rope_parameters=rope(), **lm(3, tie_word_embeddings=True))),
        "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(head_dim=16, query_pre_attn_scalar=16, sliding_window=WINDOW, rope_parameters=gemma3_rope, **lm(7, intermediate_size=32, tie_word_embeddings=True))),
        "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(rope_parameters=rope(), sliding_window=WINDOW, **lm())),
        "phi3_longrope": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(rope_parameters=long, original_max_position_embeddings=6, **lm())),
        "granite": lambda: tf.GraniteForCausalLM(tf.GraniteConfig(rope_parameters=rope(), attention_multiplier=0.11, residual_multiplier=0.4, embedding_multiplier=3.0, logits_scaling=2.0, **lm())),
        "smollm3": lambda: tf.SmolLM3ForCausalLM(tf.SmolLM3Config(rope_parameters=rope(2e6), use_sliding_window=False, **lm(5, intermediate_size=64))),
        "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(rope_parameters=rope(5e5), **lm())),
        "stablelm": lambda: tf.StableLmForCausalLM(tf.StableLmConfig(rope_parameters=rope(partial_rotary_factor=0.5), use_qkv_bias=True, **lm())),
        "stablelm_parallel": lambda: tf.StableLmForCausalLM(tf.StableLmConfig(rope_parameters=rope(partial_rotary_factor=0.5), qk_layernorm=True, use_parallel_residual=True, **lm())),
        "starcoder2": lambda: tf.Starcoder2ForCausalLM(tf.Starcoder2Config(rope_parameters=rope(), sliding_window=None, use_bias=True, **lm())),
        "phi2": lambda: tf.PhiForCausalLM(tf.PhiConfig(rope_parameters=rope(partial_rotary_factor=0.5), **lm(num_key_value_heads=HEADS))),
        "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=HIDDEN, n_layer=2, n_head=HEADS, n_inner=INNER, n_positions=96, **{**common, "tie_word_embeddings": True})),
        "gptneox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=INNER, max_position_embeddings=96, rope_parameters=rope(partial_rotary_factor=0.5), **common)),
        "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(hidden_size=HIDDEN, n_layer=2, n_head=HEADS, **{**common, "tie_word_embeddings": True})),
        "mpt": lambda: tf.MptForCausalLM(tf.MptConfig(d_model=HIDDEN, n_heads=HEADS, n_layers=2, max_seq_len=96, attn_config={"clip_qkv": 1.1}, **{**common, "tie_word_embeddings": True})),
        "falcon": lambda: tf.FalconForCausalLM(tf.FalconConfig(multi_query=True, rope_parameters=rope(700.0), **falcon, **common)),
        "falcon_groups": lambda: tf.FalconForCausalLM(tf.FalconConfig(num_kv_heads=KV, new_decoder_architecture=True, rope_parameters=rope(), **falcon, **common)),
        "falcon_one-norm": lambda: tf.FalconForCausalLM(tf.FalconConfig(num_kv_heads=KV, new_decoder_architecture=True, num_ln_in_parallel_attn=1, rope_parameters=rope(), **falcon, **{**common, "tie_word_embeddings": True})),
        "command-r": lambda: tf.CohereForCausalLM(tf.CohereConfig(rope_parameters=rope(700.0), use_qk_norm=True, logit_scale=0.5, **lm(tie_word_embeddings=True))),
        "glm4": lambda: tf.Glm4ForCausalLM(tf.Glm4Config(head_dim=16, attention_bias=True, rope_parameters=rope(partial_rotary_factor=0.5), **lm())),
    }


def in_pairs(array, heads):
    """The rows of each head with those that rotate together next to each other."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def out_of_pairs(array, heads):
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


class Converter:
    """What llama.cpp's converter does to the tensors of an architecture, and its inverse."""

    def __init__(self, arch, config):
        self.arch, self.heads = arch, config.num_attention_heads
        self.kv = kv_heads(config)
        known = "llama" if arch == "smollm3" else arch
        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == known)
        self.names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)

    def name(self, name):
        path, kind = name.rsplit(".", 1)
        own = self.names.get_name(path) or self.names.get_name(path.removeprefix("transformer.")) or EXTRA.get(path)
        if own is None and self.arch == "stablelm":
            own = f"blk.{path.split('.')[2]}.attn_{path.split('.')[4][0]}_norm"
        if own is None:
            raise SystemExit(f"{self.arch}: no name for {name}")
        return f"{own}.{kind}"

    def change(self, own, array, back=False):
        """The tensor as the file has it, or `back`."""
        if self.arch in ("llama", "granite", "smollm3") and (".attn_q." in own or ".attn_k." in own):
            return (out_of_pairs if back else in_pairs)(array, self.heads if ".attn_q." in own else self.kv)
        if self.arch.startswith("gemma") and own.endswith("norm.weight"):
            return array - np.float32(1) if back else array + np.float32(1)
        if self.arch == "gpt2" and array.ndim == 2 and own.startswith("blk."):
            return np.ascontiguousarray(array.T)
        if self.arch in ("gptneox", "bloom") and "attn_qkv" in own:
            ways = (3, self.heads) if back else (self.heads, 3)
            return array.reshape(*ways, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
        if self.arch == "falcon" and "attn_qkv" in own:
            # For each key/value head its queries, its key, its value.
            of_group, rest = self.heads // self.kv, array.shape[1:]
            if not back:
                groups = array.reshape(self.kv, of_group + 2, -1, *rest)
                parts = [groups[:, :of_group], groups[:, of_group], groups[:, of_group + 1]]
                return np.concatenate([part.reshape(-1, *rest) for part in parts])
            head = array.shape[0] // (self.heads + 2 * self.kv)
            q, k, v = np.split(array, [self.heads * head, (self.heads + self.kv) * head])
            parts = [part.reshape(self.kv, -1, head, *rest) for part in (q, k, v)]
            return np.concatenate(parts, axis=1).reshape(array.shape)
        return array


def parameters(model, arch):
    """Parameters by name. The norms of StableLM's heads are one tensor."""
    tied = model.config.tie_word_embeddings
    skip = lambda name: tied and name.startswith(("lm_head", "embed_out"))
    state, merged = {name: p for name, p in model.named_parameters() if not skip(name)}, {}
    for name, p in state.items():
        before = name.split(".norms.")
        merged.setdefault(before[0] + ".weight" if len(before) == 2 else name, []).append(p)
    return merged


def write(model, arch, file):
    """Writes the model, and sets its weights to what the file holds."""
    config = model.config
    converter = Converter(arch, config)
    writer = gguf.GGUFWriter(file, arch)
    keys(writer, arch, config, model)
    matrices = 0
    for name, parts in parameters(model, arch).items():
        own = converter.name(name)
        array = torch.stack(parts) if len(parts) > 1 else parts[0]
        array = converter.change(own, array.numpy().astype(np.float32))
        kind = gguf.GGMLQuantizationType.F32
        if array.ndim == 2 and "norm" not in own:
            kind = gguf.GGMLQuantizationType[FORMATS[matrices % len(FORMATS)]]
            matrices += 1
        data = gguf.quants.quantize(array, kind)
        writer.add_tensor(own, data, raw_dtype=kind)
        held = converter.change(own, gguf.quants.dequantize(data, kind).reshape(array.shape), back=True)
        for part, value in zip(parts, held if len(parts) > 1 else [held]):
            part.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    for own, factors in rope_factors(config).items():
        writer.add_tensor(own, np.array(factors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def kv_heads(config):
    if config.model_type == "falcon":
        return config.num_kv_heads if config.new_decoder_architecture else 1
    return getattr(config, "num_key_value_heads", config.num_attention_heads)


def head_dim(config):
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_factors(config):
    """Tensors of divisors of the frequencies."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return {"rope_factors_long.weight": rope["long_factor"], "rope_factors_short.weight": rope["short_factor"]}
    if rope.get("rope_type") != "llama3":
        return {}
    dim, factors = head_dim(config), []
    for at in range(0, dim, 2):
        turns = rope["original_max_position_embeddings"] / (2 * math.pi * rope["rope_theta"] ** (at / dim))
        smooth = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": factors}


def keys(writer, arch, config, model):
    """The metadata that the converter writes."""
    writer.add_type("model")
    writer.add_name(arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", 96))
    writer.add_embedding_length(config.hidden_size)
    inner = {"gpt2": INNER, "falcon": INNER, "bloom": 4 * HIDDEN, "mpt": 4 * HIDDEN}.get(arch) or config.intermediate_size
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)
    writer.add_file_type(7)
    writer.add_quantization_version(2)
    if hasattr(config, "num_key_value_heads") or arch == "falcon":
        writer.add_head_count_kv(kv_heads(config))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        epsilons = [getattr(config, name, None) for name in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")]
        writer.add_layer_norm_eps(next(value for value in epsilons if value is not None))
    if getattr(config, "head_dim", None) and arch != "granite":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if arch in ("llama", "granite"):
        writer.add_vocab_size(VOCAB)
    rope = getattr(config, "rope_parameters", None) or {}
    full = rope.get("full_attention", rope)
    if full and arch not in ("gemma", "gemma2", "phi2"):
        writer.add_rope_freq_base(full["rope_theta"])
    if full and not arch.startswith("gemma"):
        writer.add_rope_dimension_count(int(full.get("partial_rotary_factor", 1.0) * head_dim(config)))
    if full.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(full["rope_type"]))
        writer.add_rope_scaling_factor(full["factor"])
    if full.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if arch == "phi3":
        original = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_sliding_window(config.sliding_window or 0)
        if full["rope_type"] == "longrope":
            growth = config.max_position_embeddings / original
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(growth) / math.log(original)))
    if arch in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if arch == "bloom":
        writer.add_head_count_kv(config.num_attention_heads)
    if arch == "mpt":
        writer.add_max_alibi_bias(8.0)
        writer.add_clamp_kqv(config.attn_config.clip_qkv)
    if arch == "command-r":
        writer.add_logit_scale(config.logit_scale)
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if arch in ("stablelm", "gptneox"):
        writer.add_parallel_residual(config.use_parallel_residual)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", default="gguf")
    ap.add_argument("--only", nargs="*", default=[])
    ap.add_argument("--new-tokens", type=int, default=12)
    args = ap.parse_args()
    import transformers
    torch.set_num_threads(1)
    for name, build in models().items():
        if args.only and name not in args.only:
            continue
        arch = name.split("_")[0]
        folder = os.path.join(args.out, name)
        os.makedirs(folder, exist_ok=True)
        file = os.path.join(folder, "model.gguf")
        for seed in range(60):
            torch.manual_seed(seed)
            model = build().eval()
            model.config._attn_implementation = "eager"
            generate_families.spread(model, 2.0)
            write(model, arch, file)
            lens = [9, 6, 3]
            ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
            for row, count in enumerate(lens):
                ids[row, 9 - count:] = torch.randint(2, VOCAB, (count,))
                mask[row, 9 - count:] = 1
            got, margin, first = generate_families.generate(model, ids, mask, args.new_tokens)
            varied = min(len(set(row.tolist())) for row in got)
            if margin > 5e-3 and varied >= 4:
                break
        else:
            raise SystemExit(f"{name}: no seed gave a clear greedy path")
        source = f"transformers {transformers.__version__} {type(model).__name__}, float32, greedy, weights of the GGUF file"
        with open(os.path.join(folder, "expected.json"), "w") as f:
            json.dump(dict(source=source, prompt_ids=ids.tolist(), attention_mask=mask.tolist(), generated_ids=got.tolist(),
                           smallest_margin=round(margin, 4),
                           prompt_logits=[[round(x, 5) for x in row] for row in first.tolist()]), f)
        print(f"{name:18s} seed {seed:3d}  margin {margin:.3f}  distinct ids {varied:3d}  {os.path.getsize(file) / 1024:7.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
