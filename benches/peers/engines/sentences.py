"""What engines share that run an encoder: from text to unit vectors."""

import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from serve import Call


def encoder_weights(folder: str) -> tuple[dict[str, np.ndarray], dict]:
    """The tensors and the configuration of a folder in the Hugging Face layout."""
    from safetensors.numpy import load_file

    return load_file(f"{folder}/model.safetensors"), json.loads(pathlib.Path(folder, "config.json").read_text())


def groups(lengths: list[int]) -> Iterator[list[int]]:
    """Sentences of a batch that run together. As in `embed`, none is shorter than three quarters of the longest."""
    group: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if group and lengths[at] < 0.75 * lengths[group[0]]:
            yield group
            group = []
        group.append(at)
    yield group


def embedding(workload: dict, run: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Call:
    """`run` takes ids and the numbers of real tokens, and returns hidden states."""
    from tokenizers import Tokenizer

    folder, batch = workload["folder"], workload["batch"]
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_padding()
    texts = pathlib.Path(folder, "sentences.txt").read_text().splitlines()
    vectors: list[np.ndarray] = [np.zeros(0)] * len(texts)

    def call():
        for first in range(0, len(texts), batch):
            ids = [encoding.ids for encoding in tokenizer.encode_batch(texts[first : first + batch])]
            for group in groups([len(some) for some in ids]):
                lengths = np.array([len(ids[at]) for at in group], np.int32)
                padded = np.zeros((len(group), lengths.max()), np.int64)
                for row, at in zip(padded, group, strict=True):
                    row[: len(ids[at])] = ids[at]
                real = np.arange(padded.shape[1]) < lengths[:, None]
                mean = (run(padded, lengths) * real[..., None]).sum(1) / lengths[:, None]
                mean /= np.linalg.norm(mean, axis=1, keepdims=True)
                for at, vector in zip(group, mean, strict=True):
                    vectors[first + at] = vector

    return Call(call, lambda: np.stack(vectors))
