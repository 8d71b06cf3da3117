"""OpenVINO: attention with the cache as state, bf16 by inference precision, int8 and blocks by weight compression."""

import functools

import numpy as np
import openvino
import openvino.opset15 as ops
from openvino.op import util

from problems import BLOCK, EPSILON, blocks, layer_sizes, layer_weights, noise, rotary_tables
from sentences import embedding, encoder_weights
from serve import THREADS, Call, serve

FLOAT = openvino.Type.f32
# A step appends to the state, which is put back after this many steps.
STEPS = 16


def constant(values, dtype=None) -> openvino.Node:
    return ops.constant(np.asarray(values, dtype=dtype))


def parameter(name: str, shape: list[int], kind: openvino.Type = FLOAT) -> openvino.Node:
    node = ops.parameter(shape, kind, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def compiled(model: openvino.Model, precision: str, cache: str) -> openvino.CompiledModel:
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotImplementedError("the processor has no instructions for bf16, and the plugin emulates them very slowly")
    hints = {"INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    types = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": cache}
    return core.compile_model(model, "CPU", hints | types)


def compressed(integers: np.ndarray, scales: np.ndarray, kind: openvino.Type) -> openvino.Node:
    """`[out, in]` from integers `[out, groups, elements]` and scales `[out, groups, 1]`, which the plugin keeps as they are."""
    shape = list(integers.shape)
    tensor = openvino.Tensor(kind, shape)
    if kind == openvino.Type.i4:
        nibbles = (integers & 15).astype(np.uint8).reshape(-1, 2)
        tensor.data.view(np.uint8).reshape(-1)[:] = nibbles[:, 0] | nibbles[:, 1] << 4
    else:
        tensor.data[:] = integers
    matrix = ops.multiply(ops.convert(ops.constant(tensor, shared_memory=False), FLOAT), constant(scales, np.float32))
    return ops.reshape(matrix, constant([shape[0], shape[1] * shape[2]]), False)


def matrix(weights: np.ndarray, form: str | None) -> openvino.Node:
    """Weights `[out, in]` as floats, `int8`, or blocks."""
    if form is None:
        return constant(weights)
    if form == "int8":
        scales = np.abs(weights).max(1, keepdims=True) / np.float32(127)
        return compressed(np.rint(weights / scales).astype(np.int8)[:, None], scales[:, None], openvino.Type.i8)
    integers, scales = blocks(weights, form)
    kind = openvino.Type.i4 if form == "Q4_0" else openvino.Type.i8
    return compressed(integers.reshape(*scales.shape, BLOCK), scales[..., None].astype(np.float32), kind)


def linear(input_: openvino.Node, weights: np.ndarray, form: str | None) -> openvino.Node:
    return ops.matmul(input_, matrix(np.ascontiguousarray(weights), form), False, True)


def heads_of(input_: openvino.Node, heads: int, size: int) -> openvino.Node:
    return ops.transpose(ops.reshape(input_, constant([0, 0, heads, size]), True), constant([0, 2, 1, 3]))


def together(context: openvino.Node, width: int) -> openvino.Node:
    return ops.reshape(ops.transpose(context, constant([0, 2, 1, 3])), constant([0, 0, width]), True)


@functools.lru_cache(maxsize=4)
def layer_model(precision: str, cache: str, form: str | None, one_token: bool, *sizes: int) -> openvino.CompiledModel:
    hidden, heads, kv_heads, size = sizes
    gamma, qkv, output = layer_weights(*sizes)
    input_ = parameter("input", [-1, -1, hidden])
    cosine, sine = (parameter(name, [1, 1, -1, size]) for name in ("cos", "sin"))
    beam = parameter("beam", [-1], openvino.Type.i32)
    variance = ops.reduce_mean(ops.power(input_, constant(2.0, np.float32)), constant([-1]), True)
    root = ops.sqrt(ops.add(variance, constant(EPSILON, np.float32)))
    normed = ops.multiply(ops.multiply(input_, ops.divide(constant(1.0, np.float32), root)), constant(gamma))

    def rotated(side: openvino.Node) -> openvino.Node:
        first, second = (
            ops.slice(side, constant([start]), constant([end]), constant([1]), constant([3]))
            for start, end in ((0, size // 2), (size // 2, 2**63 - 1))
        )
        turned = ops.concat([ops.multiply(second, constant(np.full((1, 1, 1, 1), -1, np.float32))), first], -1)
        return ops.add(ops.multiply(side, cosine), ops.multiply(turned, sine))

    sinks = []

    def with_past(name: str, side: openvino.Node) -> openvino.Node:
        """All tokens, in the form that the plugin knows for a cache of language models."""
        info = util.VariableInfo()
        info.data_shape, info.data_type, info.variable_id = openvino.PartialShape([-1, kv_heads, -1, size]), FLOAT, name
        variable = util.Variable(info)
        empty = ops.broadcast(constant(0.0, np.float32), constant([1, kv_heads, 0, size]))
        past = ops.gather(ops.read_value(empty, variable), beam, constant(0))
        whole = ops.concat([past, side], 2)
        sinks.append(ops.assign(whole, variable))
        return whole

    widths = (heads * size, kv_heads * size, kv_heads * size)
    parts = zip(np.split(qkv.T, np.cumsum(widths[:2])), (heads, kv_heads, kv_heads), strict=True)
    query, key, value = (heads_of(linear(normed, weights, form), count, size) for weights, count in parts)
    query, key, value = rotated(query), with_past("key", rotated(key)), with_past("value", value)
    context = ops.scaled_dot_product_attention(query, key, value, causal=not one_token)
    result = ops.result(linear(together(context, heads * size), output.T, form))
    return compiled(openvino.Model([result], sinks, [input_, cosine, sine, beam]), precision, cache)


def runner(request: openvino.InferRequest):
    """A run without the dictionaries of the Python interface, if the version has it."""
    plain = super(openvino.InferRequest, request).infer
    try:
        plain({}, False)
        return lambda: plain({}, False)
    except TypeError:
        return lambda: request.infer(share_inputs=True, share_outputs=True)


def layer(workload: dict, precision: str = "f32", cache: str = "f32", form: str | None = None) -> Call:
    sizes = layer_sizes(workload)
    hidden, heads, kv_heads, size = sizes
    if heads != kv_heads:
        raise ValueError("grouped heads are not built here")
    tokens, cached = workload["tokens"], workload["cached"]
    model = layer_model(precision, cache, workload["blocks"] or form, tokens == 1, *sizes)
    request = model.create_infer_request()
    tables = [np.concatenate([table, table], 1)[None, None].astype(np.float32) for table in rotary_tables(workload)]
    inputs = {"input": noise(14, (1, tokens, hidden)), "cos": tables[0], "sin": tables[1], "beam": np.zeros(1, np.int32)}
    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(np.ascontiguousarray(array)))
    past = {"key": 15, "value": 16}
    past = {name: openvino.Tensor(noise(seed, (1, kv_heads, cached, size))) for name, seed in past.items()} if cached else {}

    def restore():
        for state in request.query_state():
            if past:
                state.state = past[state.name]
            else:
                state.reset()

    restore()
    run = runner(request)

    def reset(number: int):
        if not past:
            restore()
        elif number % STEPS == 0:
            restore()
            if number:
                run()  # converts what was put back

    return Call(run, lambda: request.get_output_tensor(0).data.copy(), reset)


def encoder(workload: dict, precision: str = "f32", form: str | None = None) -> Call:
    weights, config = encoder_weights(workload["folder"])
    heads, width = config["num_attention_heads"], config["hidden_size"]
    ids, mask = parameter("ids", [-1, -1], openvino.Type.i64), parameter("mask", [-1, 1, 1, -1])

    def norm(input_: openvino.Node, name: str) -> openvino.Node:
        normed = ops.mvn(input_, constant([-1]), True, 1e-12, "inside_sqrt")
        return ops.add(ops.multiply(normed, constant(weights[f"{name}.weight"])), constant(weights[f"{name}.bias"]))

    def dense(input_: openvino.Node, name: str) -> openvino.Node:
        return ops.add(linear(input_, weights[f"{name}.weight"], form), constant(weights[f"{name}.bias"][None, None]))

    start = "embeddings."
    places = weights[f"{start}position_embeddings.weight"] + weights[f"{start}token_type_embeddings.weight"][0]
    tokens = ops.gather(ops.shape_of(ids, "i64"), constant([1]), constant(0))
    places = ops.slice(constant(places), constant([0]), tokens, constant([1]), constant([0]))
    hidden = ops.add(ops.gather(constant(weights[f"{start}word_embeddings.weight"]), ids, constant(0)), places)
    hidden = norm(hidden, f"{start}LayerNorm")
    for number in range(config["num_hidden_layers"]):
        own = f"encoder.layer.{number}."
        sides = (dense(hidden, f"{own}attention.self.{side}") for side in ("query", "key", "value"))
        query, key, value = (heads_of(side, heads, width // heads) for side in sides)
        context = ops.scaled_dot_product_attention(query, key, value, mask, causal=False)
        attended = dense(together(context, width), f"{own}attention.output.dense")
        hidden = norm(ops.add(attended, hidden), f"{own}attention.output.LayerNorm")
        inner = ops.gelu(dense(hidden, f"{own}intermediate.dense"), "erf")
        hidden = norm(ops.add(dense(inner, f"{own}output.dense"), hidden), f"{own}output.LayerNorm")
    request = compiled(openvino.Model([ops.result(hidden)], [ids, mask]), precision, "f32").create_infer_request()

    def run(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        unseen = np.arange(tokens.shape[1]) >= lengths[:, None]
        hidden_pairs = np.where(unseen, np.float32(-np.inf), np.float32(0))[:, None, None]
        return request.infer({"ids": tokens, "mask": hidden_pairs}, share_inputs=True, share_outputs=True)[0]

    return embedding(workload, run)


def of_kind(workload: dict, **options) -> Call:
    if workload["kind"] == "encoder":
        options.pop("cache", None)
        return encoder(workload, **options)
    return layer(workload, **options)


if __name__ == "__main__":
    serve(openvino.__version__.partition("-")[0], {
        "ov-f32": of_kind,
        "ov-bf16": lambda workload: of_kind(workload, precision="bf16", cache="bf16"),
        "ov-int8": lambda workload: of_kind(workload, form="int8"),
        "ov-int8-cache": lambda workload: of_kind(workload, form="int8", cache="u8"),
        "ov-blocks": layer,
    })  # fmt: skip
