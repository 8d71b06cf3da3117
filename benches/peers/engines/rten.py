"""rten: the graphs of ONNX Runtime. This program writes them, and the program of this folder's package, whose path is the argument, runs them."""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx

import graphs
from problems import layer_sizes, noise
from sentences import encoder_weights, groups


class Files:
    """Graphs and arrays of the workloads, in a folder."""

    def __init__(self, folder: str):
        self.folder, self.count = pathlib.Path(folder), 0

    def path(self, suffix: str) -> pathlib.Path:
        self.count += 1
        return self.folder / f"{self.count}.{suffix}"

    def array(self, numbers: np.ndarray) -> dict:
        """A file of f32 or of integers of 32 bits."""
        path, integers = self.path("raw"), numbers.dtype.kind != "f"
        numbers.astype(np.int32 if integers else np.float32).tofile(path)
        return {"file": str(path), "shape": list(numbers.shape), "integers": integers}

    def graph(self, model: onnx.ModelProto, of_int8: bool) -> str:
        path = self.path("onnx")
        onnx.save(graphs.int8(model) if of_int8 else model, path)
        return str(path)


def layer(files: Files, workload: dict, of_int8: bool) -> dict:
    hidden, _, kv_heads, size = layer_sizes(workload)
    tokens, cached = workload["tokens"], workload["cached"]
    total = cached + tokens
    side = lambda seed: files.array(noise(seed, (1, kv_heads, cached, size)))  # noqa: E731
    inputs = {"input": noise(14, (1, tokens, hidden)), "last": np.array([total - 1]), "total": np.array(total)}
    return {
        "model": files.graph(graphs.layer(workload), of_int8),
        "output": "output",
        "runs": [{"inputs": {name: files.array(array) for name, array in inputs.items()}}],
        "cache": [
            {"past": f"past_{name}", "present": f"present_{name}", "tokens": side(seed), "appended": tokens}
            for name, seed in (("key", 15), ("value", 16))
        ],
    }


def encoder(files: Files, workload: dict, of_int8: bool) -> dict:
    """From ids: unlike the other engines, rten has no tokenizer in its time."""
    from tokenizers import Tokenizer

    folder, batch = workload["folder"], workload["batch"]
    weights, config = encoder_weights(folder)
    model = graphs.encoder(weights, config["num_hidden_layers"], config["num_attention_heads"], packed=False)
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_padding()
    texts = pathlib.Path(folder, "sentences.txt").read_text().splitlines()
    runs = []
    for first in range(0, len(texts), batch):
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts[first : first + batch])]
        for group in groups([len(some) for some in ids]):
            most = max(len(ids[at]) for at in group)
            padded, mask = np.zeros((2, len(group), most), np.int32)
            for row, at in enumerate(group):
                padded[row, : len(ids[at])], mask[row, : len(ids[at])] = ids[at], 1
            inputs = {"ids": padded, "positions": np.arange(most), "mask": mask}
            arrays = {name: files.array(array) for name, array in inputs.items()}
            runs.append({"inputs": arrays, "rows": [first + at for at in group]})
    return {"model": files.graph(model, of_int8), "output": "vectors", "runs": runs, "cache": []}


def prepared(files: Files, request: dict) -> dict:
    """The request with a graph in place of the workload."""
    workload, of_int8 = request["workload"], request["implementation"] == "rten-int8"
    if workload["kind"] == "layer" and workload["blocks"] not in (None, "Q4_0"):
        raise NotImplementedError("rten has blocks of 4 bits only")
    graph = (encoder if workload["kind"] == "encoder" else layer)(files, workload, of_int8)
    return request | {"workload": {"kind": "graph"} | graph}


def answer(program: subprocess.Popen, line: str) -> str:
    request = json.loads(line)
    with tempfile.TemporaryDirectory() as folder:
        if request["do"] == "prepare":
            request = prepared(Files(folder), request)
        program.stdin.write(json.dumps(request) + "\n")
        return program.stdout.readline().strip()


def serve(binary: str):
    """Answers until standard input ends."""
    program = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    for line in sys.stdin:
        try:
            reply = answer(program, line)
        except Exception as error:  # whatever it fails with is the answer
            reply = json.dumps({"error": f"{type(error).__name__}: {error}"})
        print(reply, flush=True)
    program.kill()
    program.wait()


if __name__ == "__main__":
    serve(sys.argv[1])
