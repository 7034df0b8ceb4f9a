#!/bin/bash
# Builds, checks and times the CUDA backend on a machine with a GPU and nvcc, in about ten minutes. Results go to the folder
# given; tools/bench/collect_gpu.py puts them into the result files. With the package installed there with CUDA, its engines
# are tested too. Run from a checkout:
#   tools/h200_check.sh OUT [MODEL.gguf]
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?folder for the results} model=${2:-}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1 > "$out/device.txt"
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
cmake -S . -B build-cuda -DCMAKE_BUILD_TYPE=Release -DPYKVQ_PYTHON=OFF -DPYKVQ_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="${arch/#90/90a}-real" > "$out/configure.log" 2>&1
cmake --build build-cuda -j"$(nproc)" --target kvq_cuda_check pykvq_cuda > "$out/build.log" 2>&1 ||
    { tail -20 "$out/build.log"; exit 1; }
check=build-cuda/native/cuda/kvq_cuda_check
failed=0

run() { # seconds it may take, file for the output, command
    local seconds=$1 file=$out/$2
    shift 2
    timeout "$seconds" "$@" > "$file" 2>&1 || { failed=1; echo "FAILED ($?): $*"; }
    tail -1 "$file"
}

for head_dim in 64 128 80 256 16 32 96 112; do # the two that most models have first
    run 120 "kv_$head_dim.txt" "$check" kv "$head_dim"
done
run 60 product.txt "$check" product
if command -v compute-sanitizer > /dev/null; then
    run 90 memcheck.txt compute-sanitizer --tool memcheck --error-exitcode 9 "$check" kv 16
    run 90 memcheck_wgmma.txt compute-sanitizer --tool memcheck --error-exitcode 9 "$check" kv 128 kivi2
    for kv in f16 kivi2 tier2; do # all pairs take too long
        run 90 "racecheck_$kv.txt" compute-sanitizer --tool racecheck --error-exitcode 9 "$check" kv 64 "$kv"
    done
fi
if python3 -c 'import pykvq, pytest, gguf' 2> /dev/null; then
    run 240 engines.txt pytest -q -m cuda tests/cuda/test_cuda_engine.py tests/cuda/test_cuda_processes.py
fi

run 200 attend.jsonl "$check" attend
run 120 prefill.jsonl "$check" prefill
run 60 product_time.jsonl "$check" product time
run 60 linear.jsonl "$check" linear
if [ -n "$model" ]; then
    for kv in f16 q8_0 kivi2 turbo3 nvfp4; do
        run 60 "compare_$kv.txt" "$check" compare "$model" "$kv"
    done
    for kv in f16 kivi4 kivi2 kvarn2 turbo2; do
        run 90 "model_$kv.jsonl" "$check" model "$model" "$kv" 1 0 8192 32768 131072
        run 90 "model_${kv}_x32.jsonl" "$check" model "$model" "$kv" 32 8192
    done
fi
exit $failed
