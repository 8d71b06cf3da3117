"""Times the CPU kernels and their peers alternately, and writes `bench/results/cpu.json` and the report.

    just bench-cpu                                             # builds what it needs and measures everything
    just bench-cpu --workloads P1,D1 --rounds 1 --out /tmp/trial
    just bench-cpu --smoke                                     # tiny sizes, one round, with what is installed; writes nothing

Each implementation runs in a program that answers requests (`peers` in Rust, `torch_peers.py`, those of `engines`). Every
round calls all of them. The time of a round is the median of its calls; the result is the median over the rounds. All
programs hash the same inputs, and this program compares some rows of each result with float64. A program that does not
start, because its package is not installed, is left out, and the reason is printed.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from problems import attention_reference, checked_rows, layer_reference, smoke_workloads, workloads

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# Each implementation: its name in the report, and the program that runs it.
IMPLEMENTATIONS = {
    "ours-ndarray": ("burn-deepspeed on ndarray", "ours"),
    "ours-flex": ("burn-deepspeed on flex", "ours"),
    "sdpa": ("PyTorch SDPA", "torch"),
    "unfused": ("PyTorch unfused", "torch"),
    "flex-attention": ("PyTorch flex_attention", "torch"),
    "candle-flash": ("candle flash", "candle"),
    "candle-plain": ("candle plain", "candle"),
    "burn-ndarray": ("Burn on ndarray", "burn"),
    "burn-flex": ("Burn on flex", "burn"),
    "ours-f16": ("burn-deepspeed on ndarray, f16 weights and cache", "ours"),
    "ours-bf16": ("burn-deepspeed on ndarray, bf16 weights and cache", "ours"),
    "ours-bf16-rounded": ("burn-deepspeed on ndarray, bf16 weights and cache, inputs rounded to bf16", "ours"),
    "ours-bf16-flex": ("burn-deepspeed on flex, bf16", "ours"),
    "ours-int8": ("burn-deepspeed on ndarray, int8 weights", "ours"),
    "ours-int8-cache": ("burn-deepspeed on ndarray, int8 weights and cache", "ours"),
    "ours-int8-rounded": ("burn-deepspeed on ndarray, int8 weights and cache, inputs rounded", "ours"),
    "ours-int8-rounded-8": ("burn-deepspeed on ndarray, int8 weights and cache, inputs rounded to 8 bits", "ours"),
    "ours-blocks-16": ("burn-deepspeed on ndarray, inputs rounded to 16 bits", "ours"),
    "ours-blocks-8": ("burn-deepspeed on ndarray, inputs rounded to 8 bits", "ours"),
    "ours-without-norm": ("burn-deepspeed on ndarray, without the norm of queries and keys", "ours"),
    "ours-with-sinks": ("burn-deepspeed on ndarray, with sinks", "ours"),
    "transformers-sdpa": ("transformers sdpa", "torch"),
    "transformers-static": ("transformers sdpa, static cache", "torch"),
    "transformers-eager": ("transformers eager", "torch"),
    "transformers-bf16": ("transformers sdpa, static cache, bf16", "torch"),
    "int8": ("transformers sdpa, dynamic int8", "torch"),
    "ort-f32": ("ONNX Runtime", "ort"),
    "ort-int8": ("ONNX Runtime, dynamic int8", "ort"),
    "ort-blocks": ("ONNX Runtime, MatMulNBits", "ort"),
    "ov-f32": ("OpenVINO", "ov"),
    "ov-bf16": ("OpenVINO, bf16", "ov"),
    "ov-int8": ("OpenVINO, int8 weights", "ov"),
    "ov-int8-cache": ("OpenVINO, int8 weights and cache", "ov"),
    "ov-blocks": ("OpenVINO, compressed weights", "ov"),
    "ggml-f32": ("ggml", "ggml"),
    "ggml-f16": ("ggml, f16 weights and cache", "ggml"),
    "ggml-bf16": ("ggml, bf16 weights, f16 cache", "ggml"),
    "ggml-int8": ("ggml, Q8_0 weights, f16 cache", "ggml"),
    "ggml-int8-cache": ("ggml, Q8_0 weights and cache", "ggml"),
    "ggml-blocks": ("ggml, blocks", "ggml"),
    "rten-f32": ("rten", "rten"),
    "rten-int8": ("rten, dynamic int8", "rten"),
    "rten-blocks": ("rten, MatMulNBits", "rten"),
    "gemm": ("gemm crate", "ours"),
    "torch-matmul": ("PyTorch matmul", "torch"),
    "multiply-add": ("multiply-adds in registers", "ours"),
    "read": ("array read, one run per thread", "ours"),
    "read-4": ("array read, four runs per thread", "ours"),
}
# The names of the programs that need packages or compilers which a machine may lack.
OPTIONAL = {"torch": "PyTorch", "candle": "candle", "ort": "ONNX Runtime", "ov": "OpenVINO", "ggml": "ggml", "rten": "rten"}
# Implementations that are compared with each other: those whose weights have the same number of bits. In a layer of blocks, all are.
CLASSES = {
    "f32": [
        "ours-ndarray", "ours-flex", "transformers-sdpa", "transformers-static", "transformers-eager", "ort-f32", "ov-f32",
        "ggml-f32", "rten-f32",
    ],
    "16 bits": [
        "ours-f16", "ours-bf16", "ours-bf16-rounded", "ours-bf16-flex", "transformers-bf16", "ov-bf16", "ggml-f16",
        "ggml-bf16",
    ],
    "int8": [
        "ours-int8", "ours-int8-cache", "ours-int8-rounded", "ours-int8-rounded-8", "int8", "ort-int8", "ov-int8",
        "ov-int8-cache", "ggml-int8", "ggml-int8-cache", "rten-int8",
    ],
    "blocks": [
        "ours-ndarray", "ours-flex", "ours-blocks-16", "ours-blocks-8", "ort-blocks", "ov-blocks", "ggml-blocks", "rten-blocks",
    ],
}  # fmt: skip
# How fast the machine reads: timed in the same rounds as each memory-bound workload, on the number of bytes that it reads.
READS = ("read", "read-4")
# Implementations that are another with a changed workload: what an option costs.
CHANGED = {
    "ours-without-norm": ("ours-ndarray", {"norm": False}),
    "ours-with-sinks": ("ours-ndarray", {"sinks": True}),
}
# The implementations that run each group of workloads.
TAKE_PART = {
    "attention": list(IMPLEMENTATIONS)[:9],
    "layer": [*CLASSES["f32"], *CLASSES["16 bits"], *CLASSES["int8"]],
    "blocks": CLASSES["blocks"],
    "family": [
        "ours-ndarray", "ours-flex", "ours-without-norm", "ours-with-sinks", "transformers-sdpa", "transformers-static",
        "transformers-eager",
    ],
    "encoder": [
        "ours-ndarray", "ours-flex", "ours-bf16", "ours-bf16-rounded", "ours-int8", "ours-int8-rounded", "ours-int8-rounded-8",
        "transformers-sdpa", "ort-f32", "ov-f32", "rten-f32", "ov-bf16", "ort-int8", "ov-int8", "rten-int8", "int8",
    ],
    "length": ["ours-ndarray", "sdpa"],
    "limit": ["multiply-add", "gemm", "torch-matmul", *READS],
    "memory": ["ours-ndarray", "ours-flex", "sdpa", "unfused", "flex-attention", "burn-flex"],
}
# Of the group of limits, by the kind of a workload.
LIMITS = {"peak": ["multiply-add"], "matmul": ["gemm", "torch-matmul"], "read": list(READS)}
# In the smoke test, the largest difference from float64 of a result whose magnitudes are about 0.1, by the class.
SMOKE_DIFFERENCES = {"f32": 1e-6, "16 bits": 2e-3, "int8": 2e-3, "blocks": 2e-3}


class Program:
    """A program that answers requests with the given number of threads. It is started again after it ended."""

    def __init__(self, command: list[str], threads: int, patience: float):
        self.command, self.patience, self.process = command, patience, None
        names = ("OMP", "MKL", "OPENBLAS", "RAYON", "MATMUL", "RTEN")
        self.environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in names} | {"PYTHONPATH": str(HERE)}

    def start(self):
        self.errors = tempfile.TemporaryFile("w+")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, bufsize=1, env=self.environment
        )

    def ask(self, **request) -> dict:
        """The answer, or `{"error": ..}` if there is none."""
        if self.process is None:
            self.start()
        process, late = self.process, threading.Event()
        timer = threading.Timer(self.patience, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            return json.loads(process.stdout.readline())
        except (OSError, ValueError):
            self.stop()
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:]
            why = f"no answer in {self.patience:.0f} s" if late.is_set() else f"ended with status {process.returncode}"
            return {"error": ": ".join([why, *last])}
        finally:
            timer.cancel()

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def measure(workload: dict, references: dict, rows: list[int], names: list[str], programs: dict, settings) -> list[dict]:
    """A row for each implementation. Results of one with a changed workload have a reference of their own."""
    results = {}
    for name in names:
        program, reference = programs[IMPLEMENTATIONS[name][1]], references.get(name, references[None])
        own, change = CHANGED.get(name, (name, {}))
        if name in READS:
            asked = {"workload": {"kind": "read", "elements": workload["bytes"] // 4}, "rows": [], "width": 0}
        else:
            asked = {"workload": workload | change, "rows": rows, "width": reference.shape[-1] if rows else 0}
        answer = program.ask(do="prepare", implementation=own, key=name, **asked)
        results[name] = {"implementation": name}
        if "error" in answer:
            results[name]["failure"] = answer["error"].strip().splitlines()[0][:300]
            continue
        once = answer["seconds"][-1]
        calls = max(1, min(1000, int(settings.sample / max(once, 1e-7))))
        rounds = min(settings.rounds, max(2, int(settings.budget / (once * calls))))
        results[name] |= {"rounds": rounds, "calls": calls, "round_ms": []}
        if once > 2 * settings.budget:
            # There is no time for more than the call that gave the result.
            results[name] |= {"rounds": 0, "round_ms": [round(1e3 * once, 5)]}
        if asked["rows"]:
            difference = float(np.abs(np.array(answer["rows"], dtype=np.float64) - reference).max())
            results[name] |= {"difference": difference} if np.isfinite(difference) else {"failure": "the result is not finite"}
    for turn in range(settings.rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            result = results[name]
            if "failure" in result or turn >= result["rounds"]:
                continue
            time.sleep(0.02)  # lets idle threads of the previous program go to sleep
            program, warm = programs[IMPLEMENTATIONS[name][1]], result["calls"] > 1
            answer = program.ask(do="time", implementation=name, calls=result["calls"], warm=warm)
            if "error" in answer:
                result["failure"] = answer["error"].strip().splitlines()[0][:300]
                continue
            result["round_ms"].append(round(1e3 * statistics.median(answer["seconds"]), 5))
    for result in results.values():
        if "failure" not in result:
            result["ms"] = statistics.median(result["round_ms"])
    for program in programs.values():
        if program.process is not None:
            program.ask(do="forget")
    return list(results.values())


def reference_of(workload: dict, rows: list[int], torch: Program) -> np.ndarray | None:
    match workload["kind"]:
        case "attention":
            return attention_reference(workload, rows)
        case "layer":
            return layer_reference(workload, rows)
        case "encoder":
            answer = torch.ask(do="encoder", workload=workload, rows=rows)
            if "error" in answer:
                raise RuntimeError(f"the encoder could not be made: {answer['error']}")
            return np.array(answer["rows"])
    return None


def without_folder(workload: dict) -> dict:
    """A workload without the folder of the encoder, which only this machine has."""
    return {key: value for key, value in workload.items() if key != "folder"}


def missing(programs: dict) -> tuple[dict, dict]:
    """The versions of the optional programs that start, and why the others do not."""
    versions, reasons = {}, {}
    for server, label in OPTIONAL.items():
        answer = programs[server].ask(do="about", engine=server)
        if "error" in answer:
            reasons[label] = answer["error"].strip().splitlines()[0][:300]
        else:
            versions |= answer.get("versions", {label: answer.get("version")})
    return versions, reasons


def take_part(workload: dict, settings, absent: set[str]) -> list[str]:
    """The implementations that run a workload."""
    names = TAKE_PART[workload["group"]]
    if workload["group"] == "limit":
        names = [name for name in names if name in LIMITS[workload["kind"]]]
    elif workload["limit"] == "read":
        names = [*names, *READS]
    return [name for name in names if name in settings.impls and IMPLEMENTATIONS[name][1] not in absent]


def smoke_failures(rows: list[dict], wanted: list[dict]) -> list[str]:
    """What a smoke test finds: implementations that fail, and results that are far from float64."""
    groups, found = {workload["name"]: workload["group"] for workload in wanted}, []
    for row in rows:
        name, group = row["implementation"], groups[row["workload"]]
        precisions = [own for own, names in CLASSES.items() if name in names and (own == "blocks") == (group == "blocks")]
        most = SMOKE_DIFFERENCES[precisions[0] if precisions else "f32"]
        if row.get("failure", "").startswith("NotImplementedError"):
            continue  # the processor lacks something
        if "failure" in row or row.get("difference", 0) > most:
            found.append(f"{row['workload']}, {row['threads']} threads, {name}: {row.get('failure', row.get('difference'))}")
    return found


def machine(versions: dict) -> dict:
    processor = pathlib.Path("/proc/cpuinfo").read_text()
    flags = re.search(r"^flags\s*:(.*)$", processor, re.M)[1].split()
    memory = re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]
    lock = (HERE / "Cargo.lock").read_text()
    crate = lambda name: re.search(rf'name = "{name}"\nversion = "(.*)"', lock)[1]  # noqa: E731
    return {
        "processor": re.search(r"^model name\s*:(.*)$", processor, re.M)[1].strip(), "cores": os.cpu_count(),
        "vectors": [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_tile") if flag in flags],
        "memory_gib": round(int(memory) / 2**20), "system": platform.platform(), "date": time.strftime("%Y-%m-%d"),
        "rustc": subprocess.run(["rustc", "-V"], capture_output=True, text=True, check=True).stdout.split()[1],
        "versions": versions | {"numpy": np.__version__} | {name: crate(name) for name in ("burn", "candle-nn", "gemm", "rten")},
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = lambda text: [part for part in text.split(",") if part]  # noqa: E731
    parser.add_argument("--binary", required=True, help="the program of this folder's package, or that of benches/ours")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target" / "peers-work", help="for files that can go")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT, help="bench/results and docs are written there")
    parser.add_argument("--threads", type=listed, default=["1", "2"], help="lengths and memory take the last (default: 1,2)")
    parser.add_argument("--workloads", type=listed, default=[], help="names or groups, such as P1,layer,limit; default: all")
    parser.add_argument("--impls", type=listed, default=list(IMPLEMENTATIONS), help="default: all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one round; fails if a result is wrong")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sample", type=float, default=0.08, help="seconds of calls in a round")
    parser.add_argument("--budget", type=float, default=1.2, help="seconds of all rounds of one; two if it is slow")
    parser.add_argument("--patience", type=float, default=180, help="seconds for an answer")
    settings = parser.parse_args()
    if settings.smoke:
        settings.rounds, settings.sample = 1, 0.0
        settings.impls = [name for name in settings.impls if name != "flex-attention"]  # takes a minute to compile
    return settings


def main():
    settings = arguments()
    settings.work.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(settings.work / "inductor")
    commands = {server: [settings.binary] for server in ("ours", "burn", "candle")}
    commands["torch"] = [sys.executable, str(HERE / "torch_peers.py")]
    commands |= {engine: [sys.executable, str(HERE / "engines" / f"{engine}.py")] for engine in ("ort", "ov", "ggml", "rten")}
    commands["rten"].append(settings.binary)
    programs = {
        int(threads): {server: Program(command, int(threads), settings.patience) for server, command in commands.items()}
        for threads in settings.threads
    }
    most, started = max(programs), time.time()
    versions, absent = missing(programs[most])
    for label, reason in absent.items():
        print(f"{label} is left out: {reason}", file=sys.stderr, flush=True)
    absent_programs = {server for server, label in OPTIONAL.items() if label in absent}
    result = {"machine": machine(versions), "settings": {key: getattr(settings, key) for key in ("rounds", "sample", "budget")}}
    result["settings"]["load_before"] = round(os.getloadavg()[0], 2)
    wanted = [
        workload for workload in (smoke_workloads() if settings.smoke else workloads(settings.work / "encoder"))
        if not settings.workloads or {workload["name"], workload["group"]} & set(settings.workloads)
    ]  # fmt: skip
    if "torch" in absent_programs:
        # PyTorch makes the encoder, and its reference.
        wanted = [workload for workload in wanted if workload["kind"] != "encoder"]
    rows = []
    for workload in wanted:
        checked = checked_rows(workload)
        references = {None: reference_of(workload, checked, programs[most]["torch"])}
        for name in set(CHANGED) & set(TAKE_PART[workload["group"]]) & set(settings.impls):
            references[name] = reference_of(workload | CHANGED[name][1], checked, programs[most]["torch"])
        for threads in [most] if workload["group"] == "length" else programs:
            names = take_part(workload, settings, absent_programs)
            for row in measure(workload, references, checked, names, programs[threads], settings):
                row = {"workload": workload["name"], "threads": threads} | row
                rows.append(row)
                difference = f"  {row['difference']:.1e}" if "difference" in row else ""
                shown = f"{row['ms']:10.3f} ms{difference}" if "ms" in row else f"  {row['failure']}"
                print(f"{row['workload']:14} {threads} {row['implementation']:20} {shown}", file=sys.stderr, flush=True)
    for program in (program for servers in programs.values() for program in servers.values()):
        program.stop()
    if settings.smoke:
        failures = smoke_failures(rows, wanted)
        sys.exit("\n".join(failures) if failures else 0)
    result |= {
        "implementations": {name: label for name, (label, _) in IMPLEMENTATIONS.items()},
        "classes": CLASSES,
        "left_out": absent,
        "workloads": list({workload["name"]: without_folder(workload) for workload in wanted}.values()),
        "rows": rows,
        "memory": memory(commands, wanted, most, settings),
    }
    result["settings"]["seconds"] = round(time.time() - started)
    target = settings.out / "bench" / "results" / "cpu.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    subprocess.run([sys.executable, str(HERE / "report.py"), str(target), str(settings.out / "docs")], check=True)


def memory(commands: dict, wanted: list[dict], threads: int, settings) -> list[dict]:
    """Peak memory of one call of X2 in addition to its inputs; each implementation runs in its own process."""
    rows = []
    for workload in (workload for workload in wanted if workload["name"] == "X2"):
        small = workload | {"queries": 64, "keys": 64}
        for name in (name for name in TAKE_PART["memory"] if name in settings.impls):
            program = Program(commands[IMPLEMENTATIONS[name][1]], threads, settings.patience)
            answer = program.ask(do="memory", implementation=name, small=small, workload=workload)
            program.stop()
            rows.append({"implementation": name, "workload": "X2", "threads": threads} | answer)
    return rows


if __name__ == "__main__":
    main()
