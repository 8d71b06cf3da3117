#!/usr/bin/env python3
"""Times the kernels and PyTorch alternately on the same CUDA device, and writes a table.

    python3 scripts/gpu_peers.py --bench target/gpu-bundle/bin/gpu_bench --layer target/gpu-bundle/bin/gpu --out bench/results
    python3 scripts/gpu_peers.py --self-test        # the arithmetic and the table, on made-up numbers, without a device

The Rust programs answer one request at a time on standard input. Between two requests every peer runs once, so that clocks and
temperature are the same for all. Writes `<device>.json`, which holds every measurement, and `<device>.md`.
"""

import argparse
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from gpu_table import Roofline, markdown  # noqa: E402

SEED = 20240607


class Server:
    """A Rust program that measures on request. One that dies or hangs is started again for the next request."""

    def __init__(self, program: list[str], quick: bool):
        self.command = [*program, "--serve"] + ["--quick"] * quick
        self.list = [*program, "--list"]
        self.process = None

    def workloads(self) -> list[dict]:
        run = subprocess.run(self.list, capture_output=True, text=True, timeout=60, check=True)
        return [json.loads(line) for line in run.stdout.splitlines()]

    def start(self):
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        self.answers, self.errors = queue.Queue(), []
        process = self.process

        def read(answers=self.answers):
            for line in process.stdout:
                answers.put(line)
            answers.put(None)

        def complain(errors=self.errors):
            for line in process.stderr:
                errors.append(line.strip())
                del errors[:-40]

        for task in (read, complain):
            threading.Thread(target=task, daemon=True).start()

    def ask(self, workload: str, engine: str, dtype: str, l2: str, timeout: float) -> dict:
        """One measurement, or `{"error": ..}`."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        try:
            self.process.stdin.write(f"{workload} {engine} {dtype} {l2}\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=timeout)
        except queue.Empty:
            self.stop()
            return {"error": f"no answer in {timeout:.0f} s"}
        except OSError as error:
            line = None
            self.errors.append(str(error))
        if line is None:
            self.stop()
            return {"error": "the program ended: " + " | ".join(self.errors[-3:])}
        try:
            return json.loads(line)
        except ValueError:
            return {"error": f"not JSON: {line.strip()[:200]}"}

    def stop(self):
        if self.process is None:
            return
        try:
            self.process.stdin.close()
            self.process.wait(timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process = None


class Records:
    """Every measurement of the run."""

    def __init__(self):
        self.rows = {}

    def add(self, workload: dict, dtype: str, l2: str, engine: str, ours: bool, answer: dict):
        key = (workload["name"], dtype, l2, engine)
        row = self.rows.setdefault(
            key,
            {"name": workload["name"], "dtype": dtype, "l2": l2, "engine": engine, "ours": ours}
            | {"device": [], "wall": [], "latency": [], "error": None},
        )
        if "error" in answer:
            row["error"] = str(answer["error"])[:300]
            return
        row["device"].append(answer["median_us"])
        row["wall"].append(answer["wall_us"])
        if "latency_us" in answer:
            row["latency"].append(answer["latency_us"])

    def summary(self) -> list[dict]:
        middle = lambda times: statistics.median(times) if times else None
        rows = []
        for row in self.rows.values():
            times = {"median_us": middle(row["device"]), "min_us": min(row["device"], default=None)}
            times |= {"wall_us": middle(row["wall"]), "latency_us": middle(row["latency"]), "rounds": len(row["device"])}
            rows.append({key: row[key] for key in ("name", "dtype", "l2", "engine", "ours")} | times)
            rows[-1]["error"] = row["error"] if not row["device"] else None
        return rows


def merged(servers: dict[str, Server]) -> tuple[list[dict], list[str]]:
    """The workloads, each with the engines of every server that has them, and the errors of servers that did not answer."""
    workloads, problems = {}, []
    for which, server in servers.items():
        try:
            for entry in server.workloads():
                known = workloads.setdefault(entry["name"], {**entry, "engines": []})
                known["engines"] += [
                    {"server": which, "engine": engine} | {key: entry[key] for key in ("ours", "l2", "dtypes")}
                    for engine in entry["engines"]
                ]
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            problems.append(f"{which}: {error}")
    return list(workloads.values()), problems


FACTS = "name,driver_version,clocks.max.sm,clocks.sm,clocks.mem,power.limit,power.draw,temperature.gpu,memory.total"


def device_facts(fields: str = FACTS) -> dict:
    """The output of `nvidia-smi`; clocks in MHz, power in W, memory in MiB."""
    try:
        run = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "--id=0"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        return dict(zip(fields.split(","), [value.strip() for value in run.stdout.splitlines()[0].split(", ")]))
    except (OSError, IndexError, subprocess.SubprocessError) as error:
        return {"error": str(error)}


def file_name(device: str) -> str:
    """`h200` of "NVIDIA H200", `geforce-rtx-4090` of "NVIDIA GeForce RTX 4090"."""
    words = device.lower().replace("nvidia", "").split()
    return "-".join(words) or "device"


def enough(row: dict, rounds: int) -> bool:
    """Whether a program that failed, or is slow and steady, is left out of this round."""
    return bool(row.get("error")) or rounds >= 3 and bool(row.get("device")) and row["device"][0] > 30_000


def run(arguments) -> int:
    import torch

    from gpu_clock import Stopwatch, matmul_rate
    from gpu_torch import Peers

    start = time.monotonic()
    left = lambda: arguments.budget - (time.monotonic() - start)
    torch.manual_seed(SEED)
    servers = {
        "kernels": Server([str(arguments.bench)], arguments.quick),
        "burn": Server([str(arguments.layer), "layer"], arguments.quick),
    }
    workloads, problems = merged(servers)
    workloads = [
        workload
        for workload in workloads
        if "kind" in workload and (arguments.only in workload["name"] or workload["name"] == "copy")
    ]
    # Prompts with a bias take the longest and have no target: they come last. The layers have one.
    rank = {"copy": 0, "launch": 0, "decode": 1, "layer": 1, "prefill": 2}
    late = lambda workload: workload["kind"] == "prefill" and workload["sizes"]["addend"] is not None
    workloads.sort(key=lambda workload: (late(workload), rank.get(workload["kind"], 3)))
    before = device_facts()
    stopwatch = Stopwatch(torch, arguments.quick)
    peers = Peers(torch, arguments.quick)
    records, clocks = Records(), {}
    for dtype in ("bf16", "f16"):
        late = []
        for workload in workloads:
            if dtype not in workload["dtypes"]:
                continue
            if left() < 0:
                late.append(workload["name"])
                continue
            print(f"{arguments.budget - left():6.1f} s  {dtype}  {workload['name']}", file=sys.stderr, flush=True)
            prepared = peers.prepare(workload, dtype)
            for l2 in workload["l2"]:
                for done in range(arguments.rounds):
                    for engine in workload["engines"]:
                        row = records.rows.get((workload["name"], dtype, l2, engine["engine"]), {})
                        if l2 not in engine["l2"] or dtype not in engine["dtypes"] or enough(row, done):
                            continue
                        # The first call compiles and may tune.
                        timeout = 90.0 if not row else 30.0
                        server = servers[engine["server"]]
                        answer = server.ask(workload["name"], engine["engine"], dtype, l2, timeout)
                        records.add(workload, dtype, l2, engine["engine"], engine["ours"], answer)
                    for name in prepared.names():
                        if not enough(records.rows.get((workload["name"], dtype, l2, name), {}), done):
                            records.add(workload, dtype, l2, name, False, prepared.measure(name, l2, stopwatch))
                    if left() < -20:
                        break
            if dtype == "bf16":
                clocks[workload["name"]] = device_facts("clocks.sm,clocks.mem,power.draw,temperature.gpu")
            del prepared
            peers.clean()
        if late:
            problems.append(f"out of time: not run in {dtype}: {', '.join(late)}")
    rows = records.summary()
    copied = next((workload["bytes"] for workload in workloads if workload["name"] == "copy"), 0)
    copies = [copied / row["median_us"] * 1e6 for row in rows if row["name"] == "copy" and row["median_us"]]
    facts = device_facts()
    properties = torch.cuda.get_device_properties(0)
    fastest = facts.get("clocks.max.sm", "")
    clock = float(fastest) * 1e6 if fastest.replace(".", "").isdigit() else 0.0
    roofline = Roofline(
        bandwidth=max(copies, default=0.0),
        matmul=matmul_rate(torch, stopwatch, arguments.quick),
        exponentials=16.0 * properties.multi_processor_count * clock,
    )
    for server in servers.values():
        server.stop()
    result = {
        "device": properties.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvidia_smi_before": before,
        "nvidia_smi_after": facts,
        "clocks": clocks,
        "seconds": round(time.monotonic() - start, 1),
        "rounds": arguments.rounds,
        "quick": arguments.quick,
        "roofline": roofline.record(),
        "workloads": workloads,
        "problems": problems,
        "rows": rows,
    }
    problems += [f"none of our engines ran {name} in {dtype}, {l2}" for name, dtype, l2 in unsolved(rows)]
    write(result, arguments.out)
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


def unsolved(rows: list[dict]) -> list[tuple]:
    """Workloads that every engine of ours declined or failed at."""
    outcomes = {}
    for row in rows:
        if row["ours"]:
            outcomes.setdefault((row["name"], row["dtype"], row["l2"]), []).append(row["error"])
    return [key for key, errors in outcomes.items() if all(errors)]


def write(result: dict, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / file_name(result["device"])
    stem.with_name(stem.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_name(stem.name + ".md").write_text(markdown(result))
    print(f"{stem}.md")


def self_test() -> int:
    """The arithmetic, the table and the exchange with a server, on made-up numbers."""
    roofline = Roofline(bandwidth=4e12, matmul=800e12, exponentials=4e12)
    limit, kind = roofline.limit({"bytes": 4_000_000, "flops": 8_000_000, "exponentials": 0})
    assert (round(limit, 6), kind) == (1.0, "memory"), (limit, kind)
    limit, kind = roofline.limit({"bytes": 0, "flops": 1_600_000_000, "exponentials": 40_000_000})
    assert (round(limit, 6), kind) == (10.0, "exponentials"), (limit, kind)
    assert file_name("NVIDIA H200") == "h200"
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "server"
        program.write_text(
            "#!/usr/bin/env python3\nimport json, sys\n"
            "if '--list' in sys.argv:\n"
            "    base = {'engines': ['cube'], 'ours': True, 'bytes': 4000000, 'flops': 8, 'exponentials': 0,\n"
            "            'dtypes': ['bf16'], 'l2': ['cold', 'warm'], 'sizes': {}, 'kind': 'decode'}\n"
            "    names = ['decode-64x32x8x128-4096', 'layer-decode-1x32x8-2048', 'launch', 'dies']\n"
            "    for name in names: print(json.dumps({**base, 'name': name}))\n"
            "    sys.exit()\n"
            "for line in sys.stdin:\n"
            "    if line.startswith('dies'): sys.exit('dead on purpose')\n"
            "    answer = {'median_us': 1.1, 'wall_us': 2.0, 'latency_us': 9.0}\n"
            "    print(json.dumps(answer), flush=True)\n"
        )
        program.chmod(0o755)
        server = Server([str(program)], False)
        workloads, problems = merged({"kernels": server, "burn": Server([str(pathlib.Path(folder) / "missing")], False)})
        assert len(workloads) == 4 and len(problems) == 1, (workloads, problems)
        records = Records()
        for workload in workloads:
            for l2 in workload["l2"]:
                for _ in range(3):
                    answer = server.ask(workload["name"], "cube", "bf16", l2, 20)
                    records.add(workload, "bf16", l2, "cube", True, answer)
                records.add(workload, "bf16", l2, "SDPA flash", False, {"median_us": 2.0, "wall_us": 3.0})
                records.add(workload, "bf16", l2, "SDPA cudnn", False, {"error": "no | engine"})
                records.add(workload, "bf16", l2, "eager", False, {"median_us": 4.0, "wall_us": 5.0})
                records.add(workload, "bf16", l2, "torch.compile", False, {"median_us": 1.5, "wall_us": 2.5})
        server.stop()
        rows = records.summary()
        died = [row for row in rows if row["name"] == "dies" and row["ours"]]
        assert unsolved(rows) == [("dies", "bf16", "cold"), ("dies", "bf16", "warm")], unsolved(rows)
        assert all("dead on purpose" in row["error"] for row in died) and len(died) == 2, died
        result = {
            "device": "NVIDIA Made-Up 1", "torch": "0", "cuda": "0", "nvidia_smi_before": {}, "nvidia_smi_after": {},
            "seconds": 1.0, "rounds": 3, "quick": True, "roofline": roofline.record(), "workloads": workloads,
            "problems": problems, "rows": rows,
        }  # fmt: skip
        write(result, pathlib.Path(folder))
        text = (pathlib.Path(folder) / "made-up-1.md").read_text()
        assert "| met |" in text and "no / engine" in text and "dead on purpose" in text, text
        assert len({line.count("|") for line in text.splitlines() if line.startswith("| `layer")}) <= 2, text
        print(text)
    print("self-test passed")
    return 0


def main() -> int:
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=pathlib.Path, default=here.parent / "bin/gpu_bench")
    parser.add_argument("--layer", type=pathlib.Path, default=here.parent / "bin/gpu")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(os.environ.get("OUT") or "bench/results"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=330.0, help="seconds after which nothing new is begun")
    parser.add_argument("--only", default="", help="part of the names of workloads")
    parser.add_argument("--quick", action="store_true", help="small tensors; shows that everything runs")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    return self_test() if arguments.self_test else run(arguments)


if __name__ == "__main__":
    sys.exit(main())
