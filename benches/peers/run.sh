#!/usr/bin/env bash
# Builds the Rust program and an environment with PyTorch, both below the target folder, and measures; options go to `measure.py`.
# PEERS_PYTHON names a Python that has the packages of requirements.txt already.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}

cargo build --release --locked --manifest-path "$here/Cargo.toml" --target-dir "$target/peers"
python=${PEERS_PYTHON:-}
if [ -z "$python" ]; then
    python=$target/peers-venv/bin/python
    if ! cmp --silent "$here/requirements.txt" "$target/peers-venv/installed.txt"; then
        python3 -m venv "$target/peers-venv"
        "$python" -m pip install --quiet --requirement "$here/requirements.txt"
        cp "$here/requirements.txt" "$target/peers-venv/installed.txt"
    fi
fi
export PYTHONDONTWRITEBYTECODE=1
exec "$python" "$here/measure.py" --binary "$target/peers/release/peers" --work "$target/peers-work" "$@"
