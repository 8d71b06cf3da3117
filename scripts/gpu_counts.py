#!/usr/bin/env python3
"""Counts what the CUDA kernels do on a GPU, with ncu, next to the counts that `counts.py` takes without one.

    python3 scripts/gpu_counts.py --bench target/gpu-bundle/bin/gpu_bench --numbers bench/results/cuda-counts.json --out bench/results

Writes `<device>-counts.md`. Needs Nsight Compute and the right to read hardware counters. Clocks are left as they are.
"""

import argparse
import csv
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

# Of sectors there is one metric for each kind of access: their sum counts. ncu leaves out what a device does not have. Passes through
# shared memory are those that ncu derives from the addresses of each instruction; the counter of the device has shuffles among them.
SECTORS = [f"l1tex__t_sectors_pipe_lsu_mem_global_op_{kind}.sum" for kind in ("ld", "st", "ldgsts")]
METRICS = {
    "instructions": ["smsp__inst_executed.sum"],
    "sectors": SECTORS,
    "passes": ["memory_l1_wavefronts_shared"],
    "registers": ["launch__registers_per_thread"],
    "dram": ["dram__bytes_read.sum", "dram__bytes_write.sum"],
    "warps": ["sm__warps_active.avg.pct_of_peak_sustained_active"],
    "issue": ["smsp__issue_active.avg.pct_of_peak_sustained_active"],
    "tensor": ["sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active"],
    "time": ["gpu__time_duration.sum"],
}


def available(wanted: list[str]) -> list[str]:
    """Those of the metrics that ncu knows for this device."""
    known = subprocess.run(["ncu", "--query-metrics"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0] for line in known.splitlines() if line.strip()}
    return [name for name in wanted if name.startswith(("launch__", "memory_")) or name.split(".")[0] in names]


def profile(bench: pathlib.Path, only: str) -> list[dict]:
    """A row of metrics for each kernel, in the order of the launches."""
    metrics = available([name for names in METRICS.values() for name in names])
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "ncu.csv"
        command = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", "--log-file", str(log)]
        command += ["--metrics", ",".join(metrics), str(bench), "--once", "--only", only]
        run = subprocess.run(command, capture_output=True, text=True)
        text = log.read_text() if log.exists() else ""
        if run.returncode:
            raise SystemExit(f"ncu failed:\n{run.stdout[-2000:]}{run.stderr[-4000:]}{text[-4000:]}")
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    return [row for row in rows if row["ID"].isdigit()]


def value(row: dict, of: str) -> float:
    numbers = [re.match(r"[\d.,]+", row.get(name) or "") for name in METRICS[of]]
    return sum(float(number[0].replace(",", "")) for number in numbers if number)


def matched(rows: list[dict], numbers: dict[str, dict], only: str) -> list[tuple[str, dict, dict]]:
    """Workload and kernel, the counts without a GPU, and those of the device. Both are in the order of the launches."""
    wanted = [(key, counts) for key, counts in numbers.items() if only in key.split()[0]]
    ours = {key.split()[-1] for key, _ in wanted}
    rows = [(name, row) for row in rows for name in [kernel_name(row["Kernel Name"], ours)] if name]
    if [name for name, _ in rows] != [key.split()[-1] for key, _ in wanted]:
        print("error: the kernels that ran are not those that were counted:", file=sys.stderr)
        print(f"ran {[name for name, _ in rows]}\ncounted {[key for key, _ in wanted]}", file=sys.stderr)
        raise SystemExit(1)
    return [(key, counts, row) for (key, counts), (_, row) in zip(wanted, rows)]


def kernel_name(name: str, ours: set[str]) -> str | None:
    """The kernel's name in the source: types follow it."""
    fitting = [one for one in ours if re.match(rf"{one}(_|\b)", name)]
    return max(fitting, key=len, default=None)


def document(device: str, found: list[tuple[str, dict, dict]]) -> str:
    ratio = lambda part, whole: f"{part / whole:.3f}" if whole else "-"
    lines = [
        f"# Counts of an {device}, next to those without a GPU",
        "",
        "ncu on `gpu_bench --once`, bf16. *counted*: what [cuda-counts.md](cuda-counts.md) says of the same launch, over what the device",
        "did. Instructions of the device are those of SASS, the counted ones of PTX. The time is that of one launch with cold caches",
        "under the profiler; times to compare are in the benchmark. Written by `scripts/gpu_counts.py`.",
        "",
        "| workload | kernel | instructions, millions | counted | sectors, thousands | counted | passes, thousands | counted"
        " | registers | ptxas | DRAM, MB | warps | issue slots | tensor pipe | time, us |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for key, counts, row in found:
        workload, engine, _, name = key.split()
        cells = [f"`{workload}`", f"`{name}`" + ("" if engine == "cube" else f" ({engine})")]
        for of, scale in [("instructions", 1e6), ("sectors", 1e3), ("passes", 1e3)]:
            measured = value(row, of)
            cells += [f"{measured / scale:.4g}", ratio(counts[of], measured)]
        cells += [f"{value(row, 'registers'):.0f}", f"{counts['registers']:.0f}", f"{value(row, 'dram') / 1e6:.4g}"]
        cells += [f"{value(row, of):.0f}%" for of in ("warps", "issue", "tensor")]
        cells += [f"{value(row, 'time') / 1e3:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--bench", type=pathlib.Path, default=here.parent / "bin/gpu_bench")
    parser.add_argument("--numbers", type=pathlib.Path, default=here.parent / "bench/results/cuda-counts.json")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(os.environ.get("OUT") or "bench/results"))
    parser.add_argument("--only", default="", help="part of the names of workloads")
    arguments = parser.parse_args()
    if not shutil.which("ncu"):
        raise SystemExit("ncu is missing: it is part of Nsight Compute")

    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    device = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    rows = profile(arguments.bench, arguments.only)
    numbers = json.loads(arguments.numbers.read_text())["now"]
    found = matched(rows, numbers, arguments.only)
    name = re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia ")).strip("-")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{name}-counts.md").write_text(document(device, found))
    print(f"{len(found)} kernels counted")


if __name__ == "__main__":
    main()
