#!/usr/bin/env python3
"""Runs a program on several simulated CUDA devices.

The stub driver (fake_cuda.c) and NCCL (fake_nccl.c) work in host memory: tensors are stored, read and added up over devices.
Kernels are compiled and not run, so a program can only add numbers that it wrote from the host.

    python3 scripts/fake_gpus.py --cache ~/.cache/burn-deepspeed --devices 3 cargo test --all-features --test suite nccl:: -- --include-ignored

Needs what ptxas.py needs.
"""

import argparse
import pathlib
import subprocess

import ptxas

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder that keeps the compiler")
parser.add_argument("--devices", type=int, required=True, help="how many")
parser.add_argument("command", nargs=argparse.REMAINDER)
arguments = parser.parse_args()

cache = arguments.cache.resolve()
ptxas.toolkit(cache)
library = ptxas.driver(cache) / "libnccl.so"
subprocess.run(
    ["cc", "-shared", "-fPIC", "-O1", "-o", library, ptxas.ROOT / "scripts/fake_nccl.c", "-lpthread"], check=True
)
variables = {**ptxas.environment(cache, 90), "STUB_NDEV": str(arguments.devices)}
del variables["STUB_VERBOSE"]
raise SystemExit(subprocess.run(arguments.command, env=variables).returncode)
