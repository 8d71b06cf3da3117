#!/usr/bin/env python3
"""Write tiny checkpoints of the encoders, with what `transformers` computes from them: hidden states, and the vectors that the class
itself gives.

Sizes are odd, windows are shorter than the rows, images do not end with a whole patch, norms and biases are random. Weights are
float16; the models compute in float32 with the rounded weights. Rows of tokens are padded on the right and on the left.

    pip install torch transformers tokenizers safetensors
    python generate_encoders.py --out encoders
"""
import argparse
import json
import os

import torch

torch.set_grad_enabled(False)
VOCAB, HIDDEN, HEADS, MLP, LAYERS, LENGTH = 61, 24, 3, 40, 3, 19
WORDS = "the a cat dog bird sat ran flew on over mat hill red small old happy sad".split()


def models():
    """Name -> a model."""
    import transformers as tf
    sizes = dict(hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    words = dict(vocab_size=VOCAB, max_position_embeddings=LENGTH, **sizes)
    ends = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    clip_ends = dict(bos_token_id=1, eos_token_id=3, pad_token_id=0)
    wide = dict(hidden_size=30, intermediate_size=44, num_hidden_layers=2, num_attention_heads=5)
    image = dict(image_size=15, patch_size=4, num_channels=3)
    siglip_text = dict(pad_token_id=1, bos_token_id=4, eos_token_id=1, layer_norm_eps=1e-4, **words)
    types = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    ropes = {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
             "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}}
    modern = dict(local_attention=5, norm_eps=1e-3, cls_token_id=1, sep_token_id=2, **ends)
    return {
        "bert": lambda: tf.BertModel(tf.BertConfig(hidden_act="gelu_new", type_vocab_size=3, layer_norm_eps=1e-3, pad_token_id=0, **words)),
        "distilbert": lambda: tf.DistilBertModel(tf.DistilBertConfig(vocab_size=VOCAB, max_position_embeddings=LENGTH, dim=HIDDEN, hidden_dim=MLP, n_layers=LAYERS, n_heads=HEADS, pad_token_id=0)),
        "distilbert_masked_lm": lambda: tf.DistilBertForMaskedLM(tf.DistilBertConfig(activation="relu", vocab_size=VOCAB, max_position_embeddings=LENGTH, dim=HIDDEN, hidden_dim=MLP, n_layers=1, n_heads=HEADS, pad_token_id=0)),
        "roberta": lambda: tf.RobertaModel(tf.RobertaConfig(type_vocab_size=1, bos_token_id=0, eos_token_id=2, pad_token_id=1, layer_norm_eps=1e-3, **words)),
        "xlm_roberta": lambda: tf.XLMRobertaForMaskedLM(tf.XLMRobertaConfig(type_vocab_size=1, bos_token_id=0, eos_token_id=2, pad_token_id=4, layer_norm_eps=1e-3, **words)),
        "modernbert": lambda: tf.ModernBertModel(tf.ModernBertConfig(rope_parameters=ropes, norm_bias=True, attention_bias=True, mlp_bias=True, layer_types=types, **{**words, "num_hidden_layers": 4}, **modern)),
        "modernbert_masked_lm": lambda: tf.ModernBertForMaskedLM(tf.ModernBertConfig(global_attn_every_n_layers=2, hidden_activation="silu", **words, **modern)),
        "clip_text": lambda: tf.CLIPTextModel(tf.CLIPTextConfig(**words, **{**clip_ends, "eos_token_id": 2})),
        "clip_text_projected": lambda: tf.CLIPTextModelWithProjection(tf.CLIPTextConfig(projection_dim=17, hidden_act="gelu", **words, **clip_ends)),
        "clip_vision": lambda: tf.CLIPVisionModelWithProjection(tf.CLIPVisionConfig(projection_dim=17, **sizes, **image)),
        "clip": lambda: tf.CLIPModel(tf.CLIPConfig(text_config=dict(**words, **clip_ends), vision_config=dict(**wide, **image), projection_dim=17)),
        "siglip_text": lambda: tf.SiglipTextModel(tf.SiglipTextConfig(projection_size=21, **siglip_text)),
        "siglip_vision": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(layer_norm_eps=1e-4, **sizes, **image)),
        "siglip": lambda: tf.SiglipModel(tf.SiglipConfig(text_config={**siglip_text, "num_hidden_layers": 2}, vision_config=dict(**wide, **image))),
        "vit": lambda: tf.ViTModel(tf.ViTConfig(layer_norm_eps=1e-3, image_size=[15, 11], patch_size=[4, 3], pooler_output_size=17, pooler_act="sigmoid", qkv_bias=False, **{k: v for k, v in {**sizes, "num_channels": 2}.items()})),
        "vit_classifier": lambda: tf.ViTForImageClassification(tf.ViTConfig(layer_norm_eps=1e-3, num_labels=5, **sizes, **image)),
    }


def spread(model):
    """Random weights of a size that keeps states apart, rounded to float16."""
    for name, p in model.named_parameters():
        norm = "norm" in name.lower() or "layernorm" in name.lower()
        if norm and name.endswith("weight"):
            p.uniform_(0.6, 1.4)
        elif p.dim() >= 2 and "embedding" not in name.lower():
            p.normal_(0.0, 1.2 / p[0].numel() ** 0.5)
        else:
            p.normal_(0.0, 0.2)
        p.copy_(p.half().float())


def base(model):
    """The model below a head."""
    return getattr(model, model.base_model_prefix, model) if type(model).__name__.endswith(("MaskedLM", "Classification")) else model


def rounded(tensor):
    return [[round(x, 6) for x in row] for row in tensor.tolist()]


def token_batches(config, causal, seen_padding):
    """Rows of different lengths: alone, padded on the right, padded on the left. Padding of SigLIP may also be seen."""
    low, high, lengths = 5, VOCAB, [11, 7, 3]
    pad, end = config.pad_token_id, config.eos_token_id
    rows = [torch.randint(low, high, (n,)).tolist() for n in lengths]
    if causal:
        # Tokens follow the end, and a row has two of them. Where the end is 2, the class takes the largest id.
        rows = [[*row[:-2], end, row[-1]] for row in rows]
        rows[0][-5] = end
    if pad in (1, 4):
        rows[0][4] = pad  # a text may contain the token of padding
    width = max(lengths)
    batches = [dict(input_ids=[rows[0]], attention_mask=None)]
    for left in (False, True):
        fill = [width - len(row) for row in rows]
        ids = [[pad] * n + row if left else row + [pad] * n for row, n in zip(rows, fill)]
        mask = [[0] * n + [1] * len(row) if left else [1] * len(row) + [0] * n for row, n in zip(rows, fill)]
        batches.append(dict(input_ids=ids, attention_mask=mask))
    if seen_padding:
        batches.append(dict(batches[1], attention_mask=None))
    return batches


def of_tokens(model, config, causal=False, seen_padding=False):
    """What the model computes from rows of tokens."""
    batches = token_batches(config, causal, seen_padding)
    for batch in batches:
        ids, mask = torch.tensor(batch["input_ids"]), batch["attention_mask"]
        out = model(input_ids=ids, attention_mask=None if mask is None else torch.tensor(mask))
        hidden = out.last_hidden_state
        if mask is not None:
            hidden = hidden * torch.tensor(mask)[..., None]  # states of padding have no meaning
        batch["last_hidden_state"] = [rounded(row) for row in hidden]
        # Most classes have no vector of their own: the pooler of BERT is a head.
        vectors = getattr(out, "text_embeds", None)
        vectors = out.pooler_output if vectors is None and (causal or seen_padding) else vectors
        batch["vectors"] = None if vectors is None else rounded(vectors)
    return dict(batches=batches)


def of_images(model, shape, folder):
    """What the model computes from two images, which go into a file of their own."""
    from safetensors.torch import save_file
    images = torch.randn(2, *shape).half().float()
    save_file({"pixel_values": images}, os.path.join(folder, "images.safetensors"))
    out = model(pixel_values=images)
    vectors = getattr(out, "image_embeds", None)
    vectors = getattr(out, "pooler_output", None) if vectors is None else vectors
    vectors = out.last_hidden_state[:, 0] if vectors is None else vectors
    return dict(images="images.safetensors", last_hidden_state=[rounded(row) for row in out.last_hidden_state], vectors=rounded(vectors))


class Side:
    """One side of a model of texts and images."""

    def __init__(self, features, model):
        self.features, self.model = features, model

    def __call__(self, **inputs):
        out = self.features(**inputs)
        plain = self.model(**inputs)
        out.last_hidden_state = plain.last_hidden_state
        return out


def write_tokenizer(folder, template, special, **config):
    """A tokenizer of whole words: the special tokens, each under its id, and then WORDS."""
    from tokenizers import Tokenizer, models as tm, pre_tokenizers, processors, normalizers
    vocabulary = {**special, **{word: 8 + n for n, word in enumerate(WORDS)}}
    unknown = next(token for token in special if token in ("<unk>", "[UNK]"))
    tokenizer = Tokenizer(tm.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [(token, special[token]) for token in template.split() if token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
    return tokenizer


SENTENCES = ["The cat sat on the mat", "a small red bird", "dog", "", "the old dog ran over the hill on a happy sad day and the bird flew over the hill",
             "A Cat"]


def of_sentences(name, model, folder, length):
    """The unit vectors of sentences, in batches of 4: the mean over the tokens, or what the class gives."""
    special = {"roberta": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, "modernbert": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3},
               "clip": {"<unk>": 0, "<start>": 1, "<end>": 3}, "siglip": {"</s>": 1, "<unk>": 2}}[name]
    first, last = {"roberta": ("<s>", "</s>"), "modernbert": ("[CLS]", "[SEP]"), "clip": ("<start>", "<end>"), "siglip": ("", "</s>")}[name]
    pad = {"roberta": "<pad>", "modernbert": "[PAD]", "clip": "<end>", "siglip": "</s>"}[name]
    more = dict(model_input_names=["input_ids"]) if name == "siglip" else {}
    tokenizer = write_tokenizer(folder, f"{first} $A {last}".strip(), special, model_max_length=length, pad_token=pad, **more)
    tokenizer.enable_truncation(length)
    vectors, counts = [], []
    for at in range(0, len(SENTENCES), 4):
        rows = [tokenizer.encode(text).ids for text in SENTENCES[at:at + 4]]
        counts += [len(row) for row in rows]
        width = length if name == "siglip" else max(map(len, rows))
        ids = torch.tensor([row + [special[pad]] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        out = model(input_ids=ids) if name == "siglip" else model(input_ids=ids, attention_mask=mask)
        pooled = out.pooler_output if name in ("clip", "siglip") else (out.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        vectors += rounded(torch.nn.functional.normalize(pooled, dim=1))
    return dict(batch=4, sentences=SENTENCES, embeddings=vectors, token_counts=counts)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", default="encoders")
    ap.add_argument("--only", nargs="*", default=[])
    args = ap.parse_args()
    import transformers
    torch.set_num_threads(1)
    for name, build in models().items():
        if args.only and name not in args.only:
            continue
        torch.manual_seed(7)
        model = build().eval()
        spread(model)
        folder, config = os.path.join(args.out, name), model.config
        os.makedirs(folder, exist_ok=True)
        source = f"transformers {transformers.__version__} {type(model).__name__}, float32"

        def write(file, record):
            with open(os.path.join(folder, file), "w") as f:
                json.dump(dict(source=source, **record), f)

        model.set_attn_implementation("eager")
        image = lambda config: (config.num_channels, *(config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2))
        if name in ("clip", "siglip"):
            text = Side(model.get_text_features, model.text_model)
            write("expected_text.json", of_tokens(text, config.text_config, causal=name == "clip", seen_padding=name == "siglip"))
            write("expected_images.json", of_images(Side(model.get_image_features, model.vision_model), image(config.vision_config), folder))
            write("expected_sentences.json", of_sentences(name, text, folder, 9))
        elif hasattr(config, "image_size"):
            write("expected_images.json", of_images(base(model), image(config), folder))
        else:
            write("expected_text.json", of_tokens(base(model), config, name.startswith("clip"), name.startswith("siglip")))
            if name in ("roberta", "modernbert"):
                write("expected_sentences.json", of_sentences(name, model, folder, 15))
        model.half().save_pretrained(folder)
        size = sum(os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder)) / 1024
        print(f"{name:22s} {size:5.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
