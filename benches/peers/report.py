"""Writes a page of `docs`, between its markers, and its plot from the results of a run.

python3 benches/peers/report.py bench/results/cpu.json docs                             # performance.md and performance.svg
python3 benches/peers/report.py bench/results/cpu-avx512.json docs performance-avx512
"""

import json
import pathlib
import sys

from plot import svg

START, END = "<!-- measured -->", "<!-- end of what was measured -->"
OURS = "ours-ndarray"
# The groups whose implementations are compared within classes of precision, and the headings of these parts.
BY_PRECISION = {
    "layer": "A whole layer, by precision",
    "encoder": "Sentence embeddings, by precision",
    "blocks": "Layers of blocks",
}
# Reading an array: the limit of a memory-bound workload, and not a peer.
READS = ("read", "read-4")
# Other configurations of ours, and the headings of their columns.
OTHERS = {
    "ours-flex": "on flex, ms",
    "ours-int8": "int8 weights, ms",
    "ours-int8-cache": "int8 weights and cache, ms",
    "ours-int8-rounded": "and inputs rounded, ms",
    "ours-int8-rounded-8": "to 8 bits, ms",
    "ours-blocks-16": "inputs rounded to 16 bits, ms",
    "ours-blocks-8": "inputs rounded to 8 bits, ms",
    "ours-without-norm": "without the norm of queries and keys, ms",
    "ours-with-sinks": "with sinks, ms",
}
# The unit of a rate, by what limits it.
UNITS = {"matmul": "GFLOP/s", "peak": "GFLOP/s", "read": "GB/s", None: "sentences/s"}


class Result:
    """What was measured, by workload, threads and implementation."""

    def __init__(self, record: dict):
        self.record, self.labels = record, record["implementations"]
        self.workloads = {workload["name"]: workload for workload in record["workloads"]}
        self.rows = {}
        for row in record["rows"]:
            known = self.rows.setdefault((row["workload"], row["threads"], row["implementation"]), row)
            # Limits are measured twice; the faster measurement counts.
            if row.get("ms", float("inf")) < known.get("ms", float("inf")):
                self.rows[row["workload"], row["threads"], row["implementation"]] = row
        self.threads = sorted({threads for _, threads, _ in self.rows})

    def of(self, group: str) -> list[dict]:
        return [workload for workload in self.workloads.values() if workload["group"] == group]

    def ms(self, name: str, threads: int, implementation: str) -> float | None:
        return self.rows.get((name, threads, implementation), {}).get("ms")

    def peers(self, group: str) -> list[str]:
        """The other implementations, in the order of the record."""
        others = [name for name in self.labels if not name.startswith("ours") and name not in READS]
        return [name for name in others if self.took_part(name, group)]

    def f32_peers(self, group: str) -> list[str]:
        """Those of f32. A record without classes was measured in f32, but for one column."""
        classes = self.record.get("classes", {})
        others = {name for own, names in classes.items() if own != "f32" for name in names}
        return [name for name in self.peers(group) if name not in others]

    def classes(self, group: str) -> dict[str, list[str]]:
        """The implementations of each class of precision that took part. Those of layers of blocks are one class; other groups have none."""
        if group not in BY_PRECISION:
            return {}
        classes = self.record.get("classes", {}).items()
        chosen = {own: names for own, names in classes if (own == "blocks") == (group == "blocks")}
        taken = {own: [name for name in names if self.took_part(name, group)] for own, names in chosen.items()}
        return {own: names for own, names in taken.items() if names}

    def fastest(self, name: str, threads: int, implementations: list[str]) -> tuple[float, str] | None:
        """The smallest time of these, and whose it is."""
        times = ((self.ms(name, threads, implementation), implementation) for implementation in implementations)
        return min(((ms, implementation) for ms, implementation in times if ms), default=None)

    def took_part(self, implementation: str, group: str) -> bool:
        names = {workload["name"] for workload in self.of(group)}
        return any(name in names and who == implementation for name, _, who in self.rows)

    def ratio(self, name: str, threads: int, peer: str) -> float | None:
        ours, theirs = self.ms(name, threads, OURS), self.ms(name, threads, peer)
        return theirs / ours if ours and theirs else None

    @staticmethod
    def rate(workload: dict, ms: float) -> float:
        """In the unit of `UNITS`."""
        match workload["limit"]:
            case "matmul" | "peak":
                return workload["flops"] / ms / 1e6
            case "read":
                return workload["bytes"] / ms / 1e6
        return workload["sentences"] / ms * 1e3

    def limit(self, workload: dict, threads: int) -> float | None:
        """The fastest round of what limits a workload: in GFLOP/s that of the large products of this run, in GB/s that of reading
        as many bytes as the workload does, next to it. `None` if that was not measured."""
        kind, name = workload["limit"], workload["name"]
        rates = [
            self.rate(self.workloads[row["workload"]], min(row["round_ms"])) for row in self.record["rows"]
            if row["threads"] == threads and row.get("round_ms")
            and (row["workload"] == name and row["implementation"] in READS if kind == "read"
                 else kind == "peak" and row["workload"] == name
             or kind == "matmul" and self.workloads[row["workload"]]["kind"] == "matmul")
        ]  # fmt: skip
        return max(rates, default=None)

    def share(self, workload: dict, threads: int, implementation: str) -> float | None:
        """The rate divided by the limit."""
        ms, limit = self.ms(workload["name"], threads, implementation), self.limit(workload, threads)
        return self.rate(workload, ms) / limit if ms and limit else None


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    if value is None:
        return "—"
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}"


def checked(row: dict) -> str:
    """A time with its difference from float64."""
    return f"{number(row['ms'])} ({row['difference']:.0e})".replace("e-0", "e-") if "ms" in row else "—"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return ["", *("| " + " | ".join(line) + " |" for line in lines)]


def machine(result: Result) -> list[str]:
    machine, settings = result.record["machine"], result.record["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    vectors, memory = ", ".join(machine["vectors"]), machine["memory_gib"]
    return [
        f"**Machine:** {machine['processor']}, {machine['cores']} cores, {vectors}, {memory} GiB, {machine['system']}; "
        f"{versions}, rustc {machine['rustc']}. {machine['date']}, {settings['seconds']} s, at most {settings['rounds']} "
        f"rounds, load {settings['load_before']} before."
    ]


def limits(result: Result) -> list[str]:
    measured = result.of("limit")
    product = next((it for it in measured if it["limit"] == "matmul"), None)
    peak = next((it for it in measured if it["limit"] == "peak"), None)
    reads = [it for it in measured if it["limit"] == "read"]
    heads = [
        *(["multiply-adds in registers, GFLOP/s"] if peak else []), "matrix product, GFLOP/s",
        *(f"read of {it['title']}, GB/s" for it in reads),
    ]  # fmt: skip
    rows = []
    for threads in result.threads:
        limits_ = [*([peak] if peak else []), *([product] if product else []), *reads]
        rows.append([str(threads), *(number(result.limit(it, threads)) for it in limits_)])
    lines = ["", "## Limits of the machine", *table(["threads", *heads], rows)]
    decoding = [it for it in result.workloads.values() if it["limit"] == "read" and it["group"] != "limit"]
    if decoding and not any(result.limit(it, threads) for it in decoding for threads in result.threads):
        lines += ["", "This run did not time reads of the decoding steps' data, so these steps have no limit below."]
    return lines


def ratios(result: Result, group: str, title: str) -> list[str]:
    """Our time, rate and limit, and every peer's time divided by ours."""
    lines, peers = ["", f"## {title}"], result.f32_peers(group)
    others = {name: head for name, head in OTHERS.items() if result.took_part(name, group)}
    for threads in result.threads:
        rows = []
        for workload in result.of(group):
            name = workload["name"]
            ms, share, unit = result.ms(name, threads, OURS), result.share(workload, threads, OURS), UNITS[workload["limit"]]
            limit = result.limit(workload, threads)
            rows.append([
                f"{name}: {workload['title']}",
                number(ms),
                f"{number(result.rate(workload, ms))} {unit}" if ms else "—",
                f"{number(limit)} {unit}" if limit else "—",
                f"{share:.0%}" if share else "—",
                *(number(result.ms(name, threads, other)) for other in others),
                *(number(result.ratio(name, threads, peer)) for peer in peers),
            ])  # fmt: skip
        head = [f"{threads} thread{'s' * (threads > 1)}", "ours, ms", "rate", "limit", "share of it", *others.values()]
        lines += table(head + [result.labels[peer] for peer in peers], rows)
    return lines


def side_by_side(result: Result, group: str, title: str) -> list[str]:
    """For every class of precision our fastest time, the fastest peer's, and the ratio."""
    lines, found = ["", f"## {title}"], result.classes(group)
    for threads in result.threads:
        rows = []
        for workload in result.of(group):
            cells = []
            for names in found.values():
                ours, theirs = (
                    result.fastest(workload["name"], threads, [name for name in names if name.startswith("ours") == own])
                    for own in (True, False)
                )
                peer = f"{number(theirs[0])} ({result.labels[theirs[1]]})" if theirs else "—"
                cells += [number(ours[0] if ours else None), peer, number(theirs[0] / ours[0] if ours and theirs else None)]
            rows.append([f"{workload['name']}: {workload['title']}", *cells])
        heads = [f"{own}: {what}" for own in found for what in ("ours, ms", "fastest peer, ms", "ratio")]
        lines += table([f"{threads} thread{'s' * (threads > 1)}", *heads], rows)
    return lines


def to_the_fastest(result: Result, group: str) -> list[str]:
    """For every class of precision each time, with its difference from float64 and its ratio to the fastest of the class."""
    lines = []
    for own, names in result.classes(group).items():
        rows = []
        for workload in result.of(group):
            for threads in result.threads:
                fastest = result.fastest(workload["name"], threads, names)
                cells = [result.rows.get((workload["name"], threads, name), {}) for name in names]
                shown = (f"{checked(cell)} {number(cell['ms'] / fastest[0])}×" if fastest and "ms" in cell else "—" for cell in cells)
                rows.append([workload["name"], str(threads), *shown])
        lines += ["", f"Each time of {own}, and its ratio to the fastest:"]
        lines += table(["workload", "threads", *(result.labels[name] for name in names)], rows)
    return lines


def lengths(result: Result) -> list[str]:
    threads, rows = result.threads[-1], []
    for workload in result.of("length"):
        name = workload["name"]
        times = [result.ms(name, threads, implementation) for implementation in (OURS, "sdpa")]
        rows.append([workload["title"], *map(number, times), number(result.ratio(name, threads, "sdpa"))])
    return ["", "## By length", *table([f"{threads} threads", "ours, ms", "PyTorch SDPA, ms", "ratio"], rows)]


def memory(result: Result) -> list[str]:
    rows = [
        [result.labels[row["implementation"]], number(row["bytes"] / 2**20) if "bytes" in row else "—"]
        for row in result.record["memory"]
    ]
    said = "Peak memory of one call of X2 in addition to its inputs. The result, 10 MiB, is included."
    return ["", "## Memory", "", said, *table(["", "MiB"], rows)]


def every_time(result: Result) -> list[str]:
    """Each time with its difference from float64, and why something did not run."""
    lines, reasons = ["", "## Every time"], {}
    for group in ("attention", "layer", "family", "encoder", "blocks"):
        ours = [name for name in result.labels if name.startswith("ours") and result.took_part(name, group)]
        names = [name for name in result.labels if name in {*ours, *result.peers(group)}]
        rows = []
        for workload in result.of(group):
            for threads in result.threads:
                cells = [result.rows.get((workload["name"], threads, name), {}) for name in names]
                rows.append([workload["name"], str(threads), *map(checked, cells)])
                for cell in (cell for cell in cells if "failure" in cell):
                    text = f"{result.labels[cell['implementation']]}: {cell['failure']}"
                    reasons.setdefault(text, []).append(f"{workload['name']} ({threads})")
        # The tables of the classes have the times of these groups.
        if rows and not result.classes(group):
            lines += table(["workload", "threads", *(result.labels[name] for name in names)], rows)
    reasons |= {f"{label}: {reason}": ["everything"] for label, reason in result.record.get("left_out", {}).items()}
    if reasons:
        lines += ["", "Why something did not run:", ""]
        lines += [f"- {', '.join(places)}: {text}" for text, places in reasons.items()]
    return lines


def markdown(result: Result, name: str) -> str:
    lines = machine(result)
    if "classes" not in result.record:
        lines += ["", "This run was made before ONNX Runtime, OpenVINO and ggml joined the comparison."]
    lines += ["", f"![Ratios to each peer, share of the limits, rate by length]({name}.svg)"]
    lines += limits(result)
    for group, title in (("attention", "Attention"), ("layer", "A whole layer"), ("family", "Layers of Qwen 3 and Gemma 3"), ("encoder", "Sentence embeddings")):
        if result.of(group):
            lines += ratios(result, group, title)
    for group, title in BY_PRECISION.items():
        if result.classes(group):
            lines += side_by_side(result, group, title) + to_the_fastest(result, group)
    if result.of("length"):
        lines += lengths(result)
    if result.record["memory"]:
        lines += memory(result)
    return "\n".join(lines + every_time(result))


def main():
    source, docs = map(pathlib.Path, sys.argv[1:3])
    name = sys.argv[3] if len(sys.argv) > 3 else "performance"
    result = Result(json.loads(source.read_text()))
    docs_page = pathlib.Path(__file__).resolve().parents[2] / "docs" / f"{name}.md"
    before, _, rest = docs_page.read_text().partition(START)
    _, _, after = rest.partition(END)
    docs.mkdir(parents=True, exist_ok=True)
    (docs / f"{name}.md").write_text(f"{before}{START}\n\n{markdown(result, name)}\n\n{END}{after}")
    (docs / f"{name}.svg").write_text(svg(result))


if __name__ == "__main__":
    main()
