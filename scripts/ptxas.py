#!/usr/bin/env python3
"""Compiles every CUDA kernel instance without a GPU, and reports its registers, spills and shared memory.

A driver that computes nothing (fake_cuda.c) replaces NVIDIA's. NVRTC, its headers and ptxas are downloaded from PyPI into a folder
that is kept. The program `instances` launches the kernels. The unmodified CUDA runtime generates their code, NVRTC compiles it
as on a real machine, and ptxas assembles it for each architecture.

    python3 scripts/ptxas.py --cache ~/.cache/burn-deepspeed --instances target/release/examples/instances --write
    python3 scripts/ptxas.py ... --check      # fails if a tensor-core kernel spills; says if bench/results/ptxas.md is out of date

Needs Linux on x86-64, a C compiler and pip.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "bench/results/ptxas.md"
ARCHITECTURES = {90: "sm_90a", 80: "sm_80"}
PACKAGES = [
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
]


def toolkit(cache: pathlib.Path) -> pathlib.Path:
    """The folder of the compiler, fetched if it is missing."""
    home = cache / "cuda-13.0"
    ready = home / "ready"
    if not ready.exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", home, *PACKAGES],
            check=True,
            env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore", "PIP_BREAK_SYSTEM_PACKAGES": "1"},
        )
        ready.touch()
    return home / "nvidia/cu13"


def driver(cache: pathlib.Path) -> pathlib.Path:
    """The folder of the fake driver, which is compiled here."""
    folder = cache / "fake-driver"
    folder.mkdir(parents=True, exist_ok=True)
    source = ROOT / "scripts/fake_cuda.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", folder / "libcuda.so", source], check=True)
    return folder


def environment(cache: pathlib.Path, architecture: int, dump: str | None = None) -> dict[str, str]:
    """What a program needs to run on the fake driver."""
    home = toolkit(cache)
    variables = {
        **os.environ,
        "CUDA_PATH": str(home),
        "LD_LIBRARY_PATH": f"{cache / 'fake-driver'}:{home / 'lib'}",
        "STUB_SM": str(architecture),
        "STUB_VERBOSE": "1",
    }
    if dump:
        variables["STUB_DUMP"] = dump
    return variables


class Kernel:
    """A kernel of an instance, as it was loaded, launched and assembled."""

    def __init__(self, instance: str, ptx: pathlib.Path):
        self.instance, self.ptx = instance, ptx
        self.name = re.sub(r"_[a-z]_(f32|f16|bf16|u8|u32).*", "", ptx.stem[4:])
        self.grid = self.block = "-"
        self.dynamic = 0

    def assemble(self, ptxas: pathlib.Path, architecture: str):
        run = subprocess.run(
            [ptxas, "-v", f"-arch={architecture}", self.ptx, "-o", "/dev/null"], capture_output=True, text=True
        )
        if run.returncode:
            raise SystemExit(f"{self.instance}: ptxas failed\n{run.stderr}")
        number = lambda pattern: sum(int(found) for found in re.findall(pattern, run.stderr))
        self.registers = number(r"Used (\d+) registers")
        self.spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        self.shared = number(r"(\d+) bytes smem") + self.dynamic
        return self


def kernels(program: pathlib.Path, cache: pathlib.Path, architecture: int, only: str) -> list[Kernel]:
    """Runs the program and assembles every kernel that it makes the runtime compile."""
    with tempfile.TemporaryDirectory() as dump:
        run = subprocess.run(
            [program, only], capture_output=True, text=True, env=environment(cache, architecture, dump)
        )
        if run.returncode or "panicked" in run.stderr:
            raise SystemExit(f"{program} failed on sm_{architecture}:\n{run.stderr[-6000:]}")
        found, loaded, instance = [], {}, "-"
        files = sorted(pathlib.Path(dump).glob("*.ptx"))
        for line in run.stderr.splitlines():
            if line.startswith("instance: "):
                instance = line.removeprefix("instance: ")
            elif match := re.match(r"\[stub\] load (\S+)", line):
                kernel = Kernel(instance, files[len(found)])
                found.append(kernel)
                loaded[match[1]] = kernel
            elif match := re.match(r"\[stub\] (\S+) dynamic smem (\d+)", line):
                if match[1] in loaded:
                    loaded[match[1]].dynamic = int(match[2])
            elif match := re.match(r"\[stub\] launch (\S+) grid (\d+) (\d+) (\d+) block (\d+) (\d+) (\d+)", line):
                if match[1] in loaded:
                    kernel = loaded[match[1]]
                    kernel.grid, kernel.block = "×".join(match.groups()[1:4]), match[5]
        assembler = toolkit(cache) / "bin/ptxas"
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda kernel: kernel.assemble(assembler, ARCHITECTURES[architecture]), found))


def modules(program: pathlib.Path, cache: pathlib.Path) -> int:
    """Runs the conformance cases through the modules and Burn's fusion, to see whether all kernels compile; numbers are meaningless."""
    cases, loads = ROOT / "tests/golden/cases", 0
    for dtype in ["fp32", "bf16"]:
        run = subprocess.run(
            [program, "--backend", "cuda", "--dtype", dtype, cases], capture_output=True, text=True, env=environment(cache, 90)
        )
        if "panicked" in run.stderr or "error:" in run.stderr or " failed" not in run.stdout:
            raise SystemExit(f"{program} --dtype {dtype} failed:\n{run.stderr[-6000:]}")
        loads += run.stderr.count("[stub] load ")
    return loads


def table(results: dict[int, list[Kernel]]) -> str:
    lines = [
        "# Registers, spills and shared memory of the CUDA kernels",
        "",
        "Every kernel instance that the modules can use, as CubeCL generates it, compiled by NVRTC 13.0.88 and assembled by",
        "ptxas 13.0.88. Written by `scripts/ptxas.py`; CI fails if a tensor-core kernel",
        "spills. The others may: ptxas spills a few registers to fit more cubes on a multiprocessor.",
        "Grids are those of the small tensors that `kernels/examples/instances.rs` launches on; blocks are the real ones.",
        "",
        "| instance | kernel | block | sm_90a: registers | spills, bytes | shared, bytes | sm_80: registers | spills, bytes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for hopper, ampere in zip(results[90], results[80], strict=True):
        lines.append(
            f"| {hopper.instance} | `{hopper.name}` | {hopper.block} | {hopper.registers} | {hopper.spills} "
            f"| {hopper.shared} | {ampere.registers} | {ampere.spills} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder that keeps the compiler")
    parser.add_argument("--instances", type=pathlib.Path, default=ROOT / "target/release/examples/instances")
    parser.add_argument("--conformance", type=pathlib.Path, help="run the modules too: target/release/examples/conformance")
    parser.add_argument("--only", default="", help="instances whose name contains this")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write bench/results/ptxas.md")
    action.add_argument("--print", action="store_true", help="print the table")
    action.add_argument("--check", action="store_true", help="compare with bench/results/ptxas.md")
    action.add_argument("--fetch", action="store_true", help="fetch the compiler and do nothing else")
    arguments = parser.parse_args()

    toolkit(arguments.cache)
    if arguments.fetch:
        return
    driver(arguments.cache)
    # Each program compiles on one core.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        loads = pool.submit(modules, arguments.conformance, arguments.cache) if arguments.conformance else None
        found = [pool.submit(kernels, arguments.instances, arguments.cache, number, arguments.only) for number in ARCHITECTURES]
        if loads:
            print(f"{loads.result()} kernels compiled for the modules, Burn's own among them")
        results = {number: result.result() for number, result in zip(ARCHITECTURES, found)}
    spilling = [
        f"{ARCHITECTURES[number]}: {kernel.instance} ({kernel.name}) spills {kernel.spills} bytes"
        for number, found in results.items()
        for kernel in found
        if kernel.spills and "mma" in kernel.instance
    ]
    text = table(results)
    if arguments.write:
        TABLE.write_text(text)
    if arguments.print:
        print(text)
    print(f"{len(results[90])} kernels for each of {', '.join(ARCHITECTURES.values())}")
    if arguments.check and TABLE.read_text() != text:
        print(f"{TABLE.relative_to(ROOT)} is out of date; write it anew with --write")
    if spilling:
        raise SystemExit("\n".join(spilling))


if __name__ == "__main__":
    main()
