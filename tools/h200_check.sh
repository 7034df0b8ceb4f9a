#!/bin/bash
# Builds, checks and times the CUDA backend on a machine with a GPU and nvcc, in less than ten minutes. Results go to the
# folder given. Run from a checkout: tools/h200_check.sh OUT [MODEL.gguf]
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?folder for the results} model=${2:-}
mkdir -p "$out"
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
cmake -S . -B build-cuda -DCMAKE_BUILD_TYPE=Release -DPYKVQ_PYTHON=OFF -DPYKVQ_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$arch-real" > "$out/configure.log" 2>&1
cmake --build build-cuda -j"$(nproc)" --target kvq_cuda_check pykvq_cuda > "$out/build.log" 2>&1 || exit 1
check=build-cuda/native/cuda/kvq_cuda_check
failed=0
for head_dim in 64 128 80 256 16 32 96 112; do # the two that most models have first
    timeout 120 "$check" kv "$head_dim" > "$out/kv_$head_dim.txt" 2>&1 || failed=1
    tail -1 "$out/kv_$head_dim.txt"
done
timeout 120 "$check" product > "$out/product.txt" 2>&1 || failed=1
tail -1 "$out/product.txt"
for tool in memcheck racecheck; do
    command -v compute-sanitizer > /dev/null || continue
    timeout 90 compute-sanitizer --tool "$tool" --error-exitcode 9 "$check" kv 16 > "$out/$tool.txt" 2>&1 || failed=1
    tail -1 "$out/$tool.txt"
done
if [ -n "$model" ]; then
    for kv in f16 q8_0 kivi2 turbo3 nvfp4; do
        timeout 60 "$check" compare "$model" "$kv" || failed=1
    done | tee "$out/compare.txt"
fi
timeout 200 "$check" attend > "$out/attend.jsonl" 2> "$out/attend.log"
cat "$out/attend.jsonl"
timeout 100 "$check" product time | tee "$out/product.jsonl"
exit $failed
