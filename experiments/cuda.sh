#!/usr/bin/env bash
# Run the CUDA tests and the benchmarks on a machine with a GPU, and write the results to files.
# Usage: experiments/cuda.sh [STEP...]     (needs the package, numpyro and jax with CUDA)
# Without a STEP, all steps run. Each gets nine minutes, and is left out if its result exists: repeat the command to go on.
# OUT is the folder of the results, PYTHON the interpreter.
set -u
cd "$(dirname "$0")/.."
out=${OUT:-experiments/results/cuda}
python=${PYTHON:-python}
asked=" $* "
names=
export XLA_PYTHON_CLIENT_PREALLOCATE=false
mkdir -p "$out"

# step NAME RESULT ARGUMENTS...: run Python with ARGUMENTS, unless RESULT exists or another step is asked for.
step() {
    local name=$1 result=$out/$2
    shift 2
    names="$names $name"
    [[ $asked = "  " || $asked = *" $name "* ]] || return 0
    if [ -e "$result" ]; then
        echo "$name: left out, $result exists"
        return
    fi
    timeout --kill-after=10 530 "$python" "$@" >"$out/$name.log" 2>&1
    echo "$name: exit $?, the last lines of $out/$name.log:"
    tail -n 5 "$out/$name.log"
}

# benchmark NAME TASK RESULT OPTIONS...: each has its own folder, because a result is named after its task.
benchmark() {
    local name=$1 task=$2 result=$3
    shift 3
    step "$name" "$name/$result" experiments/benchmark.py "$task" --device cuda --out "$out/$name" "$@"
}

ours="pyro_vae, compiled"
step tests tests.xml -m pytest -q tests/test_cuda.py -k "not compiled" --junitxml "$out/tests.xml"
step tests-compiled tests-compiled.xml -m pytest -q tests/test_cuda.py -k compiled --junitxml "$out/tests-compiled.xml"
benchmark train train train-cuda.json --rounds 5 --contestants "$ours" "pyro_vae, compiled, bf16" "Pyro SVI" \
    "NumPyro, jitted epoch" "PyTorch by hand, compiled" "matrix products alone"
benchmark static train train-cuda.json --rounds 5 --contestants "$ours" "pyro_vae, compiled, static" \
    "NumPyro, jitted epoch, static"
benchmark engines train train-cuda.json --rounds 3 --contestants "$ours" "pyro_vae, traced" "pyro_vae, eager" \
    "Pyro SVI, validation off" "Pyro SVI, JitTrace_ELBO" "PyTorch by hand"
benchmark evaluate evaluate evaluate-cuda.json --rounds 3
benchmark scaling scaling scaling-cuda.json
benchmark profile profile profile-cuda.txt

for name in $asked; do
    [[ "$names " = *" $name "* ]] || { echo "unknown step $name; the steps are$names" >&2; exit 2; }
done
