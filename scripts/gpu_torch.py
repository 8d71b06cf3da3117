"""PyTorch's side of `gpu_peers.py`: the same problems, solved in every way that PyTorch offers, on the current device."""

import contextlib
import gc
import math
import types
import warnings

from gpu_clock import Stopwatch

# Total size of the tensors that cold calls rotate over, as in `kernels/examples/gpu_bench`.
COLD_BYTES = 256 << 20
# Workloads for which `torch.compile` is a peer, in bf16 only: it takes seconds for each.
COMPILED = (
    "decode-64",
    "softmax",
    "cache-write-1x",
    "squares-1x",
    "norm-qkv-4096-12288-out-in",
    "norm-qkv-8x",
    "dequantise",
    "layer",
    "layernorm",
)


class Prepared:
    """The ways to solve one problem, and tensors for cold calls."""

    def __init__(self, torch, sets: list, ways: dict):
        self.torch, self.sets, self.ways = torch, sets, ways
        self.calls = {}

    def names(self) -> list[str]:
        return list(self.ways)

    def measure(self, name: str, l2: str, stopwatch: Stopwatch) -> dict:
        with warnings.catch_warnings(record=True) as reasons:
            warnings.simplefilter("always")
            answer = self.read(name, l2, stopwatch)
        if "error" in answer:
            # Why SDPA refuses a backend is in its warnings.
            lines = [str(reason.message).strip().splitlines()[0] for reason in reasons if str(reason.message).strip()]
            answer["error"] += "".join(f"; {line.split(' (Triggered')[0]}" for line in dict.fromkeys(lines))
        return answer

    def read(self, name: str, l2: str, stopwatch: Stopwatch) -> dict:
        try:
            with self.torch.inference_mode(), self.ways[name].context():
                if name not in self.calls:
                    self.calls[name] = [self.ways[name].bind(tensors) for tensors in self.sets]
                    self.calls[name][0]()
                    self.torch.cuda.synchronize()
                calls = self.calls[name]
                return stopwatch.read(calls if l2 == "cold" else calls[:1])
        except Exception as error:  # noqa: BLE001: whatever a peer fails with is its row
            self.calls.pop(name, None)
            text = str(error).strip().splitlines()
            return {"error": f"{type(error).__name__}: {text[0] if text else ''}"}


class Way:
    """One way: `bind(tensors)` gives the call."""

    def __init__(self, bind, context=contextlib.nullcontext):
        self.bind, self.context = bind, context


def simple(function) -> Way:
    """A way that is a function of the tensors."""
    return Way(lambda tensors: lambda: function(tensors))


class Peers:
    """Builds problems from the descriptions of `gpu_bench --list`."""

    def __init__(self, torch, quick: bool, device: str = "cuda"):
        self.torch, self.quick, self.device = torch, quick, device

    def clean(self):
        gc.collect()
        self.torch._dynamo.reset()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()

    def prepare(self, workload: dict, dtype: str) -> Prepared:
        kind, sizes = workload["kind"], dict(workload["sizes"])
        if self.quick:
            sizes = small(kind, sizes)
        self.dtype = {"bf16": self.torch.bfloat16, "f16": self.torch.float16}[dtype]
        # Without it PyTorch makes weights of int8 dense in memory, each time.
        fused = sizes.get("weights") == "int8"
        self.compiled = dtype == "bf16" and (fused or workload["name"].startswith(COMPILED))
        try:
            build = getattr(self, kind.replace("-", "_"))
            make, ways = build(**sizes)
            bytes_ = workload["bytes"]
            cold = "warm" in workload["l2"] and bytes_ > 0
            count = (2 if self.quick else min(256, 1 + -(-COLD_BYTES // bytes_))) if cold else 1
            return Prepared(self.torch, [make() for _ in range(count)], ways)
        except Exception as error:  # noqa: BLE001
            text = f"{type(error).__name__}: {error}"

            def refuse(_):
                raise RuntimeError(text)

            return Prepared(self.torch, [None], {"PyTorch": Way(refuse)})

    # Parts of the problems.

    def noise(self, *shape, dtype=None):
        return self.torch.empty(shape, dtype=dtype or self.dtype, device=self.device).uniform_(-1, 1)

    def bytes(self, *shape):
        return self.torch.randint(-127, 128, shape, dtype=self.torch.int8, device=self.device)

    def tensors(self, **fields):
        return lambda: types.SimpleNamespace(**{name: make() for name, make in fields.items()})

    def compile(self, function):
        return self.torch.compile(function, dynamic=False)

    def with_compiled(self, ways: dict, name: str, function) -> dict:
        if self.compiled:
            ways[name] = simple(self.compile(function))
        return ways

    def sdpa(self, arguments) -> dict:
        """SDPA with each backend forced: one that refuses is a row that says so."""
        attention, functional = self.torch.nn.attention, self.torch.nn.functional
        ways = {}
        for label, backend in (("flash", "FLASH_ATTENTION"), ("cuDNN", "CUDNN_ATTENTION"), ("efficient", "EFFICIENT_ATTENTION")):
            if not hasattr(attention.SDPBackend, backend):
                continue
            chosen = getattr(attention.SDPBackend, backend)

            def bind(tensors):
                query, key, value, options = arguments(tensors)
                return lambda: functional.scaled_dot_product_attention(query, key, value, **options)

            ways[f"SDPA {label}"] = Way(bind, lambda chosen=chosen: attention.sdpa_kernel([chosen]))
        return ways

    def composed(self, tensors, mask=None):
        """DeepSpeed's pieces, one launch each: product, scale and mask, softmax, product, concatenation of heads."""
        torch = self.torch
        query, key, value = tensors.query, tensors.all_keys, tensors.all_values
        batch, heads, tokens, head = query.shape
        flat = lambda tensor: tensor.reshape(batch * heads, -1, head)
        scores = torch.baddbmm(tensors.zero, flat(query), flat(key).transpose(1, 2), beta=0, alpha=head**-0.5)
        scores = scores.view(batch, heads, tokens, -1)
        if mask is not None:
            scores = scores + mask
        context = torch.bmm(torch.softmax(scores, -1).view(batch * heads, tokens, -1), flat(value))
        return context.view(batch, heads, tokens, head).transpose(1, 2).reshape(batch, tokens, heads * head)

    # The problems.

    def copy(self, megabytes):
        count = (megabytes << 20) // 2
        make = self.tensors(source=lambda: self.noise(count), target=lambda: self.noise(count))
        return make, {"torch copy_": simple(lambda tensors: tensors.target.copy_(tensors.source))}

    def launch(self):
        make = self.tensors(cell=lambda: self.noise(8))
        return make, {"torch add_": simple(lambda tensors: tensors.cell.add_(1.0))}

    def decode(self, batch, heads, kv_heads, head, keys):
        make_plain = self.tensors(
            query=lambda: self.noise(batch, heads, 1, head),
            key=lambda: self.noise(batch, kv_heads, keys, head),
            value=lambda: self.noise(batch, kv_heads, keys, head),
        )
        group = heads // kv_heads

        def make():
            tensors = make_plain()
            # DeepSpeed's cache holds the keys of every query head.
            repeat = lambda tensor: tensor if group == 1 else tensor.repeat_interleave(group, 1)
            tensors.all_keys, tensors.all_values = repeat(tensors.key), repeat(tensors.value)
            tensors.zero = self.noise(1, 1, 1)
            return tensors

        ways = self.sdpa(lambda tensors: (tensors.query, tensors.key, tensors.value, {"enable_gqa": group > 1}))
        if group > 1:
            repeated = self.sdpa(lambda tensors: (tensors.query, tensors.all_keys, tensors.all_values, {}))
            ways |= {f"{name}, keys repeated": way for name, way in repeated.items() if "flash" not in name}
        ways["eager, as DeepSpeed"] = simple(self.composed)
        return make, self.with_compiled(ways, "torch.compile, as DeepSpeed", self.composed)

    def prefill(self, batch, heads, head, tokens, causal, addend):
        torch = self.torch
        make_plain = self.tensors(
            query=lambda: self.noise(batch, heads, tokens, head),
            key=lambda: self.noise(batch, heads, tokens, head),
            value=lambda: self.noise(batch, heads, tokens, head),
            zero=lambda: self.noise(1, 1, 1),
        )
        hidden = lambda: torch.ones(tokens, tokens, dtype=torch.bool, device=self.device).triu(1)
        slopes = lambda: torch.tensor([2.0 ** (-8 * (at + 1) / heads) for at in range(heads)], device=self.device)

        def additive():
            """The addend of the scores, `-inf` for hidden pairs; none if a flag expresses the whole mask."""
            if addend == "bias":
                mask = self.noise(1, heads, tokens, tokens)
            elif addend == "alibi":
                place = torch.arange(tokens, device=self.device, dtype=torch.float32)
                distance = place[None, :] - place[:, None]
                # Head by head: all heads at once in f32 would take twice the memory.
                mask = torch.stack([(slope * distance).to(self.dtype) for slope in slopes()])[None]
            elif causal:
                mask = torch.zeros(1, 1, tokens, tokens, dtype=self.dtype, device=self.device)
            else:
                return None
            return mask.masked_fill_(hidden(), -math.inf) if causal else mask

        def make():
            tensors = make_plain()
            tensors.all_keys, tensors.all_values = tensors.key, tensors.value
            tensors.mask = additive()
            return tensors

        def arguments(tensors):
            if addend is None:
                return tensors.query, tensors.key, tensors.value, {"is_causal": causal}
            mask = tensors.mask.expand(batch, -1, -1, -1)
            return tensors.query, tensors.key, tensors.value, {"attn_mask": mask}

        ways = self.sdpa(arguments)
        ways["eager, as DeepSpeed"] = simple(lambda tensors: self.composed(tensors, tensors.mask))
        if addend == "alibi" and self.dtype == torch.bfloat16:
            ways["FlexAttention"] = Way(lambda tensors: self.flex(tensors, causal, slopes()))
        return make, ways

    def flex(self, tensors, causal, slopes):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        tokens = tensors.query.shape[2]
        mask = None
        if causal:
            mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, tokens, tokens, device=self.device)
        score = lambda score, b, h, q, k: score + slopes[h] * (k - q)
        attend = self.compile(flex_attention)
        return lambda: attend(tensors.query, tensors.key, tensors.value, score_mod=score, block_mask=mask)

    def softmax(self, heads, tokens, masked, triangular):
        torch = self.torch
        fields = {"scores": lambda: self.noise(1, heads, tokens, tokens)}
        if masked:
            fields["mask"] = lambda: self.noise(1, 1, tokens, tokens)
        if triangular:
            fields["hidden"] = lambda: torch.ones(tokens, tokens, dtype=torch.bool, device=self.device).triu(1)

        def masked_softmax(tensors):
            scores = tensors.scores * 0.125
            if masked:
                scores = scores + tensors.mask
            if triangular:
                scores = scores.masked_fill(tensors.hidden, -math.inf)
            return torch.softmax(scores, -1)

        ways = {"eager": simple(masked_softmax)}
        if not masked and not triangular:
            ways["eager, softmax alone"] = simple(lambda tensors: torch.softmax(tensors.scores, -1))
        return self.tensors(**fields), self.with_compiled(ways, "torch.compile", masked_softmax)

    def norm(self, rows, features, rms):
        functional = self.torch.nn.functional
        make = self.tensors(
            input=lambda: self.noise(rows, features), gamma=lambda: self.noise(features), beta=lambda: self.noise(features)
        )

        def norm(tensors):
            if rms:
                return functional.rms_norm(tensors.input, (features,), tensors.gamma, 1e-5)
            return functional.layer_norm(tensors.input, (features,), tensors.gamma, tensors.beta, 1e-5)

        return make, self.with_compiled({"eager": simple(norm)}, "torch.compile", norm)

    def gemv(self, rows, inputs, outputs, normed, weights):
        torch, functional = self.torch, self.torch.nn.functional
        shape = (inputs, outputs) if weights == "in-out" else (outputs, inputs)
        make = self.tensors(
            input=lambda: self.noise(rows, inputs),
            matrix=lambda: self.bytes(*shape) if weights == "int8" else self.noise(*shape),
            scales=lambda: self.noise(outputs),
            bias=lambda: self.noise(outputs),
            gamma=lambda: self.noise(inputs),
            beta=lambda: self.noise(inputs),
        )

        def project(tensors):
            rows = tensors.input
            if normed:
                rows = functional.layer_norm(rows, (inputs,), tensors.gamma, tensors.beta, 1e-5)
            if weights == "int8":
                # As gpt-fast has it.
                return functional.linear(rows, tensors.matrix.to(rows.dtype)) * tensors.scales + tensors.bias
            if weights == "out-in":
                return functional.linear(rows, tensors.matrix, tensors.bias)
            return torch.addmm(tensors.bias, rows, tensors.matrix)

        return make, self.with_compiled({"eager": simple(project)}, "torch.compile", project)

    def rotated(self, heads, cos, sin):
        left, right = heads.chunk(2, -1)
        return self.torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(heads.dtype)

    def cache_write(self, batch, tokens, heads, kv_heads, head, capacity):
        make = self.tensors(
            qkv=lambda: self.noise(batch, tokens, (heads + 2 * kv_heads) * head),
            key=lambda: self.noise(batch, kv_heads, capacity, head),
            value=lambda: self.noise(batch, kv_heads, capacity, head),
            cos=lambda: self.noise(1, 1, tokens, head // 2, dtype=self.torch.float32),
            sin=lambda: self.noise(1, 1, tokens, head // 2, dtype=self.torch.float32),
        )

        def append(tensors):
            query, key, value = tensors.qkv.split([heads * head, kv_heads * head, kv_heads * head], -1)
            by_head = lambda tensor: tensor.unflatten(-1, (-1, head)).transpose(1, 2)
            tensors.key[:, :, capacity - tokens :] = self.rotated(by_head(key), tensors.cos, tensors.sin)
            tensors.value[:, :, capacity - tokens :] = by_head(value)
            return self.rotated(by_head(query), tensors.cos, tensors.sin).contiguous()

        return make, self.with_compiled({"eager": simple(append)}, "torch.compile", append)

    def squares(self, batch, tokens, heads, kv_heads, head):
        torch, widths = self.torch, [heads * head, kv_heads * head, kv_heads * head]
        make = self.tensors(qkv=lambda: self.noise(batch, tokens, sum(widths)))

        def squares(tensors):
            query, key, _ = tensors.qkv.split(widths, -1)
            return torch.stack([heads.float().square().sum(-1) for heads in (query, key)], -1)

        return make, self.with_compiled({"eager": simple(squares)}, "torch.compile", squares)

    def dequantise(self, inputs, outputs, blocks):
        if blocks not in UNPACK:
            raise NotImplementedError(f"blocks of {blocks} are not unpacked here")
        elements, size, unpack = UNPACK[blocks]
        count = inputs * outputs // elements
        # Any f16 is a scale here.
        draw = lambda: self.torch.randint(0, 256, (count, size), dtype=self.torch.uint8, device=self.device)
        make, dtype = self.tensors(blocks=draw), self.dtype
        dense = lambda tensors: unpack(self.torch, tensors.blocks).to(dtype).view(outputs, inputs)
        return make, self.with_compiled({"eager": simple(dense)}, "torch.compile", dense)

    def layer(self, batch, heads, kv_heads, head, keys):
        torch, functional = self.torch, self.torch.nn.functional
        hidden, group = heads * head, heads // kv_heads
        widths = [hidden, kv_heads * head, kv_heads * head]
        weight = lambda rows: self.noise(rows, hidden) / hidden**0.5
        make = self.tensors(
            input=lambda: self.noise(batch, 1, hidden),
            gamma=lambda: self.noise(hidden),
            qkv=lambda: weight(sum(widths)),
            output=lambda: weight(hidden),
            key=lambda: self.noise(batch, kv_heads, keys, head),
            value=lambda: self.noise(batch, kv_heads, keys, head),
            cos=lambda: self.noise(1, 1, 1, head // 2, dtype=torch.float32),
            sin=lambda: self.noise(1, 1, 1, head // 2, dtype=torch.float32),
            zero=lambda: self.noise(1, 1, 1),
        )

        def projected(tensors):
            """The queries, once the new key and value are in the cache."""
            rows = functional.rms_norm(tensors.input, (hidden,), tensors.gamma, 1e-6)
            query, key, value = functional.linear(rows, tensors.qkv).split(widths, -1)
            by_head = lambda tensor: tensor.unflatten(-1, (-1, head)).transpose(1, 2)
            tensors.key[:, :, keys - 1 :] = self.rotated(by_head(key), tensors.cos, tensors.sin)
            tensors.value[:, :, keys - 1 :] = by_head(value)
            return self.rotated(by_head(query), tensors.cos, tensors.sin)

        def with_sdpa(tensors):
            query = projected(tensors)
            context = functional.scaled_dot_product_attention(query, tensors.key, tensors.value, enable_gqa=group > 1)
            return functional.linear(context.transpose(1, 2).flatten(2), tensors.output)

        def as_deepspeed(tensors):
            query = projected(tensors)
            repeat = lambda tensor: tensor if group == 1 else tensor.repeat_interleave(group, 1)
            operands = types.SimpleNamespace(
                query=query, all_keys=repeat(tensors.key), all_values=repeat(tensors.value), zero=tensors.zero
            )
            return functional.linear(self.composed(operands), tensors.output)

        def graphed(function):
            """The function's launches as one CUDA graph, which the host starts with one call."""

            def bind(tensors):
                stream = torch.cuda.Stream()
                with torch.cuda.stream(stream):
                    for _ in range(3):
                        function(tensors)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    function(tensors)
                return graph.replay

            return Way(bind)

        ways = {"eager, SDPA": simple(with_sdpa), "eager, as DeepSpeed": simple(as_deepspeed)}
        if self.compiled:
            compiled = self.compile(with_sdpa)
            ways["torch.compile"] = simple(compiled)
            ways["torch.compile in a CUDA graph"] = graphed(compiled)
        return make, ways


def halves(torch, blocks):
    """Bytes as f16, in f32."""
    return blocks.contiguous().view(torch.float16).float()


def bits(torch, packed, count: int):
    """The parts of bytes, `count` bits each, lowest first: the last axis but one has them."""
    shifts = torch.arange(0, 8, count, dtype=torch.uint8, device=packed.device)[:, None]
    return packed[..., None, :] >> shifts & (1 << count) - 1


def q4_0(torch, blocks):
    elements = bits(torch, blocks[:, 2:], 4).flatten(1).float() - 8
    return halves(torch, blocks[:, :2]) * elements


def q4_k(torch, blocks):
    scale, minimum = halves(torch, blocks[:, :4]).split(1, 1)
    scales, minima, rest = blocks[:, 4:16].split(4, 1)
    # The last four of each have their upper two bits with the first four.
    own_scales = torch.cat([scales & 63, rest & 15 | scales >> 6 << 4], 1)
    own_minima = torch.cat([minima & 63, rest >> 4 | minima >> 6 << 4], 1)
    elements = bits(torch, blocks[:, 16:].unflatten(1, (4, 32)), 4).reshape(-1, 8, 32)
    return (scale * own_scales)[..., None] * elements - (minimum * own_minima)[..., None]


def q6_k(torch, blocks):
    lower, upper, scales, scale = blocks.split([128, 64, 16, 2], 1)
    lower = bits(torch, lower.unflatten(1, (2, 64)), 4).reshape(-1, 16, 16)
    upper = bits(torch, upper.unflatten(1, (2, 32)), 2).reshape(-1, 16, 16)
    elements = (lower | upper << 4).float() - 32
    return (halves(torch, scale) * scales.contiguous().view(torch.int8))[..., None] * elements


# Formats of blocks: elements, bytes, and the elements of many blocks.
UNPACK = {"q4_0": (32, 18, q4_0), "q4_k": (256, 144, q4_k), "q6_k": (256, 210, q6_k)}


def small(kind: str, sizes: dict) -> dict:
    """The sizes of a trial run."""
    changes = {
        "copy": lambda: {"megabytes": 1},
        "decode": lambda: {"batch": 1, "keys": sizes["keys"] // 16},
        "prefill": lambda: {"tokens": sizes["tokens"] // 16},
        "softmax": lambda: {"heads": 1},
        "norm": lambda: {"rows": 64},
        "dequantise": lambda: {"outputs": 64},
        "layer": lambda: {"keys": sizes["keys"] // 16},
    }
    return sizes | changes.get(kind, dict)()
