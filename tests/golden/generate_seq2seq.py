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


def families():
    """Name -> a model."""
    import transformers as tf
    t5 = dict(vocab_size=VOCAB, d_model=HIDDEN, d_kv=5, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=3,
              relative_attention_num_buckets=8, relative_attention_max_distance=9, pad_token_id=0, eos_token_id=None,
              decoder_start_token_id=0)
    return {
        "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**t5)),
        "t5_gated": lambda: tf.T5ForConditionalGeneration(tf.T5Config(
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, **t5)),
    }


def spread(model, gain):
    """Random weights of a size that keeps logits apart, rounded to float16."""
    for name, p in model.named_parameters():
        if "relative_attention_bias" in name:
            p.normal_(0.0, 1.0)
        elif p.dim() >= 2:
            # Small queries keep the relative bias visible; large embeddings keep logits apart.
            factor = 2.0 if "shared" in name else 0.3 if "Attention.q" in name else 1.0
            p.normal_(0.0, factor * gain / p[0].numel() ** 0.5)
        else:
            p.uniform_(0.6, 1.4)
        p.copy_(p.half().float())


def generate(model, inputs, decoder_ids, new_tokens):
    """Greedy decoding with a cache; also returns the smallest margin between the two best ids of a step."""
    encoded = model.get_encoder()(**inputs)
    cache, out, margins, first, step = None, [], [], None, decoder_ids
    for _ in range(new_tokens):
        r = model(encoder_outputs=encoded, decoder_input_ids=step, past_key_values=cache, use_cache=True,
                  attention_mask=inputs["attention_mask"])
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
            generated, margin, logits = generate(model, inputs, prompt, args.new_tokens)
            distinct = min(len(set(row.tolist())) for row in generated)
            if margin > 5e-3 and distinct >= 4:
                break
        else:
            raise SystemExit(f"{name}: no seed keeps the two best ids apart")
        folder = os.path.join(args.out, name)
        os.makedirs(folder, exist_ok=True)
        model.half().save_pretrained(folder)
        generation = os.path.join(folder, "generation_config.json")
        if os.path.exists(generation):
            os.remove(generation)
        expected = {"source": f"transformers {transformers.__version__}", "decoder_ids": prompt.tolist(),
                    "generated_ids": generated.tolist(), "prompt_logits": logits.tolist(),
                    **{key: value.tolist() for key, value in inputs.items()}}
        with open(os.path.join(folder, "expected.json"), "w") as f:
            json.dump(expected, f)
        print(f"{name}: seed {seed}, margin {margin:.3f}, distinct {distinct}")


if __name__ == "__main__":
    main()
