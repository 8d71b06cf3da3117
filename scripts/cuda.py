#!/usr/bin/env python3
"""Runs a program on emulated CUDA devices: kernels are executed on the CPU, and every access is checked.

NVRTC and its headers are downloaded from PyPI into a folder that is kept, with the PTX of every kernel that was compiled. NVRTC takes
a second for most kernels and half a minute for some, so `bench/results/ptx.tar.xz` has the PTX of those that CI runs, by a hash of their
source. A kernel whose source is another is compiled. The package `emulator` replaces the driver, and `fake_nccl.c` NCCL.

    cargo build --release -p burn-deepspeed-emulator
    python3 scripts/cuda.py --cache ~/.cache/burn-deepspeed --driver target/release/libcuda.so \\
        cargo run --release --features cuda --example conformance -- --backend cuda tests/golden/cases

Needs Linux on x86-64, a C compiler and pip. `emulator/src/driver/mod.rs` explains the variables that set up the devices.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import time

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
STRICT = "attend,cache_write,combine,decode,dequantise,norm,pad,prefill,product,softmax"
# What the kernels' tests put between the rows of a tensor and after the last one (kernels/tests/cube/lab.rs), in words.
CANARIES = "7fc0beef,7e777e77,80808080"


# The PTX of kernels, and what ptxas says of it; see `pack`.
ARCHIVE = ROOT / "bench/results/ptx.tar.xz"
FOLDERS = ["ptx", "assembled"]


def unpack(folder: pathlib.Path):
    """Puts the files of the archive that are missing below `folder`, with a time of 0."""
    if not ARCHIVE.exists():
        return
    done = folder / f"unpacked-{hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()[:16]}"
    if done.exists():
        return
    with tarfile.open(ARCHIVE) as archive, tempfile.TemporaryDirectory(dir=folder) as made:
        for member in archive:
            path = pathlib.PurePosixPath(member.name)
            if not member.isfile() or len(path.parts) != 2 or path.parts[0] not in FOLDERS:
                raise SystemExit(f"{ARCHIVE}: {member.name} does not belong there")
            if not (folder / path).exists():
                # Moved there when it is whole: another program may look for it.
                whole = pathlib.Path(made) / path.name
                whole.write_bytes(archive.extractfile(member).read())
                os.utime(whole, (0, 0))
                whole.replace(folder / path)
    done.touch()


def pack(cache: pathlib.Path):
    """Writes the archive anew: with what programs used or made in this cache in the last day."""
    folder, oldest = cache / "emulator", time.time() - 24 * 60 * 60
    files = [path for name in FOLDERS for path in (folder / name).iterdir() if path.suffix in [".ptx", ".json"]]
    files = [path for path in files if path.stat().st_mtime > oldest]

    def like(path: pathlib.Path) -> tuple:
        """Kernels of one name next to each other, since they have much in common."""
        entry = re.search(rb"\.entry (\w+)", path.read_bytes())
        return (path.suffix, entry[1] if entry else b"", path.stat().st_size, path.name)

    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for path in sorted(files, key=like):
            entry = tarfile.TarInfo(f"{path.parent.name}/{path.name}")
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(entry, content)
    print(f"{len(files)} files, {ARCHIVE.stat().st_size} bytes")


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
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    unpack(folder)
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


# CubeCL then gives each tensor an allocation of its own, of its size rounded up to 512 bytes. Otherwise several share one, and an access
# that misses its tensor may hit another.
EXACT = '[memory]\npersistent_memory = "enforced"\n'
# CubeCL keeps compiled kernels on disk, as a user may tell it to.
KEPT = '[compilation]\ncache = "local"\n'


@contextlib.contextmanager
def configured(*tables: str):
    """A folder with all that the current one has, and with this `cubecl.toml`: CubeCL looks for it in the folder of the process."""
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        for path in pathlib.Path.cwd().iterdir():
            (folder / path.name).symlink_to(path)
        (folder / "cubecl.toml").unlink(missing_ok=True)
        (folder / "cubecl.toml").write_text("\n".join(tables))
        yield folder


def short_name(kernel: str) -> str:
    """The name of a kernel without the types that CubeCL adds."""
    return re.sub(r"_[a-z]_(f32|f16|bf16|u8|u32).*", "", kernel)


def assemble(cache: pathlib.Path, ptx: pathlib.Path, architecture: str, blocks: int | None = None) -> dict[str, int]:
    """What ptxas says of a module: registers of a thread, bytes of spills, and bytes of shared memory that it declares. With `blocks`, it is
    told that so many blocks on a multiprocessor are enough."""
    least = [] if blocks is None else ["--minnctapersm", str(blocks)]
    name = "-".join([hashlib.sha256(ptx.read_bytes()).hexdigest()[:32], architecture, *least[1:]])
    known = cache / "emulator/assembled" / f"{name}.json"
    if known.exists():
        os.utime(known)
        return json.loads(known.read_text())
    ptxas = toolkit(cache) / "bin/ptxas"
    run = subprocess.run([ptxas, "-v", f"-arch={architecture}", *least, ptx, "-o", "/dev/null"], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{ptx}: ptxas failed\n{run.stderr}")
    number = lambda pattern: sum(int(found) for found in re.findall(pattern, run.stderr))
    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    found = {"registers": number(r"Used (\d+) registers"), "spills": spills, "shared": number(r"(\d+) bytes smem")}
    with tempfile.NamedTemporaryFile("w", dir=known.parent, delete=False) as whole:
        json.dump(found, whole)
    pathlib.Path(whole.name).replace(known)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder that keeps the compiler and what it compiled")
    parser.add_argument("--pack", action="store_true", help="write the archive anew, with what this cache has used in the last day")
    parser.add_argument("--driver", type=pathlib.Path, help="`libcuda.so` of the package `emulator`")
    parser.add_argument("--devices", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--architecture", type=int, choices=[80, 90], default=90, help="compute capability (default: 90)")
    parser.add_argument("--seed", type=int, default=0, help="decides in which order warps run (default: 0)")
    parser.add_argument("--kept", action="store_true", help="let CubeCL keep compiled kernels in a folder that is empty at first")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.pack:
        return pack(arguments.cache.resolve())
    if not arguments.command or not arguments.driver:
        parser.error("`--driver` or a command is missing")
    variables = environment(
        arguments.cache.resolve(), arguments.driver, devices=arguments.devices, architecture=arguments.architecture, seed=arguments.seed
    )
    with configured(EXACT, *[KEPT] * arguments.kept) as folder:
        raise SystemExit(subprocess.run(arguments.command, env=variables, cwd=folder).returncode)


if __name__ == "__main__":
    main()
