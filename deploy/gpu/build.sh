#!/usr/bin/env bash
# Builds everything that the GPU checks run, with CUDA: server, load generator, the step bench of the trainers, and the maker
# of random checkpoints. Wants a GPU neither here nor now; the compiler is CUDA's own, or that of toolkit.sh.
# usage: deploy/gpu/build.sh [FOLDER]      FOLDER: where the programs go, dist/bin by default
#   FEATURES (cuda)            cuda, or cuda,flash-attn, or cuda,cudnn; "" builds for the CPU
#   CUDA_COMPUTE_CAP (90)      the GPU: 80 A100, 86 RTX 30, 89 RTX 40 and L4, 90 H100 and H200
#   CARGO_TARGET_DIR           give the CUDA build one of its own, or cargo builds both anew each time
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$(realpath -m "${1:-dist/bin}")
features=${FEATURES-cuda}
if [[ $features == *cuda* ]] && ! command -v nvcc >/dev/null; then
    eval "$(deploy/gpu/toolkit.sh)"
fi
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}

# The service's features are cuda, cudnn, flash-attn, metal.
flags=()
for feature in ${features//,/ }; do flags+=(--features "expandr/$feature"); done
# One command, so that all four share one build of their dependencies.
cargo build --release --locked "${flags[@]}" -p expandr -p expandr-loadtest -p expandr-models -p expandr-training \
    --bin expandr --bin expandr-loadtest --example step_bench --example random_llama

target=$(cargo metadata --no-deps --format-version 1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
mkdir -p "$out"
install "$target"/release/expandr "$target"/release/expandr-loadtest "$target"/release/examples/step_bench \
    "$target"/release/examples/random_llama "$out"
for program in "$out"/*; do
    echo "$program needs: $(readelf -d "$program" | grep -oE '\[lib[a-z]+\.so[^]]*' | tr -d '[' | tr '\n' ' ')"
done
