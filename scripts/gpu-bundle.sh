#!/usr/bin/env bash
# Collects what gpu-check.sh needs on a machine with a CUDA device and without Rust: target/gpu-bundle, and the same packed for
# transport, target/gpu-bundle.tar.xz. Arguments go to cargo.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
bundle=target/gpu-bundle
# Bindings of CUDA 13.0: drivers from 580 on. A separate target folder, since the variable affects what other builds would reuse.
export CUDARC_CUDA_VERSION=13000
programs=$(cargo build --release --locked --target-dir "$target/gpu" --config 'profile.release.strip="symbols"' \
    --no-default-features --features cuda,autotune \
    --example gpu --example gpu_bench --test cube_cuda \
    --message-format=json-render-diagnostics "$@" |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"):
        print(message["target"]["name"], message["executable"])')

rm -rf "$bundle"
mkdir -p "$bundle/bin" "$bundle/scripts"
while read -r name program; do
    install -m 755 "$program" "$bundle/bin/$name"
done <<<"$programs"
cp -r tests/golden/cases "$bundle/cases"
cp bench/results/cuda-counts.json "$bundle/"
cp scripts/gpu-check.sh scripts/gpu_*.py "$bundle/scripts/"

for name in gpu gpu_bench cube_cuda; do
    test -x "$bundle/bin/$name" || { echo "error: $name was not built" >&2; exit 1; }
done
# Python packs and unpacks it, since it is on both sides.
python3 -c 'import sys, tarfile
with tarfile.open(sys.argv[2], "w:xz", preset=6) as archive:
    archive.add(sys.argv[1], "gpu-bundle")' "$bundle" "$bundle.tar.xz"
du -h --apparent-size "$bundle"/bin/*
du -sh --apparent-size "$bundle" "$bundle.tar.xz"
