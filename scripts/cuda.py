#!/usr/bin/env python3
"""Runs a program on emulated CUDA devices: kernels are executed on the CPU, and every access is checked.

NVRTC and its headers are downloaded from PyPI into a folder that is kept, with the PTX of every kernel that was compiled. The
package `emulator` replaces the driver, and `fake_nccl.c` NCCL.

    cargo build --release -p burn-deepspeed-emulator
    python3 scripts/cuda.py --cache ~/.cache/burn-deepspeed --driver target/release/libcuda.so \\
        cargo run --release --features cuda --example conformance -- --backend cuda tests/golden/cases

Needs Linux on x86-64, a C compiler and pip. `emulator/src/driver/mod.rs` explains the variables that set up the devices.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = [
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
]
# The kernels of this repository. Burn's read whole vectors, whether or not all of them was written, and leave out the rest; blocks
# of its reductions write the same number to the same place.
STRICT = "attend,cache_write,combine,decode,norm,pad,prefill,product,softmax"
# What the kernels' tests put between the rows of a tensor and after the last one (kernels/tests/cube/lab.rs), in words.
CANARIES = "7fc0beef,7e777e77,80808080"


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


def environment(cache: pathlib.Path, driver: pathlib.Path, **settings: object) -> dict[str, str]:
    """The variables of a program that runs on the emulator; `settings` are those of the driver, without `EMULATOR_`."""
    home, folder = toolkit(cache), cache / "emulator"
    (folder / "ptx").mkdir(parents=True, exist_ok=True)
    # Written elsewhere and moved: other programs may be running on them. Without a version, since NVRTC looks for `libcuda.so.1`
    # itself and expects more of it.
    with tempfile.TemporaryDirectory(dir=folder) as made:
        for name in ["libcuda.so", "libnvrtc.so"]:
            (pathlib.Path(made) / name).symlink_to(driver.resolve())
        library = pathlib.Path(made) / "libnccl.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, ROOT / "scripts/fake_nccl.c", "-lpthread"], check=True)
        for file in pathlib.Path(made).iterdir():
            file.replace(folder / file.name)
    variables = {
        **os.environ,
        "CUDA_PATH": str(home),
        "LD_LIBRARY_PATH": f"{folder}:{home / 'lib'}",
        # Burn tunes its own products by time, which says nothing here.
        "CUBECL_AUTOTUNE_LEVEL": "minimal",
        "EMULATOR_STRICT": STRICT,
        "EMULATOR_CANARIES": CANARIES,
        "EMULATOR_NVRTC": str(home / "lib/libnvrtc.so.13"),
        "EMULATOR_NVRTC_CACHE": str(folder / "ptx"),
    }
    return variables | {f"EMULATOR_{name.upper()}": str(value) for name, value in settings.items() if value is not None}


def short_name(kernel: str) -> str:
    """The name of a kernel without the types that CubeCL adds."""
    return re.sub(r"_[a-z]_(f32|f16|bf16|u8|u32).*", "", kernel)


def assemble(ptxas: pathlib.Path, ptx: pathlib.Path, architecture: str) -> dict[str, int]:
    """What ptxas says of a module: registers of a thread, bytes of spills, and bytes of shared memory that it declares."""
    run = subprocess.run([ptxas, "-v", f"-arch={architecture}", ptx, "-o", "/dev/null"], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{ptx}: ptxas failed\n{run.stderr}")
    number = lambda pattern: sum(int(found) for found in re.findall(pattern, run.stderr))
    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return {"registers": number(r"Used (\d+) registers"), "spills": spills, "shared": number(r"(\d+) bytes smem")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder that keeps the compiler and what it compiled")
    parser.add_argument("--driver", type=pathlib.Path, required=True, help="`libcuda.so` of the package `emulator`")
    parser.add_argument("--devices", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--architecture", type=int, choices=[80, 90], default=90, help="compute capability (default: 90)")
    parser.add_argument("--seed", type=int, default=0, help="decides in which order warps run (default: 0)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("a command is missing")
    variables = environment(
        arguments.cache.resolve(), arguments.driver, devices=arguments.devices, architecture=arguments.architecture, seed=arguments.seed
    )
    raise SystemExit(subprocess.run(arguments.command, env=variables).returncode)


if __name__ == "__main__":
    main()
