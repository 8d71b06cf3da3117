#!/usr/bin/env python3
"""Write tiny encoders as GGUF files, with their tokenizers, and what `transformers` and `tokenizers` compute from them.

Each matrix has another format. Before states are computed, every weight becomes what its blocks hold. `bert` is written as older versions
of llama.cpp's converter write it, with the mean as pooling; `bert_cased` as newer ones, with the first token, upper case and accents.

    pip install torch transformers tokenizers gguf
    python generate_gguf_encoders.py --out gguf_encoders
"""
import argparse
import json
import os

import gguf
import numpy as np
import torch

import generate_encoders
from generate_gguf import FORMATS

torch.set_grad_enabled(False)
NORMAL, CONTROL, USER = 1, 3, 4
HIDDEN, INNER, HEADS, LAYERS, LENGTH, SEGMENTS = 32, 96, 4, 3, 19, 3
SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the a cat dog sat ran on mat hill play guitar The Cat caf\u00e9 \u6771 \u4eac , . ! ' # ##s ##ed ##ing ##ar ##\u00e9 ##e".split()
SENTENCES = ["The cat sat on the mat.", "a dog played guitars", "The CAFE\u0301, the caf\u00e9!", "\u6771\u4eac \u2014 cat", "",
             "the [SEP] dog's ##s", "zebra \u03a9mega on", "the cat sat on the mat and then ran on the hill playing the guitar with a dog",
             "tab\tand\nline \u200b\u00a0end"]


def vocabulary():
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = SPECIAL + WORDS + list(letters) + [f"##{letter}" for letter in letters if letter != "z"]
    return list(dict.fromkeys(tokens))


def tokenizer(tokens, lower):
    import tokenizers as tk
    ids = {token: at for at, token in enumerate(tokens)}
    own = tk.Tokenizer(tk.models.WordPiece(ids, unk_token="[UNK]"))
    own.normalizer = tk.normalizers.BertNormalizer(lowercase=lower)
    own.pre_tokenizer = tk.pre_tokenizers.BertPreTokenizer()
    own.add_special_tokens([token for token in SPECIAL if token != "[unused0]"])
    ends = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    own.post_processor = tk.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    own.enable_truncation(LENGTH)
    return own


def write_tokenizer(writer, tokens, old):
    """The vocabulary with marks at the beginnings of words, and the ids of the special tokens."""
    special = [token for token in SPECIAL if token != "[unused0]"]
    kinds = [CONTROL if token in special else NORMAL for token in tokens]

    def marked(token, kind):
        is_whole = token.startswith("[") and token.endswith("]") if old else kind == CONTROL
        return token if is_whole else token[2:] if token.startswith("##") and token != "##" else "\u2581" + token
    writer.add_token_type_count(SEGMENTS)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([marked(token, kind) for token, kind in zip(tokens, kinds)])
    writer.add_token_types(kinds)
    names = {"unknown": "[UNK]", "seperator": "[SEP]", "padding": "[PAD]", "mask": "[MASK]", "cls": "[CLS]"}
    names = names if old else {**names, "bos": "[CLS]", "eos": "[SEP]"}
    for name, token in names.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", tokens.index(token))
    if not old:
        for name, added in (("bos", True), ("eos", True), ("sep", False)):
            writer.add_bool(f"tokenizer.ggml.add_{name}_token", added)
        writer.add_bool("tokenizer.ggml.normalizer.lowercase", False)


def write(model, tokens, old, file):
    """Writes the model, and sets its weights to what the file holds."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
    writer = gguf.GGUFWriter(file, "bert")
    writer.add_type("model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_file_type(7)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN if old else gguf.PoolingType.CLS)
    write_tokenizer(writer, tokens, old)
    matrices = 0 if old else 3
    for name, parameter in model.named_parameters():
        if name.startswith("pooler."):
            continue  # the converter leaves it out
        path, kind = name.rsplit(".", 1)
        own, array = f"{names.get_name(path)}.{kind}", parameter.numpy().astype(np.float32)
        stored = gguf.GGMLQuantizationType.F32
        if array.ndim == 2 and "position" not in own and "types" not in own:
            stored = gguf.GGMLQuantizationType[FORMATS[matrices % len(FORMATS)]]
            matrices += 1
        data = gguf.quants.quantize(array, stored)
        writer.add_tensor(own, data, raw_dtype=stored)
        parameter.copy_(torch.from_numpy(gguf.quants.dequantize(data, stored).reshape(array.shape).copy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sentences(model, own, old):
    """Unit vectors of sentences, each computed alone."""
    vectors, counts = [], []
    for text in SENTENCES:
        ids = own.encode(text).ids
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(hidden.mean(0) if old else hidden[0], dim=0))
        counts.append(len(ids))
    return dict(batch=4, sentences=SENTENCES, token_counts=counts, embeddings=generate_encoders.rounded(torch.stack(vectors)))


def main():
    import transformers as tf
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", default="gguf_encoders")
    args = ap.parse_args()
    torch.set_num_threads(1)
    tokens = vocabulary()
    for seed, (name, old) in enumerate([("bert", True), ("bert_cased", False)]):
        folder = os.path.join(args.out, name)
        os.makedirs(folder, exist_ok=True)
        torch.manual_seed(seed)
        config = tf.BertConfig(vocab_size=len(tokens), hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
                               num_attention_heads=HEADS, max_position_embeddings=LENGTH, type_vocab_size=SEGMENTS, layer_norm_eps=1e-3)
        model = tf.BertModel(config).eval()
        generate_encoders.spread(model)
        file = os.path.join(folder, "model.gguf")
        write(model, tokens, old, file)
        source = f"transformers {tf.__version__} BertModel, float32, weights of the GGUF file"
        own = tokenizer(tokens, lower=old)
        expected = {"text": generate_encoders.of_tokens(model, config), "sentences": sentences(model, own, old)}
        for kind, record in expected.items():
            with open(os.path.join(folder, f"expected_{kind}.json"), "w") as f:
                json.dump(dict(source=source, **record), f)
        print(f"{name:12s} {len(tokens)} tokens, {os.path.getsize(file) / 1024:4.0f} KiB, tokens of sentences {expected['sentences']['token_counts']}")


if __name__ == "__main__":
    main()
