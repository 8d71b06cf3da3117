"""Roofline arithmetic, targets, and the table that `gpu_peers.py` writes."""

import dataclasses

# The target of a workload: `bandwidth` is a fraction of the measured one, `tflops` a rate, `beat` the peers that must be slower.
TARGETS = {
    "decode-64x32x8x128-4096": {"bandwidth": 0.85},
    "decode-1x32x32x128-32768": {"bandwidth": 0.80},
    "prefill-1x32x128-4096-causal": {"tflops": 280.0},
    "softmax-32x2048x2048-plain": {"bandwidth": 0.85},
    "softmax-32x2048x2048-triangular": {"bandwidth": 0.85},
    "softmax-32x2048x2048-masked": {"bandwidth": 0.85},
    "layernorm-4096x4096": {"bandwidth": 0.85},
    "rmsnorm-4096x4096": {"bandwidth": 0.85},
    "layer-decode-1x32x32-2048": {"beat": ["eager", "torch.compile"]},
    "layer-decode-1x32x8-2048": {"beat": ["eager", "torch.compile"]},
    "layer-decode-64x32x32-2048": {"beat": ["eager", "torch.compile"]},
    "layer-decode-64x32x8-2048": {"beat": ["eager", "torch.compile"]},
}


@dataclasses.dataclass
class Roofline:
    """Rates of the device per second: bytes, multiplications and additions, and exponentials."""

    bandwidth: float
    matmul: float
    exponentials: float

    def limit(self, workload: dict) -> tuple[float, str]:
        """The least time, in microseconds, and the rate that limits it."""
        times = {
            "memory": workload["bytes"] / self.bandwidth if self.bandwidth else 0.0,
            "matmul": workload["flops"] / self.matmul if self.matmul else 0.0,
            "exponentials": workload["exponentials"] / self.exponentials if self.exponentials else 0.0,
        }
        kind = max(times, key=times.get)
        return times[kind] * 1e6, kind

    def record(self) -> dict:
        return dataclasses.asdict(self)


def metric(workload: dict) -> str:
    """A layer is timed with its host, a kernel on the device."""
    return "wall_us" if workload["kind"] == "layer" else "median_us"


def verdict(workload: dict, time: float, peers: dict[str, float], roofline: Roofline) -> str:
    """Whether the target is met."""
    target = TARGETS.get(workload["name"])
    if target is None:
        return "-"
    if "bandwidth" in target:
        if not roofline.bandwidth:
            return "-"
        met = workload["bytes"] / (time * 1e-6) >= target["bandwidth"] * roofline.bandwidth
        wanted = f"{target['bandwidth']:.0%} of bandwidth"
    elif "tflops" in target:
        met = workload["flops"] / (time * 1e-6) >= target["tflops"] * 1e12
        wanted = f"{target['tflops']:.0f} TFLOP/s"
    else:
        rivals = {name: peers[name] for name in peers if any(name.startswith(wanted) for wanted in target["beat"])}
        rivals = {name: time for name, time in rivals.items() if "graph" not in name}
        if not rivals:
            return "no peer ran"
        met = all(time < rival for rival in rivals.values())
        wanted = "faster than eager and torch.compile"
    return "met" if met else f"missed: {wanted}"


def microseconds(time: float | None) -> str:
    if time is None:
        return "-"
    return f"{time:.1f}" if time < 1000 else f"{time:.0f}"


def best(rows: list[dict], which: str) -> dict | None:
    ran = [row for row in rows if row[which]]
    return min(ran, key=lambda row: row[which]) if ran else None


def markdown(result: dict) -> str:
    roofline = Roofline(**result["roofline"])
    lines = [
        f"# {result['device']}",
        "",
        f"PyTorch {result['torch']}, CUDA {result['cuda']}, driver "
        f"{result['nvidia_smi_before'].get('driver_version', 'unknown')}; {result['seconds']} s, medians of "
        f"{result['rounds']} rounds, in each of which every program ran. Written by `scripts/gpu_peers.py`.",
        "",
        f"Measured here: {roofline.bandwidth / 1e12:.2f} TB/s copied (read and written), {roofline.matmul / 1e12:.0f} TFLOP/s in a bf16 "
        f"product of 8192³. Computed from the clock: {roofline.exponentials / 1e12:.2f} T exponentials per second, 16 per "
        "multiprocessor and cycle. The limit of a workload is the slowest of the three.",
        "",
        "Times are microseconds of one call on the device, whose queue was full before the first call began. *Cold*: the tensors were not "
        "in the L2 cache. *Warm*: they were there if they fit. Layers are timed with their host, as many calls back to back. "
        "The ratio is the time of the fastest peer divided by ours: above 1, ours is faster.",
    ]
    if result["quick"]:
        lines += ["", "**A trial run on small tensors: the times mean nothing.**"]
    for problem in result["problems"]:
        lines += ["", f"**Problem:** {cell(problem)}"]
    for dtype in ("bf16", "f16"):
        lines += summary(result, roofline, dtype)
    lines += host(result) + details(result)
    return "\n".join(lines) + "\n"


def summary(result: dict, roofline: Roofline, dtype: str) -> list[str]:
    """A line for each workload."""
    lines = [
        "",
        f"## {dtype}",
        "",
        "| workload | limit | set by | ours | cold | of the limit | rate | warm | fastest peer | cold | ratio | target |",
        "| --- | --: | --- | --- | --: | --: | --: | --: | --- | --: | --: | --- |",
    ]
    for workload in result["workloads"]:
        if workload["kind"] == "launch" or dtype not in workload["dtypes"]:
            continue
        rows = [row for row in result["rows"] if row["name"] == workload["name"] and row["dtype"] == dtype]
        if not rows:
            continue
        which, (limit, kind) = metric(workload), roofline.limit(workload)
        first = workload["l2"][0]
        # A program without cold launches uses tensors that are larger than the cache.
        cold = [row for row in rows if row["l2"] == first]
        cold += [row for row in rows if row["l2"] != first and not any(row["engine"] == other["engine"] for other in cold)]
        ours, peer = best([row for row in cold if row["ours"]], which), best([row for row in cold if not row["ours"]], which)
        warm = best([row for row in rows if row["ours"] and row["l2"] == "warm"], which) if len(workload["l2"]) > 1 else None
        head = f"| `{workload['name']}` | {microseconds(limit)} | {kind} "
        if ours is None:
            error = next((row["error"] for row in cold if row["ours"] and row["error"]), "not run")
            lines.append(f"{head}| - | - | - | - | - | {peer_cells(peer, which, None)} | {cell(error)} |")
            continue
        time = ours[which]
        peers = {row["engine"]: row[which] for row in cold if not row["ours"] and row[which]}
        rate = f"{workload['flops'] / time / 1e6:.0f} TFLOP/s" if kind == "matmul" or workload["kind"] == "prefill" else ""
        rate = rate or f"{workload['bytes'] / time / 1e6:.2f} TB/s"
        lines.append(
            f"{head}| {ours['engine']} | {microseconds(time)} | {limit / time:.0%} | {rate} "
            f"| {microseconds(warm[which] if warm else None)} | {peer_cells(peer, which, time)} "
            f"| {verdict(workload, time, peers, roofline)} |"
        )
    return lines


def peer_cells(peer: dict | None, which: str, ours: float | None) -> str:
    if peer is None:
        return "- | - | -"
    ratio = f"{peer[which] / ours:.2f}" if ours else "-"
    return f"{cell(peer['engine'])} | {microseconds(peer[which])} | {ratio}"


def host(result: dict) -> list[str]:
    """The cost of a launch that computes nothing."""
    rows = [row for row in result["rows"] if row["name"] == "launch" and row["wall_us"] is not None]
    if not rows:
        return []
    lines = ["", "## The host's part", "", "| program | one of many launches | from an idle device until it is known to be done |"]
    lines.append("| --- | --: | --: |")
    seen = set()
    for row in rows:
        if row["engine"] not in seen:
            seen.add(row["engine"])
            lines.append(f"| {row['engine']} | {microseconds(row['wall_us'])} | {microseconds(row['latency_us'])} |")
    return lines


def details(result: dict) -> list[str]:
    lines = [
        "",
        "## Every program",
        "",
        "*Back to back*: the mean of many calls that start on an idle queue, which the slower of host and device limits.",
        "",
        "| workload | element | program | cold | warm | back to back, cold | warm |",
        "| --- | --- | --- | --: | --: | --: | --: |",
    ]
    groups = {}
    for row in result["rows"]:
        groups.setdefault((row["name"], row["dtype"], row["engine"]), {})[row["l2"]] = row
    order = {workload["name"]: at for at, workload in enumerate(result["workloads"])}
    for (name, dtype, engine), by_l2 in sorted(groups.items(), key=lambda group: (order[group[0][0]], group[0][1])):
        errors = [row["error"] for row in by_l2.values() if row["error"]]
        if len(errors) == len(by_l2):
            lines.append(f"| `{name}` | {dtype} | {cell(engine)} | {cell(errors[0])} | | | |")
            continue
        times = [microseconds(by_l2.get(l2, {}).get(which)) for which in ("median_us", "wall_us") for l2 in ("cold", "warm")]
        lines.append(f"| `{name}` | {dtype} | {cell(engine)} | {' | '.join(times)} |")
    return lines


def cell(text: str) -> str:
    """Text without the characters that end a cell of a table."""
    return " ".join(str(text).replace("|", "/").split())[:160]
