#!/usr/bin/env python3
"""Write tiny encoder-decoders: weights in float16 that are random everywhere, other sizes in the encoder than in the decoder, and
inputs of unequal length.

    pip install torch transformers safetensors
    python generate_seq2seq.py --out seq2seq
"""
import argparse
import json
import os

import torch

torch.set_grad_enabled(False)
VOCAB, HIDDEN = 61, 24
# Parts of names, and what the weights there are multiplied by. Small queries keep the relative bias visible; the others keep logits apart,
# and let a text say more than one token.
FACTORS = {
    "t5": [("shared", 2.0), ("Attention.q", 0.3)],
    "mt5": [("shared", 2.0), ("Attention.q", 0.3)],
    "bart": [("out_proj", 0.3), ("fc2", 3.0)],
    "whisper": [("embed_tokens", 3.3), ("embed_positions", 10.0)],
}


def families():
    """Name -> a model."""
    import transformers as tf
    t5 = dict(vocab_size=VOCAB, d_model=HIDDEN, d_kv=5, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=3,
              relative_attention_num_buckets=8, relative_attention_max_distance=9, pad_token_id=0, eos_token_id=None,
              decoder_start_token_id=0)
    # Other heads in the encoder than in the decoder, and embeddings that are scaled.
    stacks = dict(vocab_size=VOCAB, d_model=HIDDEN, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=40,
                  decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=44, pad_token_id=0, bos_token_id=None,
                  eos_token_id=None)
    return {
        "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**t5)),
        "t5_gated": lambda: tf.T5ForConditionalGeneration(tf.T5Config(
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, **t5)),
        "mt5": lambda: tf.MT5ForConditionalGeneration(tf.MT5Config(**t5)),
        "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(
            max_position_embeddings=19, scale_embedding=True, activation_function="gelu_new", decoder_start_token_id=2,
            forced_eos_token_id=None, **stacks)),
        "whisper": lambda: tf.WhisperForConditionalGeneration(tf.WhisperConfig(
            num_mel_bins=7, max_source_positions=11, max_target_positions=17, decoder_start_token_id=1,
            begin_suppress_tokens=None, **stacks)),
    }


def spread(model, gain):
    """Random weights of a size that keeps logits apart, rounded to float16."""
    for name, p in model.named_parameters():
        if "relative_attention_bias" in name:
            p.normal_(0.0, 1.0)
        elif p.dim() >= 2:
            factor = next((factor for part, factor in FACTORS[model.config.model_type] if part in name), 1.0)
            p.normal_(0.0, factor * gain / p[0].numel() ** 0.5)
        elif name.endswith("bias"):
            p.normal_(0.0, 0.1)
        else:
            p.uniform_(0.6, 1.4)
        p.copy_(p.half().float())
    for name, buffer in model.named_buffers():
        if name == "final_logits_bias":
            # Small, so that it does not choose the best id alone.
            buffer.copy_(torch.randn_like(buffer).mul(0.1).half().float())


def generate(model, inputs, decoder_ids, new_tokens):
    """Greedy decoding with a cache; also returns the smallest margin between the two best ids of a step."""
    encoded = model.get_encoder()(**inputs)
    cache, out, margins, first, step = None, [], [], None, decoder_ids
    for _ in range(new_tokens):
        r = model(encoder_outputs=encoded, decoder_input_ids=step, past_key_values=cache, use_cache=True,
                  attention_mask=inputs.get("attention_mask"))
        cache, logits = r.past_key_values, r.logits[:, -1].float()
        first = logits if first is None else first
        top = logits.topk(2).values
        margins.append((top[:, 0] - top[:, 1]).min().item())
        step = logits.argmax(-1, keepdim=True)
        out.append(step)
    return torch.cat(out, -1), min(margins), first


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", default="seq2seq")
    ap.add_argument("--only", nargs="*", default=[])
    ap.add_argument("--new-tokens", type=int, default=12)
    args = ap.parse_args()
    import transformers
    torch.set_num_threads(1)
    for name, build in families().items():
        if args.only and name not in args.only:
            continue
        for seed in range(200):
            torch.manual_seed(seed)
            model = build().eval()
            spread(model, 1.8)
            lengths, width = [11, 4, 7], 11
            prompt = torch.randint(3, VOCAB, (3, 3))
            prompt[:, 0] = model.config.decoder_start_token_id
            ids = torch.randint(3, VOCAB, (3, width))
            mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
            inputs = {"input_ids": ids * mask + model.config.pad_token_id * (1 - mask), "attention_mask": mask}
            if name == "whisper":
                inputs = {"input_features": torch.randn(3, 7, 22)}
            generated, margin, logits = generate(model, inputs, prompt, args.new_tokens)
            distinct = min(len(set(row.tolist())) for row in generated)
            if margin > 5e-3 and distinct >= (3 if name == "bart" else 4):
                break
        else:
            raise SystemExit(f"{name}: no seed keeps the two best ids apart")
        folder = os.path.join(args.out, name)
        os.makedirs(folder, exist_ok=True)
        model.half().save_pretrained(folder)
        generation = os.path.join(folder, "generation_config.json")
        if os.path.exists(generation):
            os.remove(generation)
        if name == "whisper":
            from safetensors.torch import save_file
            save_file({"sounds": inputs.pop("input_features")}, os.path.join(folder, "features.safetensors"))
            inputs["features"] = "features.safetensors"
        expected = {"source": f"transformers {transformers.__version__}", "decoder_ids": prompt.tolist(),
                    "generated_ids": generated.tolist(), "prompt_logits": logits.tolist(),
                    **{key: value.tolist() if torch.is_tensor(value) else value for key, value in inputs.items()}}
        with open(os.path.join(folder, "expected.json"), "w") as f:
            json.dump(expected, f)
        print(f"{name}: seed {seed}, margin {margin:.3f}, distinct {distinct}")


if __name__ == "__main__":
    main()
