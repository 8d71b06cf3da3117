#!/usr/bin/env python3
"""Runs every test of a program in a process of its own, as many at a time as there are processors.

    python3 scripts/gpu_tests.py target/gpu-bundle/bin/cube_cuda

Threads of one process share a device, whose server compiles one kernel after the other.
"""

import argparse
import concurrent.futures
import os
import pathlib
import subprocess
import time


def run(program: pathlib.Path, name: str, limit: float) -> tuple[str, float, str | None]:
    """The test, its seconds, and what it printed if it failed."""
    start = time.monotonic()
    try:
        command = [program, "--exact", name, "--include-ignored", "--test-threads", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        printed = None if done.returncode == 0 else done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        printed = f"no end after {limit:.0f} s"
    return name, time.monotonic() - start, printed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=float, default=400.0, help="seconds of a test")
    arguments = parser.parse_args()

    listed = subprocess.run(
        [arguments.program, "--list", "--format", "terse", "--include-ignored"], capture_output=True, text=True, check=True
    )
    names = [line.removesuffix(": test") for line in listed.stdout.splitlines() if line.endswith(": test")]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda name: run(arguments.program, name, arguments.limit), names))
    for name, seconds, printed in results:
        print(f"{seconds:6.1f} s  {name}: {'ok' if printed is None else 'FAILED'}")
    failed = [(name, printed) for name, _, printed in results if printed is not None]
    for name, printed in failed:
        print(f"\n--- {name}\n{printed[-4000:]}")
    print(f"\n{len(results) - len(failed)} passed, {len(failed)} failed")
    raise SystemExit(bool(failed) or not results)


if __name__ == "__main__":
    main()
