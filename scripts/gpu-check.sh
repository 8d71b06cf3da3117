#!/usr/bin/env bash
# Checks and times everything on a CUDA device; needs a driver, NVRTC with its headers, and PyTorch, but no Rust.
#
#     just gpu-bundle                                          # where Rust is; writes target/gpu-bundle and target/gpu-bundle.tar.xz
#     scripts/gpu-check.sh [conformance] [kernels] [counts] [bench]     # on the device, in the bundle or in a clone with either of both
#
# Every part runs, even if an earlier one failed; the exit status is 0 if all passed. The table and the JSON of the benchmark
# go to $OUT, else to bench/results; the logs to $OUT, else to a temporary folder. QUICK=1 tries everything on small tensors.
set -u

bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -d "$bundle/bin" ] || bundle=$bundle/target/gpu-bundle
if [ ! -d "$bundle/bin" ] && [ -e "$bundle.tar.xz" ]; then
    python3 -m tarfile -e "$bundle.tar.xz" "$(dirname "$bundle")"
fi
[ -d "$bundle/bin" ] || { echo "error: $bundle/bin is missing; run 'just gpu-bundle'" >&2; exit 2; }
results=${OUT:-bench/results}
logs=${OUT:-$(mktemp -d)}
mkdir -p "$results" "$logs"

# The folders of NVIDIA's wheels, which come with PyTorch: one for each package, or one for all since CUDA 13.
wheels() {
    python3 - "$1" <<'PYTHON' 2>/dev/null
import importlib.util, pathlib, sys
spec = importlib.util.find_spec("nvidia")
for base in spec.submodule_search_locations if spec else []:
    for found in sorted(pathlib.Path(base).glob(sys.argv[1])):
        print(found.parent)
PYTHON
}

if [ -z "${CUDA_PATH:-}" ]; then
    if [ -e /usr/local/cuda/include/cuda_fp16.h ]; then
        CUDA_PATH=/usr/local/cuda
    elif command -v nvcc >/dev/null; then
        CUDA_PATH=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
    else
        headers=$(wheels '*/include/cuda_fp16.h' | head -1)
        CUDA_PATH=${headers:+$(dirname "$headers")}
        CUDA_PATH=${CUDA_PATH:-/usr/local/cuda}
    fi
fi
export CUDA_PATH
libraries=$CUDA_PATH/lib64:$CUDA_PATH/lib
if ! ls "$CUDA_PATH"/lib64/libnvrtc.so* "$CUDA_PATH"/lib/libnvrtc.so* >/dev/null 2>&1; then
    libraries=$libraries:$(wheels '*/lib/libnvrtc.so*' | head -1)
fi
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries
echo "CUDA_PATH=$CUDA_PATH"
echo "LD_LIBRARY_PATH=$LD_LIBRARY_PATH"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "nvidia-smi is missing or finds no device"

failed=()
part() {
    local name=$1 limit=$2 status
    shift 2
    printf '\n=== %s\n' "$name"
    local start=$SECONDS
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$logs/gpu-check-${name// /-}.log" | tail -n 60
    status=${PIPESTATUS[0]}
    echo "--- $name: exit status $status after $((SECONDS - start)) s"
    [ "$status" -eq 0 ] || { failed+=("$name"); return 1; }
}

for what in "${@:-all}"; do
    case $what in all | conformance | kernels | counts | bench) ;; *) echo "error: no part named $what" >&2; exit 2 ;; esac
done
wanted() { [ $# -eq 1 ] && return 0; local part=$1; shift; [[ " $* " == *" $part "* || " $* " == *" all "* ]]; }

if wanted conformance "$@"; then
    # Most of the time is the compiler's, so the element types go side by side.
    processes=()
    for dtype in fp32 fp16 bf16; do
        # The products are small: tuning takes longer than it saves.
        part "conformance $dtype" 240 env CUBECL_AUTOTUNE_LEVEL=minimal "$bundle/bin/gpu" conformance --backend cuda --path fast --dtype "$dtype" "$bundle/cases" &
        processes+=($!)
    done
    for dtype in fp32 fp16 bf16; do
        wait "${processes[0]}" || failed+=("conformance $dtype")
        processes=("${processes[@]:1}")
    done
fi
if wanted kernels "$@"; then
    part kernels 420 python3 "$bundle/scripts/gpu_tests.py" "$bundle/bin/cube_cuda"
fi
if wanted counts "$@"; then
    if command -v ncu >/dev/null; then
        part counts 240 python3 "$bundle/scripts/gpu_counts.py" --bench "$bundle/bin/gpu_bench" --numbers "$bundle/cuda-counts.json" --out "$results"
    else
        echo "ncu is missing: nothing is counted"
    fi
fi
if wanted bench "$@"; then
    if python3 -c 'import torch' 2>/dev/null; then
        part bench 420 python3 "$bundle/scripts/gpu_peers.py" --bench "$bundle/bin/gpu_bench" --layer "$bundle/bin/gpu" --out "$results" ${QUICK:+--quick --rounds 2}
    else
        echo "PyTorch is missing: the kernels are timed without their peers"
        part bench 420 "$bundle/bin/gpu_bench" ${QUICK:+--quick --rounds 1}
        part layer 300 "$bundle/bin/gpu" layer ${QUICK:+--quick}
    fi
fi

printf '\nlogs: %s\n' "$logs"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "everything passed"
