# What a change must pass.
check:
    bash .ci/run

# The same with every case of the kernels' tests on every device; takes hours. CI runs it once a week.
check-all:
    bash .ci/run all

# A quick check: format, lints, and every test on the CPU backend.
quick:
    cargo fmt --all --check
    cargo clippy --all-targets -- -D warnings
    cargo test

# Tests on one backend: `just test flex`.
test backend="ndarray":
    cargo test --no-default-features --features {{backend}},autodiff,local --test suite

# Lints of the library with each backend alone; CI does so with the default one, with none and with all.
backends:
    for backend in ndarray flex wgpu vulkan cuda; do cargo clippy --lib --no-default-features --features $backend -- -D warnings || exit 1; done

# Kernels compared with what they replace.
bench:
    cargo bench --features autodiff --bench decode --bench prefill --bench project

# CPU kernels compared with PyTorch, transformers, candle, Burn, ONNX Runtime, OpenVINO, ggml and rten; writes bench/results/cpu.json and
# docs/performance.md and .svg. With `--smoke` it installs and writes nothing, and checks tiny problems.
bench-cpu *options:
    bash benches/peers/run.sh {{options}}

# Fails if a lock file does not match its manifest.
locks:
    cargo metadata --locked --format-version 1 >/dev/null
    cargo metadata --locked --format-version 1 --manifest-path benches/peers/Cargo.toml >/dev/null

# Programs, cases and scripts for a machine with a CUDA device and without Rust; `gpu-bundle/scripts/gpu-check.sh` runs them there.
gpu-bundle:
    bash scripts/gpu-bundle.sh

# Counts what the CUDA kernels do on the workloads of `gpu_bench` and writes bench/results/cuda-counts.md; `--check` compares with it.
# `just counts ~/.cache/burn-deepspeed target/debug/deps/libcuda.so target/debug/examples/gpu_bench`
counts cache driver bench action="--write":
    python3 scripts/counts.py --cache {{cache}} --driver {{driver}} --bench {{bench}} {{action}}

# Writes bench/results/ptx.tar.xz anew, after a change of kernels: with the PTX that a run of `.ci/run` on this cache has used. Without it
# CI compiles the changed kernels each time. Likewise bench/results/autotune.tar.xz, with what Burn has chosen in this folder: remove
# `target/autotune` before the run, after a change of Burn's or of the tests' shapes.
ptx cache:
    python3 scripts/cuda.py --cache {{cache}} --pack
    cd target && python3 -m tarfile -c ../bench/results/autotune.tar.xz autotune

# Makes mistakes in the CUDA kernels and writes which of them tests and emulator find; `--check` in place of `--write` only fails if one
# survives without a reason. `just mutants ~/.cache/burn-deepspeed target/debug/deps/libcuda.so target/debug/deps/cube_cuda-<hash>`
mutants cache driver tests action="--write":
    python3 scripts/mutants.py --cache {{cache}} --driver {{driver}} --tests {{tests}} {{action}}

# Rewrites the golden cases; needs Python with torch, transformers, diffusers, safetensors, gguf, and deepspeed.
golden:
    python3 tests/golden/generate.py --out tests/golden/cases
    python3 tests/golden/generate_diffusion.py --out tests/golden/cases
    python3 tests/golden/generate_models.py --out tests/golden/models
    python3 tests/golden/generate_families.py --out tests/golden/families
    python3 tests/golden/generate_gguf.py --out tests/golden/gguf
    python3 tests/golden/generate_gguf_tokenizers.py --out tests/golden/gguf_tokenizers
    python3 tests/golden/generate_gguf_encoders.py --out tests/golden/gguf_encoders
    python3 tests/golden/generate_blocks.py --out tests/golden/gguf/blocks.json
    python3 tests/golden/generate_encoders.py --out tests/golden/encoders
    python3 tests/golden/generate_latent.py --out tests/golden/latent
    python3 tests/golden/generate_seq2seq.py --out tests/golden/seq2seq
    python3 tests/golden/generate_positions.py
    python3 tests/golden/generate_chat.py --out tests/golden/chat.json

# Trains the adder that `generate` runs without a model.
adder:
    cargo run --release -p train-adder
