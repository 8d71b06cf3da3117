#!/usr/bin/env python3
"""Counts what the CUDA kernels do on the workloads of the benchmark, without a GPU, and what bounds on their time follow.

The driver of the package `emulator` runs some blocks of each launch, spread over the full grid, and counts: instructions of warps,
sectors of global memory, passes through shared memory. ptxas says how many registers a kernel has. Nothing is timed.

    cargo build --release --features cuda -p burn-deepspeed-kernels --example gpu_bench -p burn-deepspeed-emulator
    python3 scripts/counts.py --cache ~/.cache/burn-deepspeed --driver target/release/libcuda.so \\
        --bench target/release/examples/gpu_bench --write
    python3 scripts/counts.py ... --check

`--check` fails if a kernel does more than bench/results/cuda-counts.json says, if it passes a limit, or if what the page should explain has
no reason in counts.toml. `--write` fails for the last two.

Needs what cuda.py needs.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import tempfile
import tomllib

import cuda

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "bench/results/cuda-counts.md"
NUMBERS = ROOT / "bench/results/cuda-counts.json"
REASONS = ROOT / "scripts/counts.toml"
# Blocks of a launch that run at least; about as many as one problem of a batch has.
SAMPLE = 16
SECTOR = 32
# More than the committed number by this factor is worse. NVRTC orders instructions by the order of declarations, which CubeCL
# does not keep from run to run.
SLACK = 1.02
# What no kernel may exceed, whatever was committed. Exceptions, each with a reason, are in counts.toml.
LIMITS = {"touched / least": 1.05, "sectors / ideal": 1.05, "passes / ideal": 1.05, "spills": 0}
# Sectors moved, over the least, from which the page says who reads them again.
AGAIN = 1.05

# An SXM module: 132 multiprocessors, each of which issues an instruction to 4 warps and makes one pass through shared memory in a
# clock. The clock is the one behind NVIDIA's 989 Tflop/s for bf16: 132 · 4096 flop in a clock.
PROCESSORS, ISSUES, CLOCK_GHZ, TENSOR_FLOPS = 132, 4, 1.83, 4096
MEMORY_TB = {"H100": 3.35, "H200": 4.8}
# Limits of a multiprocessor of sm_90 (CUDA C++ Programming Guide, "Compute Capabilities").
REGISTERS, SHARED, WARPS, BLOCKS = 65536, 228 * 1024, 64, 32
# Shared memory that the system takes for a block.
RESERVED = 1024

# What the assembler turns into nothing: names of values and of halves of 64 bits, which are registers of their own, addresses of arguments,
# constants that become f16 or bf16, and operations that the driver found to be part of another.
FREE = re.compile(r"(mov|cvta|ld\.param|merged)\b|cvt\.rn\.b?f16\.f64|cvt\.u32\.u64|bfi\.b64")
# What the assembler turns into several, and how many of these run, as `nvdisasm` shows; a division of unusual numbers takes more. CubeCL 0.10
# has no way to ask for powers that flush subnormal numbers, which take one instruction.
SEVERAL = {
    "ex2.approx.f32": 4,
    "lg2.approx.f32": 4,
    "rsqrt.approx.f32": 4,
    "sin.approx.f32": 2,
    "cos.approx.f32": 2,
    "rcp.approx.f32": 7,
    "div.full.f32": 8,
    "rcp.rn.f32": 8,
    "sqrt.rn.f32": 8,
    "div.rn.f32": 8,
    "div.u32": 18,
    "rem.u32": 18,
    "div.s32": 26,
    "rem.s32": 26,
}
KINDS = {
    "tensor": r"(mma|wgmma)\b",
    "global": r"(ld|st)\.global|cp\.async\.c|atom|red\.",
    "shared": r"(ld|st)\.shared|ldmatrix|stmatrix",
    "f32": r"(fma|add|mul|sub|max|min|neg|abs)\.(\w+\.)*f(32|16|64)|(fma|add|mul|max|min)\.(\w+\.)*(f16|bf16)(x2)?",
    "special": r"(ex2|lg2|rcp|sqrt|rsqrt|sin|cos|tanh|div)\.(\w+\.)*f",
    "convert": r"cvt\b",
    "exchange": r"shfl|vote|redux|bar|mbarrier|fence|cp\.async",
}


@dataclasses.dataclass
class Kernel:
    """A kernel of a workload. Numbers are those of the whole grid."""

    workload: str
    engine: str
    dtype: str
    name: str
    grid: list[int]
    block: int
    shared: int
    instructions: float
    warps: int
    lanes: float
    kinds: dict[str, float]
    asked: float
    sectors: float
    least_sectors: float
    moved: float
    distinct: float | None
    passes: float
    ideal_passes: float
    registers: int = 0
    spills: int = 0
    # Bytes in whole sectors that the problem must move; None for a kernel that helps another.
    least: int | None = None

    @property
    def row(self) -> str:
        """Its name in counts.toml."""
        return f"{self.workload} {self.name}"

    @property
    def key(self) -> str:
        return " ".join([self.workload, self.engine, self.dtype, self.name])

    @property
    def resident(self) -> int:
        """Blocks that fit on a multiprocessor."""
        return self.resident_with(self.registers)

    def resident_with(self, registers: int) -> int:
        """The same, if a lane had this many registers."""
        warps = math.ceil(self.block / 32)
        # Registers come in pieces of 256 for a warp.
        registers = warps * math.ceil(registers * 32 / 256) * 256
        return min(BLOCKS, WARPS // warps, REGISTERS // max(registers, 1), SHARED // (self.shared + RESERVED))

    @property
    def occupancy(self) -> float:
        return self.resident * math.ceil(self.block / 32) / WARPS

    @property
    def limited(self) -> dict[str, float]:
        """What has a limit."""
        over = lambda part, whole: part / whole if part is not None and whole else 0.0
        return {
            "touched / least": over(self.distinct and self.distinct * SECTOR, self.least),
            "sectors / ideal": over(self.sectors, self.least_sectors),
            "passes / ideal": over(self.passes, self.ideal_passes),
            "spills": self.spills,
        }

    def gated(self) -> dict[str, float]:
        """What may not grow."""
        return {
            name: round(getattr(self, name), 1)
            for name in ["instructions", "sectors", "moved", "passes", "registers", "spills"]
        }


def count(arguments: argparse.Namespace) -> tuple[list[Kernel], dict[str, dict]]:
    """Runs the benchmark; its kernels in order, and the descriptions of its workloads."""
    cache = arguments.cache.resolve()
    with tempfile.TemporaryDirectory() as dump:
        variables = cuda.environment(
            cache, arguments.driver, counts="/dev/stderr", log="/dev/stderr", dump=dump, sample=SAMPLE, strict="none"
        )
        listed = subprocess.run([arguments.bench, "--list"], capture_output=True, text=True, check=True).stdout
        workloads = {line["name"]: line for line in map(json.loads, listed.splitlines())}
        run = subprocess.run(
            [arguments.bench, "--once", "--only", arguments.only], capture_output=True, text=True, env=variables
        )
        if run.returncode:
            raise SystemExit(f"{arguments.bench} failed:\n{run.stderr[-6000:]}")
        files = sorted(pathlib.Path(dump).glob("*.ptx"))
        found, loaded, current = [], {}, None
        for line in run.stderr.splitlines():
            if line.startswith("workload: "):
                current = line.split()[1:]
            elif match := re.match(r"load (\d+) (\S+)", line):
                loaded[match[2]] = files[int(match[1])]
            elif line.startswith("{") and current:
                one = kernel(current, json.loads(line))
                if one.name != "combine":
                    one.least = workloads[one.workload]["bytes_in_sectors"]
                if workloads[one.workload]["shares"]:
                    one.distinct = None
                found.append((one, loaded[json.loads(line)["kernel"]]))
        # Each module once: some workloads share theirs.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            modules = sorted({path for _, path in found})
            assembled = dict(zip(modules, pool.map(lambda path: cuda.assemble(cache, path, "sm_90a"), modules)))
    for one, path in found:
        one.registers, one.spills = assembled[path]["registers"], assembled[path]["spills"]
    return [one for one, _ in found], workloads


def kernel(current: list[str], line: dict) -> Kernel:
    blocks = math.prod(line["grid"])
    scale = blocks / line["blocks"]
    opcodes = {
        name: number * scale * SEVERAL.get(name, 1) for name, number in line["opcodes"].items() if not FREE.match(name)
    }
    instructions = sum(opcodes.values())
    kinds = {kind: sum(number for name, number in opcodes.items() if re.match(of, name)) for kind, of in KINDS.items()}
    kinds["other"] = instructions - sum(kinds.values())
    # Sectors of several slices of the grid are counted once.
    distinct = line.get("distinct")
    distinct = distinct and sum(private * scale + shared for private, shared in distinct.values())
    return Kernel(
        *current,
        name=cuda.short_name(line["kernel"]),
        grid=line["grid"],
        block=math.prod(line["block"]),
        shared=line["shared"],
        instructions=instructions,
        warps=blocks * math.ceil(math.prod(line["block"]) / 32),
        lanes=line["lanes"] / max(line["instructions"] * 32, 1),
        kinds=kinds,
        asked=line["global_bytes"] * scale,
        sectors=line["sectors"] * scale,
        least_sectors=line["least_sectors"] * scale,
        moved=line["sectors_by_blocks"] * scale,
        distinct=distinct,
        passes=line["passes"] * scale,
        ideal_passes=line["ideal_passes"] * scale,
    )


def bounds(one: Kernel, workload: dict) -> dict[str, float]:
    """Microseconds that the kernel takes at least, by what it needs. A kernel that helps another has no workload of its own."""
    least = one.distinct * SECTOR if one.distinct is not None else one.least
    found = {f"memory, {name}": least / (speed * 1e6) for name, speed in MEMORY_TB.items()}
    found["issue"], found["shared"] = issue_us(one.instructions), shared_us(one.passes)
    # Only where the kernel uses tensor cores.
    tensor = 0 if one.least is None or not one.kinds["tensor"] else workload["flops"] / (PROCESSORS * TENSOR_FLOPS * CLOCK_GHZ * 1e3)
    return found | {"tensor": tensor}


def above(one: Kernel, workload: dict) -> list[float]:
    """The bounds of issue and of shared memory over that of the problem, which is memory or tensor cores: both for each device."""
    found = bounds(one, workload)
    problem = [max(found[f"memory, {name}"], found["tensor"]) for name in MEMORY_TB]
    return [found[bound] / least for least in problem for bound in ("issue", "shared")]


def is_above(one: Kernel, workload: dict) -> bool:
    return max(above(one, workload)) > 1


def moves_again(one: Kernel) -> bool:
    return bool(one.least) and one.moved * SECTOR > AGAIN * one.least


def ratio(part: float | None, whole: float) -> str:
    return f"{part / whole:.3f}" if part is not None and whole else "-"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return ["", line(head), line(["---"] * len(head)), *map(line, rows)]


def issue_us(instructions: float) -> float:
    return instructions / (PROCESSORS * ISSUES * CLOCK_GHZ * 1e3)


def shared_us(passes: float) -> float:
    return passes / (PROCESSORS * CLOCK_GHZ * 1e3)


def number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def name(one: Kernel) -> list[str]:
    """The first cells of a row."""
    return [one.workload, f"`{one.name}`" + ("" if one.engine == "cube" else f" ({one.engine})")]


def document(kernels: list[Kernel], workloads: dict[str, dict], firsts: dict[str, dict], reasons: dict) -> str:
    return "\n".join([
        *preface(),
        *bounds_section(kernels, workloads, firsts),
        *above_section(kernels, workloads, reasons),
        *memory_section(kernels, firsts, reasons),
        *instructions_section(kernels),
        *occupancy_section(kernels),
        "",
    ])


def preface() -> list[str]:
    limits = ", ".join(f"{what} at most {most:.2f}" for what, most in LIMITS.items() if most)
    return [
        "# Counts of the CUDA kernels, and bounds on their time",
        "",
        "**Nothing here is a time.** The driver of `emulator/` ran a sample of the blocks of each launch, with bf16, and counted what they",
        "did; the counts of the sample are scaled to the grid. `scripts/counts.py` writes this page. CI fails if a kernel needs more than it",
        f"says (more than {SLACK - 1:.0%}, since NVRTC orders instructions a little differently from run to run). Whatever it says, these are",
        f"limits: {limits}, and no spills.",
        "",
        "What the counts led to, and what remains: [performance.md](../../docs/performance.md#counts-without-a-gpu).",
    ]


def bounds_section(kernels: list[Kernel], workloads: dict[str, dict], firsts: dict[str, dict]) -> list[str]:
    lines = [
        "",
        "## Bounds, in microseconds",
        "",
        "With nothing in its caches, a device cannot end a launch before the bounds of memory and of the tensor cores. Those of issue and of",
        "shared memory are as exact as the counts: of [older kernels](h100-80gb-hbm3-counts.md) these were 0.24 to 1.17 times the instructions of an",
        "H100, and 0.79 to 1.30 times its passes.",
        "",
        "- **memory**: sectors that were touched, each once, over the bandwidth (H100 3.35 TB/s, H200 4.8 TB/s). Where *touched* is a dash",
        "  [below](#memory), the least that the problem must move.",
        f"- **issue**: instructions of warps, over {PROCESSORS} multiprocessors that issue {ISSUES} in each clock of {CLOCK_GHZ} GHz. These are",
        "  instructions of PTX, without moves, loads of arguments and conversions of constants, most of which the assembler removes. What it",
        "  merges counts as one: two logical operations, two numbers rounded for a word of 16 bits each, a sign or an absolute value and what reads",
        "  it, an address and the constant that is added to it, a product or a shift and its addition. What it makes several of counts as these:",
        "  `ex2.approx` is 4, or 1 of an absolute value, a division 8 or, of integers, 18. Of the kernels for prompts and blocks whose loops the",
        "  assembler does not unroll, `nvdisasm` lists 0.85 to 1.11 times as many instructions as are counted here, apart from moves and loads of",
        "  constants, and with these 1.05 to 1.22 times as many.",
        "- **shared**: passes through shared memory, one in each clock of a multiprocessor.",
        f"- **tensor**: the products of the problem, over {TENSOR_FLOPS} operations in each clock of a multiprocessor.",
        "- **at first**: what these counts said when they were first taken, before they were used. Every instruction of PTX counted as one then.",
        "  Those of blocks are of the kernel without tensor cores, which `product_blocks_mma` replaced.",
    ]
    rows = []
    for one in kernels:
        found = bounds(one, workloads[one.workload])
        least = max(found, key=lambda which: found[which] if which != "memory, H200" else 0)
        first = firsts.get(one.key)
        before = [number(issue_us(first["instructions"])), number(shared_us(first["passes"]))] if first else ["-", "-"]
        rows.append([*name(one), *map(number, found.values()), least.removesuffix(", H100"), *before])
    head = ["memory, H100", "memory, H200", "issue", "shared", "tensor", "largest, H100", "issue at first", "shared at first"]
    return lines + table(["workload", "kernel", *head], rows)


def above_section(kernels: list[Kernel], workloads: dict[str, dict], reasons: dict) -> list[str]:
    lines = [
        "",
        "## Above the bound of the problem",
        "",
        "The bound of a problem is that of memory, or of the tensor cores where this is larger. These kernels have a bound of issue or of shared",
        "memory above it on one of the devices. The numbers are the bounds of issue and of shared memory, over that of the problem.",
        "In the reasons, *per score* means the instructions of a warp for 32 scores, one of each lane.",
    ]
    rows, said = [], []
    for one in kernels:
        parts = above(one, workloads[one.workload])
        if max(parts) <= 1:
            continue
        why = next((entry["why"] for entry in reasons["above"] if one.row in entry["rows"]), None)
        if why and why not in said:
            said.append(why)
        rows.append([*name(one), *(f"{part:.2f}" for part in parts), str(said.index(why) + 1) if why else "-"])
    head = [f"{bound}, {device}" for device in MEMORY_TB for bound in ("issue", "shared")]
    lines += table(["workload", "kernel", *head, "why"], rows)
    return [*lines, "", *(f"{at}. {why}" for at, why in enumerate(said, 1))]


def memory_section(kernels: list[Kernel], firsts: dict[str, dict], reasons: dict) -> list[str]:
    lines = [
        "",
        "## Memory",
        "",
        "- **least**: what the problem must read and write, in whole sectors: the runtime aligns rows, and those of 40 features do not fill",
        "  theirs. Nor does the scale of one token.",
        "- **touched**: sectors of 32 bytes, each counted once. A dash where only some blocks of a problem ran, or where blocks share what few",
        "  of the sample touch together: a mask, or the sectors of scales.",
        "- **asked**: bytes that lanes ask for, each lane by itself. An asynchronous copy counts twice, since it writes as much to shared memory.",
        "- **moved**: sectors counted once for each block that touches them. What several blocks touch may come from the L2 cache.",
        "- **sectors**: what instructions move; *at first*: when these counts were first taken, and as they were taken then.",
        "- **sectors / ideal**: sectors that instructions move, over those if each of these had all bytes that its block needs of it.",
        "- **passes / ideal**: passes through shared memory, over those without bank conflicts. A pass of an asynchronous copy moves what",
        "  one line of 128 bytes has.",
    ]
    rows = []
    for one in kernels:
        first = firsts.get(one.key)
        rows.append([
            *name(one),
            number(one.least / 1e6) if one.least else "-",
            number(one.asked / 1e6),
            ratio(one.distinct and one.distinct * SECTOR, one.least),
            ratio(one.moved * SECTOR, one.least),
            number(one.sectors / 1e3),
            number(first["sectors"] / 1e3) if first else "-",
            ratio(one.sectors, one.least_sectors),
            number(one.passes / 1e3),
            ratio(one.passes, one.ideal_passes),
        ])
    head = ["least, MB", "asked, MB", "touched / least", "moved / least", "sectors, thousands", "at first", "sectors / ideal"]
    lines += table(["workload", "kernel", *head, "passes, thousands", "passes / ideal"], rows)
    again = {one.name: None for one in kernels if moves_again(one)}
    exceptions = [f"- {entry['row']}, {entry['limit']} at most {entry['most']}: {entry['why']}" for entry in reasons["exception"]]
    return lines + [
        "",
        f"Where more than {AGAIN} times the least is moved, several blocks read, or write, the same sectors. They come from the L2 cache if they are",
        "still there. It has 50 MB, and more bandwidth than memory:",
        "",
        *(f"- `{kernel}`: {reasons['again'].get(kernel, '-')}" for kernel in again),
        *(["", "Exceptions from the limits:", "", *exceptions] if exceptions else []),
    ]


def instructions_section(kernels: list[Kernel]) -> list[str]:
    lines = [
        "",
        "## Instructions",
        "",
        "Of all warps of the grid, and of one of them on average; and shares by kind. **lanes**: the part of the lanes that took part.",
    ]
    rows = [
        [*name(one), number(one.instructions / 1e6), number(one.instructions / one.warps), f"{one.lanes:.2f}"]
        + [f"{share / one.instructions:.0%}" for share in one.kinds.values()]
        for one in kernels
    ]
    return lines + table(["workload", "kernel", "instructions, millions", "of a warp", "lanes", *KINDS, "other"], rows)


def occupancy_section(kernels: list[Kernel]) -> list[str]:
    lines = [
        "",
        "## Occupancy",
        "",
        "Registers and spills as ptxas says for sm_90a; blocks that fit on a multiprocessor with them and with the shared memory, and",
        "their warps over the 64 that there may be.",
    ]
    rows = [
        [*name(one), "×".join(map(str, one.grid)), str(one.block), str(one.registers), str(one.spills), str(one.shared)]
        + [str(one.resident), f"{one.occupancy:.2f}"]
        for one in kernels
    ]
    head = ["workload", "kernel", "grid", "threads", "registers", "spills, bytes", "shared, bytes", "blocks", "occupancy"]
    return lines + table(head, rows)


def worse(kernels: list[Kernel], committed: dict[str, dict], partly: bool) -> list[str]:
    """What needs more than the committed numbers say, or is not among them."""
    found = []
    for one in kernels:
        before = committed.get(one.key)
        if before is None:
            found.append(f"{one.key}: not in {NUMBERS.name}")
            continue
        for name, value in one.gated().items():
            limit = before[name] if name == "spills" else before[name] * SLACK
            # The order of declarations moves some registers.
            fits = name == "registers" and one.resident >= one.resident_with(before[name])
            if value > limit and not fits:
                found.append(f"{one.key}: {name} {value}, committed {before[name]}")
    missing = [] if partly else sorted(committed.keys() - {one.key for one in kernels})
    return found + [f"{key}: not counted any more" for key in missing]


def beyond(kernels: list[Kernel], reasons: dict) -> list[str]:
    """What passes a limit, or the higher one of an exception."""
    exceptions = {(entry["row"], entry["limit"]): entry["most"] for entry in reasons["exception"]}
    return [
        f"{one.key}: {what} is {value:.3f}, and the limit {exceptions.get((one.row, what), most)}"
        for one in kernels
        for what, most in LIMITS.items()
        for value in [one.limited[what]]
        if value > exceptions.get((one.row, what), most)
    ]


def unexplained(kernels: list[Kernel], workloads: dict[str, dict], reasons: dict, partly: bool) -> list[str]:
    """What needs a reason and has none, and reasons that nothing needs."""
    rows = {one.row for one in kernels if is_above(one, workloads[one.workload])}
    again = {one.name for one in kernels if moves_again(one)}
    given = {row for entry in reasons["above"] for row in entry["rows"]}
    found = [f"{row}: issue or shared memory is above the bound of the problem, without a reason" for row in sorted(rows - given)]
    found += [f"{kernel}: moves more than {AGAIN} times the least, without a reason" for kernel in sorted(again - reasons["again"].keys())]
    if not partly:
        found += [f"{what}: has a reason and needs none" for what in sorted((given - rows) | (reasons["again"].keys() - again))]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder that keeps the compiler")
    parser.add_argument("--driver", type=pathlib.Path, default=ROOT / "target/release/libcuda.so", help="of the package `emulator`")
    parser.add_argument("--bench", type=pathlib.Path, default=ROOT / "target/release/examples/gpu_bench")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write bench/results/cuda-counts.md and .json")
    action.add_argument("--print", action="store_true", help="print the page")
    action.add_argument("--check", action="store_true", help="compare with bench/results/cuda-counts.json, limits and counts.toml")
    arguments = parser.parse_args()
    if arguments.write and arguments.only:
        parser.error("--write needs every workload")

    kernels, workloads = count(arguments)
    committed = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {"now": {}, "at first": {}}
    reasons = {"above": [], "again": {}, "exception": []} | tomllib.loads(REASONS.read_text())
    text = document(kernels, workloads, committed["at first"], reasons)
    if arguments.print:
        print(text)
        return
    print(f"{len(kernels)} kernels counted")
    partly = bool(arguments.only)
    found = beyond(kernels, reasons) + unexplained(kernels, workloads, reasons, partly)
    if found:
        found.append(f"a reason, or an exception, goes into {REASONS.name}")
    if arguments.check:
        grown = worse(kernels, committed["now"], partly)
        found += grown + [f"if that is meant, write {NUMBERS.name} anew with --write"] * bool(grown)
    if found:
        raise SystemExit("\n".join(found))
    if arguments.write:
        TABLE.write_text(text)
        committed["now"] = {one.key: one.gated() for one in kernels}
        NUMBERS.write_text(json.dumps(committed, indent=1) + "\n")


if __name__ == "__main__":
    main()
