"""ggml, from the libraries of `llama-cpp-python`: a graph with `flash_attn_ext`, as llama.cpp builds it."""

import ctypes
import functools
import importlib.metadata
import importlib.util
import pathlib
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p

import numpy as np

from problems import BLOCK, EPSILON, blocks, layer_sizes, layer_weights, noise
from serve import THREADS, Call, serve

# Numbers of `enum ggml_type` and other constants of ggml.h.
F32, F16, Q4_0, Q8_0, I32, I64, BF16 = 0, 1, 2, 8, 26, 27, 30
ROPE_NEOX, PRECISION_F32 = 2, 10
FORMATS = {"Q4_0": Q4_0, "Q8_0": Q8_0}
# Nodes of a graph, and tensors of a context.
NODES = 256


class InitParams(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("memory", c_void_p), ("no_alloc", c_bool)]


def library() -> dict[str, ctypes._CFuncPtr]:
    """The functions that are used, with their types."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None:
        raise ModuleNotFoundError("No module named 'llama_cpp'")
    folder = pathlib.Path(found.origin).parent / "lib"
    files = [ctypes.CDLL(str(folder / f"lib{name}.so"), ctypes.RTLD_GLOBAL) for name in ("ggml-base", "ggml-cpu")]
    tensor = pointer = c_void_p
    sizes = lambda count: [c_int64] * count  # noqa: E731
    types = {
        "ggml_tensor_overhead": (c_size_t, []),
        "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
        "ggml_init": (pointer, [InitParams]),
        "ggml_free": (None, [pointer]),
        "ggml_new_graph_custom": (pointer, [pointer, c_size_t, c_bool]),
        "ggml_build_forward_expand": (None, [pointer, tensor]),
        "ggml_set_output": (None, [tensor]),
        "ggml_nbytes": (c_size_t, [tensor]),
        "ggml_nelements": (c_int64, [tensor]),
        "ggml_row_size": (c_size_t, [c_int, c_int64]),
        **{f"ggml_new_tensor_{count}d": (tensor, [pointer, c_int, *sizes(count)]) for count in (1, 2)},
        "ggml_mul": (tensor, [pointer, tensor, tensor]),
        "ggml_mul_mat": (tensor, [pointer, tensor, tensor]),
        "ggml_rms_norm": (tensor, [pointer, tensor, c_float]),
        **{f"ggml_reshape_{count}d": (tensor, [pointer, tensor, *sizes(count)]) for count in (2, 3)},
        "ggml_view_3d": (tensor, [pointer, tensor, *sizes(3), *3 * [c_size_t]]),
        "ggml_permute": (tensor, [pointer, tensor, *4 * [c_int]]),
        "ggml_set_rows": (tensor, [pointer, tensor, tensor, tensor]),
        "ggml_rope_ext": (tensor, [pointer, tensor, tensor, tensor, *3 * [c_int], *6 * [c_float]]),
        "ggml_flash_attn_ext": (tensor, [pointer, *4 * [tensor], *3 * [c_float]]),
        "ggml_flash_attn_ext_set_prec": (None, [tensor, c_int]),
        "ggml_backend_cpu_init": (pointer, []),
        "ggml_backend_cpu_set_n_threads": (None, [pointer, c_int]),
        "ggml_backend_get_default_buffer_type": (pointer, [pointer]),
        "ggml_backend_alloc_ctx_tensors": (pointer, [pointer, pointer]),
        "ggml_backend_alloc_ctx_tensors_from_buft": (pointer, [pointer, pointer]),
        "ggml_backend_buffer_free": (None, [pointer]),
        "ggml_backend_tensor_set": (None, [tensor, pointer, c_size_t, c_size_t]),
        "ggml_backend_tensor_get": (None, [tensor, pointer, c_size_t, c_size_t]),
        "ggml_backend_graph_compute": (c_int, [pointer, pointer]),
        "ggml_gallocr_new": (pointer, [pointer]),
        "ggml_gallocr_alloc_graph": (c_bool, [pointer, pointer]),
        "ggml_gallocr_free": (None, [pointer]),
        "ggml_backend_get_device": (pointer, [pointer]),
        "ggml_backend_dev_backend_reg": (pointer, [pointer]),
        "ggml_backend_reg_get_proc_address": (pointer, [pointer, c_char_p]),
        "ggml_backend_buft_name": (c_char_p, [pointer]),
    }
    functions = {}
    for name, (result, arguments) in types.items():
        function = next(getattr(file, name) for file in reversed(files) if hasattr(file, name))
        function.restype, function.argtypes = result, arguments
        functions[name.removeprefix("ggml_")] = function
    return functions


GGML = library()
BACKEND = GGML["backend_cpu_init"]()
GGML["backend_cpu_set_n_threads"](BACKEND, THREADS)


def repacked() -> int | None:
    """The type of buffers that lay blocks out for the kernels, as llama.cpp loads them, if the processor has such kernels."""
    registry = GGML["backend_dev_backend_reg"](GGML["backend_get_device"](BACKEND))
    address = GGML["backend_reg_get_proc_address"](registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return None
    types = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(GGML["backend_get_device"](BACKEND))
    at = 0
    while types and types[at]:
        if b"REPACK" in GGML["backend_buft_name"](types[at]):
            return types[at]
        at += 1
    return None


def stored(values: np.ndarray, kind: int) -> np.ndarray:
    """Rows of floats as bytes of a type. Blocks have the bits of `problems.blocks`."""
    if kind == F32:
        return np.ascontiguousarray(values, np.float32)
    if kind == F16:
        return values.astype(np.float16)
    if kind == BF16:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    integers, scales = blocks(values, "Q4_0" if kind == Q4_0 else "Q8_0")
    integers = integers.reshape(*scales.shape, BLOCK)
    if kind == Q4_0:
        nibbles = (integers + 8).view(np.uint8)
        # The first half of a block is in the low bits.
        integers = nibbles[..., : BLOCK // 2] | nibbles[..., BLOCK // 2 :] << 4
    return np.concatenate([scales[..., None].view(np.uint8), integers.view(np.uint8)], -1)


class Net:
    """A graph with its tensors. Matrices are in a context of their own, which may be laid out for the kernels."""

    def __init__(self):
        room = NODES * GGML["tensor_overhead"]() + GGML["graph_overhead_custom"](NODES, False)
        self.matrices, self.inputs, self.nodes = (GGML["init"](InitParams(room, None, True)) for _ in range(3))
        self.graph = GGML["new_graph_custom"](self.nodes, NODES, False)
        self.values: list[tuple[int, np.ndarray]] = []
        self.buffers: list[int] = []
        self.allocator = None

    def tensor(self, context: int, kind: int, shape: list[int], values: np.ndarray) -> int:
        """A tensor whose innermost size is first, with bytes that it gets when it is allocated."""
        tensor = GGML[f"new_tensor_{len(shape)}d"](context, kind, *shape)
        self.values.append((tensor, np.ascontiguousarray(values)))
        return tensor

    def node(self, name: str, *arguments) -> int:
        return GGML[name](self.nodes, *arguments)

    def allocate(self, output: int, layout: int | None):
        self.output = output
        GGML["set_output"](output)
        GGML["build_forward_expand"](self.graph, output)
        if layout:
            self.buffers.append(GGML["backend_alloc_ctx_tensors_from_buft"](self.matrices, layout))
        else:
            self.buffers.append(GGML["backend_alloc_ctx_tensors"](self.matrices, BACKEND))
        self.buffers.append(GGML["backend_alloc_ctx_tensors"](self.inputs, BACKEND))
        for tensor, values in self.values:
            if GGML["nbytes"](tensor) != values.nbytes:
                raise ValueError(f"{values.nbytes} bytes for a tensor of {GGML['nbytes'](tensor)}")
            GGML["backend_tensor_set"](tensor, values.ctypes.data, 0, values.nbytes)
        self.values.clear()
        self.allocator = GGML["gallocr_new"](GGML["backend_get_default_buffer_type"](BACKEND))
        if not GGML["gallocr_alloc_graph"](self.allocator, self.graph):
            raise MemoryError("the graph was not allocated")

    def run(self):
        if status := GGML["backend_graph_compute"](BACKEND, self.graph):
            raise RuntimeError(f"the graph ended with status {status}")

    def result(self) -> np.ndarray:
        values = np.empty(GGML["nelements"](self.output), np.float32)
        GGML["backend_tensor_get"](self.output, values.ctypes.data, 0, values.nbytes)
        return values

    def __del__(self):
        if self.allocator:
            GGML["gallocr_free"](self.allocator)
        for buffer in self.buffers:
            GGML["backend_buffer_free"](buffer)
        for context in (self.matrices, self.inputs, self.nodes):
            GGML["free"](context)


def layer(workload: dict, weights: int = F32, cache: int = F32) -> Call:
    hidden, heads, kv_heads, size = layer_sizes(workload)
    tokens, cached = workload["tokens"], workload["cached"]
    total, width, kv_width = cached + tokens, heads * size, kv_heads * size
    if workload["blocks"]:
        weights, cache = FORMATS[workload["blocks"]], F16
    gamma, qkv, output = layer_weights(hidden, heads, kv_heads, size)
    net = Net()

    def matrix(values: np.ndarray) -> int:
        outputs, inputs = values.shape
        return net.tensor(net.matrices, weights, [inputs, outputs], stored(np.ascontiguousarray(values), weights))

    def past(seed: int) -> int:
        side = np.zeros((total, kv_heads, size), np.float32)
        side[:cached] = noise(seed, (kv_heads, cached, size)).swapaxes(0, 1)
        return net.tensor(net.inputs, cache, [kv_width, total], stored(side.reshape(total, kv_width), cache))

    input_ = net.tensor(net.inputs, F32, [hidden, tokens], noise(14, (tokens, hidden)))
    factors = net.tensor(net.inputs, F32, [hidden], gamma)
    at = np.arange(cached, total)
    positions = net.tensor(net.inputs, I32, [tokens], at.astype(np.int32))
    rows = net.tensor(net.inputs, I64, [tokens], at)
    mask = None
    if tokens > 1:
        hidden_pairs = np.where(np.arange(total) > at[:, None], np.float16(-np.inf), np.float16(0))
        mask = net.tensor(net.inputs, F16, [total, tokens], hidden_pairs)
    projections = [matrix(part) for part in np.split(qkv.T, [width, width + kv_width])]
    last = matrix(output.T)
    key_cache, value_cache = past(15), past(16)

    normed = net.node("mul", net.node("rms_norm", input_, EPSILON), factors)
    query, key, value = (net.node("mul_mat", part, normed) for part in projections)

    def rotated(side: int, count: int) -> int:
        side = net.node("reshape_3d", side, size, count, tokens)
        # Base 10000, no scaling of positions.
        return net.node("rope_ext", side, positions, None, size, ROPE_NEOX, 0, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0)

    query = rotated(query, heads)
    key = net.node("reshape_2d", rotated(key, kv_heads), kv_width, tokens)
    # Nothing reads what a write returns, so the writes are in the graph before the views of the cache.
    for node in (query, net.node("set_rows", key_cache, key, rows), net.node("set_rows", value_cache, value, rows)):
        GGML["build_forward_expand"](net.graph, node)
    row, head = GGML["row_size"](cache, kv_width), GGML["row_size"](cache, size)
    keys, values = (net.node("view_3d", side, size, total, kv_heads, row, head, 0) for side in (key_cache, value_cache))
    context = net.node("flash_attn_ext", net.node("permute", query, 0, 2, 1, 3), keys, values, mask, size**-0.5, 0.0, 0.0)
    GGML["flash_attn_ext_set_prec"](context, PRECISION_F32)
    result = net.node("mul_mat", last, net.node("reshape_2d", context, width, tokens))
    net.allocate(result, repacked() if weights == Q4_0 else None)
    return Call(net.run, net.result)


if __name__ == "__main__":
    serve(importlib.metadata.version("llama-cpp-python"), {
        "ggml-f32": layer,
        "ggml-f16": functools.partial(layer, weights=F16, cache=F16),
        "ggml-bf16": functools.partial(layer, weights=BF16, cache=F16),
        "ggml-int8": functools.partial(layer, weights=Q8_0, cache=F16),
        "ggml-int8-cache": functools.partial(layer, weights=Q8_0, cache=Q8_0),
        "ggml-blocks": layer,
    })  # fmt: skip
