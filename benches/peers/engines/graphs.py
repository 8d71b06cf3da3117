"""ONNX graphs of the workloads."""

import pathlib
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from problems import BLOCK, EPSILON, blocks, layer_sizes, layer_weights

# The domain of the operators that ONNX Runtime adds to ONNX.
CONTRIB = "com.microsoft"
# Cosines and sines of this many positions are in a graph.
POSITIONS = 8192


def model(nodes: list, inputs: list, outputs: list, tensors: dict[str, np.ndarray]) -> onnx.ModelProto:
    constants = [numpy_helper.from_array(np.ascontiguousarray(tensor), name) for name, tensor in tensors.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    graph = helper.make_graph(nodes, "workload", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def value(name: str, shape: list, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def layer(workload: dict) -> onnx.ModelProto:
    """Norm, QKV, rotary positions, cache, attention and output projection. The cache comes in as `past` and leaves as `present`."""
    hidden, heads, kv_heads, size = layer_sizes(workload)
    gamma, qkv, output = layer_weights(hidden, heads, kv_heads, size)
    angles = np.arange(POSITIONS)[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)
    tensors = {"gamma": gamma, "cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}

    def projection(input_: str, matrix: np.ndarray, name: str, result: str) -> onnx.NodeProto:
        if workload["blocks"]:
            return of_blocks(input_, matrix, name, result, workload["blocks"], tensors)
        tensors[name] = matrix
        return helper.make_node("MatMul", [input_, name], [result], name=name)

    attention = {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1, "rotary_interleaved": 0}
    arguments = ["projected", "", "", "past_key", "past_value", "last", "total", "cos", "sin"]
    nodes = [
        helper.make_node(
            "SimplifiedLayerNormalization", ["input", "gamma"], ["normed"], axis=-1, epsilon=EPSILON, stash_type=1
        ),
        projection("normed", qkv, "qkv", "projected"),
        helper.make_node(
            "GroupQueryAttention", arguments, ["context", "present_key", "present_value"], domain=CONTRIB, **attention
        ),
        projection("context", output, "projection", "output"),
    ]
    past, present = ([value(f"{when}_{side}", [1, kv_heads, tokens, size]) for side in ("key", "value")]
                     for when, tokens in (("past", "P"), ("present", "S")))  # fmt: skip
    integers = (value(name, shape, TensorProto.INT32) for name, shape in (("last", [1]), ("total", [])))
    inputs = [value("input", [1, "T", hidden]), *past, *integers]
    return model(nodes, inputs, [value("output", [1, "T", hidden]), *present], tensors)


def of_blocks(input_: str, matrix: np.ndarray, name: str, result: str, format_: str, tensors: dict) -> onnx.NodeProto:
    """A product with a matrix `[in, out]` in blocks, with the integers and the scales of the format."""
    integers, scales = blocks(np.ascontiguousarray(matrix.T), format_)
    outputs, inputs = integers.shape
    bits = 4 if format_ == "Q4_0" else 8
    # Without zero points, the middle of the range is 0.
    unsigned = (integers.astype(np.int16) + (1 << bits - 1)).astype(np.uint8).reshape(outputs, -1, BLOCK)
    if bits == 4:
        unsigned = unsigned[..., ::2] | unsigned[..., 1::2] << 4
    tensors[name], tensors[f"{name}_scales"] = unsigned, scales.astype(np.float32)
    # Level 4 lets the inputs be rounded to 8 bits, as llama.cpp does; it is the fastest.
    sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
    return helper.make_node("MatMulNBits", [input_, name, f"{name}_scales"], [result], domain=CONTRIB, **sizes)


def int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Matrices of int8 with a scale for each output; inputs are rounded to 8 bits when they are known."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "float.onnx"), pathlib.Path(folder, "int8.onnx")
        onnx.save(model, source)
        operators = ["MatMul", "Attention"]
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=operators,
                         extra_options={"DefaultTensorType": TensorProto.FLOAT})  # fmt: skip
        return onnx.load(target)


def encoder(weights: dict[str, np.ndarray], layers: int, heads: int, packed: bool = True) -> onnx.ModelProto:
    """BERT from ids to the hidden states of the last layer; `lengths` counts the real tokens of each row.

    Without `packed`, queries, keys and values have a product each, as `MultiHeadAttention` wants them; `mask` is 1 at real tokens; and
    the result is the `vectors` of the sentences.
    """
    tensors, nodes = {}, []

    def node(operator: str, inputs: list[str], name: str, domain: str = "", **attributes) -> str:
        nodes.append(helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def constant(name: str, tensor: np.ndarray) -> str:
        tensors[name] = tensor
        return name

    def linear(input_: str, name: str, operator: str = "Add") -> str:
        product = node("MatMul", [input_, constant(f"{name}.matrix", weights[f"{name}.weight"].T)], f"{name}.product")
        bias = constant(f"{name}.bias", weights[f"{name}.bias"])
        return node(operator, [product, bias], f"{name}.sum", CONTRIB if operator == "BiasGelu" else "")

    def norm(inputs: list[str], name: str, operator: str = "SkipLayerNormalization") -> str:
        factors = [constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        more = {"domain": CONTRIB} if operator.startswith("Skip") else {"axis": -1}
        return node(operator, [*inputs, *factors], f"{name}.normed", epsilon=1e-12, **more)

    def attention(hidden: str, own: str) -> str:
        sides = [f"{own}attention.self.{side}" for side in ("query", "key", "value")]
        if not packed:
            arguments = [*(linear(hidden, side) for side in sides), "", "mask"]
            return node("MultiHeadAttention", arguments, f"{own}context", CONTRIB, num_heads=heads)
        matrix = np.concatenate([weights[f"{side}.weight"].T for side in sides], 1)
        bias = np.concatenate([weights[f"{side}.bias"] for side in sides])
        arguments = [hidden, constant(f"{own}qkv", matrix), constant(f"{own}qkv_bias", bias), "lengths"]
        return node("Attention", arguments, f"{own}context", CONTRIB, num_heads=heads)

    start = "embeddings."
    places = weights[f"{start}position_embeddings.weight"] + weights[f"{start}token_type_embeddings.weight"][0]
    words = node("Gather", [constant("words", weights[f"{start}word_embeddings.weight"]), "ids"], "word")
    hidden = node("Add", [words, node("Gather", [constant("places", places), "positions"], "place")], "embedded")
    hidden = norm([hidden], f"{start}LayerNorm", "LayerNormalization")
    for layer_ in range(layers):
        own = f"encoder.layer.{layer_}."
        context = attention(hidden, own)
        hidden = norm([linear(context, f"{own}attention.output.dense"), hidden], f"{own}attention.output.LayerNorm")
        inner = linear(hidden, f"{own}intermediate.dense", "BiasGelu")
        hidden = norm([linear(inner, f"{own}output.dense"), hidden], f"{own}output.LayerNorm")
    shape = ["B", "T", places.shape[1]]
    inputs = [value("ids", ["B", "T"], TensorProto.INT64), value("positions", ["T"], TensorProto.INT64)]
    if packed:
        return model(nodes, [*inputs, value("lengths", ["B"], TensorProto.INT32)], [value(hidden, shape)], tensors)
    # The mean of a row has the direction of its sum.
    real = node("Unsqueeze", [node("Cast", ["mask"], "real", to=TensorProto.FLOAT), constant("last", np.array([2]))], "reals")
    total = node("ReduceSum", [node("Mul", [hidden, real], "kept"), constant("tokens", np.array([1]))], "total", keepdims=0)
    node("LpNormalization", [total], "vectors", axis=-1, p=2)
    mask = value("mask", ["B", "T"], TensorProto.INT32)
    return model(nodes, [*inputs, mask], [value("vectors", ["B", shape[-1]])], tensors)
