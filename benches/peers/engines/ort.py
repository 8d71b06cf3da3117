"""ONNX Runtime: `GroupQueryAttention`, `MatMulNBits`, dynamic int8."""

import functools

import numpy as np
import onnx
import onnxruntime

import graphs
from problems import layer_sizes, noise
from sentences import embedding, encoder_weights
from serve import THREADS, Call, serve

# From errors on.
LOG_LEVEL = 3


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = THREADS, 1, LOG_LEVEL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@functools.lru_cache(maxsize=4)
def layer_session(of_int8: bool, blocks: str | None, sizes: tuple[int, ...]) -> onnxruntime.InferenceSession:
    workload = dict(zip(("hidden", "heads", "kv_heads", "head_dim"), sizes, strict=True)) | {"blocks": blocks}
    model = graphs.layer(workload)
    return session(graphs.int8(model) if of_int8 else model)


def layer(workload: dict, of_int8: bool = False) -> Call:
    """The cache has room for all tokens, and past and present are the same tensors: each call writes the same places."""
    hidden, _, kv_heads, size = layer_sizes(workload)
    tokens, cached = workload["tokens"], workload["cached"]
    total = cached + tokens
    value = lambda array: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))  # noqa: E731

    def past(seed: int) -> onnxruntime.OrtValue:
        side = np.zeros((1, kv_heads, total, size), np.float32)
        side[0, :, :cached] = noise(seed, (kv_heads, cached, size))
        return value(side)

    own = layer_session(of_int8, workload["blocks"], layer_sizes(workload))
    output = value(np.zeros((1, tokens, hidden), np.float32))
    cache = {"key": past(15), "value": past(16)}
    binding = own.io_binding()
    last, all_tokens = np.array([total - 1], np.int32), np.array(total, np.int32)
    for name, array in (("input", noise(14, (1, tokens, hidden))), ("last", last), ("total", all_tokens)):
        binding.bind_ortvalue_input(name, value(array))
    binding.bind_ortvalue_output("output", output)
    for side, tensor in cache.items():
        binding.bind_ortvalue_input(f"past_{side}", tensor)
        binding.bind_ortvalue_output(f"present_{side}", tensor)
    return Call(lambda: own.run_with_iobinding(binding), lambda: output.numpy().copy())


def encoder(workload: dict, of_int8: bool = False) -> Call:
    weights, config = encoder_weights(workload["folder"])
    model = graphs.encoder(weights, config["num_hidden_layers"], config["num_attention_heads"])
    own = session(graphs.int8(model) if of_int8 else model)

    def run(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return own.run(None, {"ids": ids, "positions": np.arange(ids.shape[1]), "lengths": lengths})[0]

    return embedding(workload, run)


def of_kind(workload: dict, **options) -> Call:
    return encoder(workload, **options) if workload["kind"] == "encoder" else layer(workload, **options)


if __name__ == "__main__":
    serve(onnxruntime.__version__, {
        "ort-f32": of_kind,
        "ort-int8": lambda workload: of_kind(workload, of_int8=True),
        "ort-blocks": layer,
    })  # fmt: skip
