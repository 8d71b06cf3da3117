#!/usr/bin/env bash
# Stands in for rustdoc in `cargo test --doc`: instead of running the tests of a package it writes its documentation, so that the links
# are checked. `cargo doc` would need another build of the dependencies.
#
#     RUSTDOC=$PWD/scripts/rustdoc-lints.sh cargo test --all-features --doc
set -euo pipefail

# Cargo runs it in the folder of the package.
root=$(realpath "$(dirname "$0")/..")
target=${CARGO_TARGET_DIR:-target}
[[ $target = /* ]] || target=$root/$target

given=() tests=false
while [ $# -gt 0 ]; do
    case $1 in
    --test) tests=true ;;
    --test-run-directory | --test-runtool | --test-runtool-arg | --test-args | --test-builder) shift ;;
    --test-run-directory=* | --test-args=*) ;;
    *) given+=("$1") ;;
    esac
    shift
done
# Cargo also asks for the version.
if [ "$tests" = true ]; then
    given+=(--out-dir "$target/doc")
    # Cargo hands flags of the user to rustdoc by itself only for documentation.
    read -ra flags <<<"${RUSTDOCFLAGS:-}"
    given+=("${flags[@]}")
fi
exec rustdoc "${given[@]}"
