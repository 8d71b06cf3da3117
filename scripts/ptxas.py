#!/usr/bin/env python3
"""Compiles every CUDA kernel instance without a GPU, and reports its registers, spills and shared memory.

The program `instances` launches the kernels on the driver of the package `emulator`, which executes nothing here. The unmodified
CUDA runtime generates their code, NVRTC compiles it as on a real machine, and ptxas assembles it for each architecture.

    cargo build --release --features cuda -p burn-deepspeed-kernels --example instances -p burn-deepspeed-emulator
    python3 scripts/ptxas.py --cache ~/.cache/burn-deepspeed --driver target/release/libcuda.so \\
        --instances target/release/examples/instances --write
    python3 scripts/ptxas.py ... --check            # fails if a tensor-core kernel spills much, or has to; says if the table is out of date
    python3 scripts/ptxas.py ... --check --every    # fails if another kernel has to spill, too

Needs what cuda.py needs.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import subprocess
import tempfile

import cuda

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "bench/results/ptxas.md"
ARCHITECTURES = {90: "sm_90a", 80: "sm_80"}
# The names of instances with tensor cores contain this.
TENSOR_CORES = "mma"
# Bytes that a thread of a tensor-core kernel may spill, stores and loads counted. ptxas spills a few numbers that a step of the loop
# reads once, so that more cubes fit on a multiprocessor: five of them bring the prompt kernel for heads of 96 in bf16 from 171 registers
# to 168, and from two cubes to three.
MOST_SPILLS = 80


class Kernel:
    """A kernel of an instance, as it was loaded, launched and assembled."""

    def __init__(self, instance: str, name: str, ptx: pathlib.Path):
        self.instance, self.ptx = instance, ptx
        self.name = cuda.short_name(name)
        self.grid = self.block = "-"
        self.dynamic = 0

    def assemble(self, cache: pathlib.Path, architecture: str):
        try:
            found = cuda.assemble(cache, self.ptx, architecture)
            # CubeCL states no least number of blocks, and ptxas spills to fit more than the registers allow.
            alone = cuda.assemble(cache, self.ptx, architecture, blocks=1) if found["spills"] else found
        except SystemExit as failure:
            raise SystemExit(f"{self.instance}: {failure}") from None
        self.registers, self.spills, self.forced = found["registers"], found["spills"], alone["spills"]
        self.shared = found["shared"] + self.dynamic
        return self


def kernels(arguments: argparse.Namespace, architecture: int, only: str) -> list[Kernel]:
    """Runs the program and assembles every kernel that it makes the runtime compile, of instances whose name contains `only`."""
    program, cache = arguments.instances, arguments.cache.resolve()
    with tempfile.TemporaryDirectory() as dump:
        variables = cuda.environment(
            cache, arguments.driver, architecture=architecture, execute=0, dump=dump, log="/dev/stderr"
        )
        run = subprocess.run([program, only], capture_output=True, text=True, env=variables)
        if run.returncode or "panicked" in run.stderr:
            raise SystemExit(f"{program} failed on sm_{architecture}:\n{run.stderr[-6000:]}")
        found, loaded, instance = [], {}, "-"
        files = sorted(pathlib.Path(dump).glob("*.ptx"))
        for line in run.stderr.splitlines():
            if line.startswith("instance: "):
                instance = line.removeprefix("instance: ")
            elif match := re.match(r"load (\d+) (\S+)", line):
                kernel = Kernel(instance, match[2], files[int(match[1])])
                found.append(kernel)
                loaded[match[2]] = kernel
            elif match := re.match(r"launch (\S+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", line):
                if match[1] in loaded:
                    kernel = loaded[match[1]]
                    kernel.grid, kernel.block, kernel.dynamic = "×".join(match.groups()[1:4]), match[5], int(match[8])
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda kernel: kernel.assemble(cache, ARCHITECTURES[architecture]), found))


def numbered(kernels: list[Kernel]) -> dict[tuple[str, str, int], Kernel]:
    """Kernels by instance and name, and those with the same by their order."""
    found, seen = {}, collections.Counter()
    for kernel in kernels:
        name = kernel.instance, kernel.name
        found[*name, seen[name]] = kernel
        seen[name] += 1
    return found


def table(results: dict[int, list[Kernel]]) -> str:
    of = {
        number: (sum(kernel.spills > 0 for kernel in found), max(kernel.spills for kernel in found))
        for number, found in results.items()
    }
    forced = {number: [kernel.forced for kernel in found if kernel.forced] for number, found in results.items()}
    lines = [
        "# Registers, spills and shared memory of the CUDA kernels",
        "",
        "Every kernel instance that the modules can use, as CubeCL generates it, compiled by NVRTC 13.0.88 and assembled by",
        "ptxas 13.0.88. Written by `scripts/ptxas.py`.",
        "",
        f"- **Kernels that have to spill: {len(forced[90])}** of {len(results[90])} on sm_90a, and {len(forced[80])} on sm_80. That is what ptxas says if it is told "
        "that one block on a",
        "  multiprocessor is enough (`--minnctapersm 1`). The bytes that are left are in brackets below.",
        f"- **Kernels that ptxas lets spill: {of[90][0]}** on sm_90a, at most {of[90][1]} bytes a thread, stores and loads, and {of[80][0]} on sm_80, at most {of[80][1]}. CubeCL",
        "  writes `__launch_bounds__` with the size of a block alone. Then ptxas keeps to a number of registers with which more blocks fit on",
        "  a multiprocessor, and spills what it deems the lesser cost. No workload of [cuda-counts.md](cuda-counts.md) has such a kernel.",
        f"- CI fails if a tensor-core kernel has to spill, or spills more than {MOST_SPILLS} bytes.",
        "",
        "Grids are those of the small tensors that `kernels/examples/instances.rs` launches on; blocks are the real ones. A dash: on a device with",
        "the limits of an A100, or of an H100, the instance takes a kernel that another instance has.",
        "",
        "| instance | kernel | block | sm_90a: registers | spills, bytes | shared, bytes | sm_80: registers | spills, bytes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    spills = lambda kernel: f"{kernel.spills} ({kernel.forced})" if kernel.spills else "0"
    hopper, ampere = numbered(results[90]), numbered(results[80])
    for key in [*hopper, *(key for key in ampere if key not in hopper)]:
        kernel = hopper.get(key) or ampere[key]
        on_hopper = f"{hopper[key].registers} | {spills(hopper[key])} | {hopper[key].shared}" if key in hopper else "- | - | -"
        on_ampere = f"{ampere[key].registers} | {spills(ampere[key])}" if key in ampere else "- | -"
        lines.append(f"| {kernel.instance} | `{kernel.name}` | {kernel.block} | {on_hopper} | {on_ampere} |")
    return "\n".join(lines) + "\n"


def differs(results: dict[int, list[Kernel]]) -> bool:
    """Whether the table states anything else of the tensor-core kernels, apart from shared memory: where CubeCL places its barriers
    differs from run to run by some bytes."""

    def rows(text: str) -> list[list[str]]:
        cells = (line.split(" | ") for line in text.splitlines() if line.startswith("| "))
        return [row[:5] + row[6:] for row in cells if TENSOR_CORES in row[0]]

    return rows(TABLE.read_text()) != rows(table(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder that keeps the compiler")
    parser.add_argument("--driver", type=pathlib.Path, default=ROOT / "target/release/libcuda.so", help="of the package `emulator`")
    parser.add_argument("--instances", type=pathlib.Path, default=ROOT / "target/release/examples/instances")
    parser.add_argument("--only", default="", help="instances whose name contains this")
    parser.add_argument("--every", action="store_true", help="check every kernel, and not only those with tensor cores")
    parser.add_argument("--architecture", type=int, choices=ARCHITECTURES, help="check the spills on this one, and no table")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write bench/results/ptxas.md")
    action.add_argument("--print", action="store_true", help="print the table")
    action.add_argument("--check", action="store_true", help="compare with bench/results/ptxas.md")
    action.add_argument("--fetch", action="store_true", help="fetch the compiler and do nothing else")
    arguments = parser.parse_args()

    if arguments.architecture and not arguments.check:
        parser.error("--architecture goes with --check")
    cuda.toolkit(arguments.cache)
    if arguments.fetch:
        return
    # Each program compiles on one core.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        architectures = [arguments.architecture] if arguments.architecture else ARCHITECTURES
        # Saves time: NVRTC takes a second for each of the others.
        only = TENSOR_CORES if arguments.check and not (arguments.only or arguments.every) else arguments.only
        found = {number: pool.submit(kernels, arguments, number, only) for number in architectures}
        results = {number: result.result() for number, result in found.items()}
    spilling = [
        f"{ARCHITECTURES[number]}: {kernel.instance} ({kernel.name}) spills {kernel.spills} bytes, {kernel.forced} of them if one block is enough"
        for number, found in results.items()
        for kernel in found
        if kernel.forced or (kernel.spills > MOST_SPILLS and TENSOR_CORES in kernel.instance)
    ]
    print(", ".join(f"{len(found)} kernels for {ARCHITECTURES[number]}" for number, found in results.items()))
    if arguments.check:
        if not arguments.only and not arguments.architecture and differs(results):
            print(f"{TABLE.relative_to(ROOT)} is out of date; write it anew with --write")
    else:
        text = table(results)
        if arguments.write:
            TABLE.write_text(text)
        if arguments.print:
            print(text)
    if spilling:
        raise SystemExit("\n".join(spilling))


if __name__ == "__main__":
    main()
