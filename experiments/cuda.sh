#!/usr/bin/env bash
# Run the CUDA tests and all benchmarks on a machine with a GPU, and write the results to files.
# Usage: experiments/cuda.sh [OUT]     (ten minutes; needs the package, numpyro and jax with CUDA)
set -u
cd "$(dirname "$0")/.."
out=${1:-experiments/results}
python=${PYTHON:-python}
mkdir -p "$out"
$python -m pytest -q tests/test_cuda.py --junitxml "$out/test_cuda.xml" >"$out/test_cuda.log" 2>&1
echo "CUDA tests: exit $?"
tail -n 5 "$out/test_cuda.log"
export XLA_PYTHON_CLIENT_PREALLOCATE=false
$python experiments/benchmark.py train --device cuda --rounds 5 --out "$out"
$python experiments/benchmark.py evaluate --device cuda --rounds 3 --out "$out"
$python experiments/benchmark.py scaling --device cuda --out "$out"
$python experiments/benchmark.py profile --device cuda --out "$out"
