# shellcheck shell=bash
# What the launchers share; sourced, from whatever folder they are called. It goes to the root of the repository, from
# which every path on their command lines counts.

usage_text=$(awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0") # before the path in $0 loses its meaning
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

usage() {
  echo "$usage_text" >&2
  exit 2
}

fail() {
  echo "$1" >&2
  exit 2
}

# Quoted for the shell only where it needs to be, so that the printed commands can be read and pasted.
show() {
  local argument line=""
  for argument in "$@"; do
    [[ $argument =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || argument="'${argument//\'/\'\\\'\'}'"
    line+="$argument "
  done
  echo "${line% }"
}

dry_run=0
run() { if [ "$dry_run" -eq 1 ]; then show "$@"; else "$@"; fi; }

demand_config() {
  [ -f "$1" ] || fail "there is no config $1 in $PWD; those there are: $(echo configs/*.py)"
}

demand_number() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 is $2; it must be a number above 0"
}

# The environment of gpu.sh and slurm.sh. CUDA 13 comes with it; the driver has to be there, 580 or newer.
gpu_venv=.venv-gpu
make_gpu_environment() {
  local python=$gpu_venv/bin/python
  local install=("$python" -m pip install --quiet --disable-pip-version-check)
  [ -x "$python" ] || run "${PYTHON:-python3}" -m venv "$gpu_venv"
  run "${install[@]}" -r requirements-cuda.txt
  run "${install[@]}" --no-deps --require-hashes -r requirements-embedder.txt
  run "${install[@]}" --no-deps -e .
}

# Of `sbp run` on GPUs. Naming the platform makes a GPU that cannot be used an error; left alone, JAX would go on with
# the CPU. What takes seconds to compile is kept, so that a run that goes on does not compile it again.
# shellcheck disable=SC2034 # the scripts that source this use it
gpu_settings=(
  "JAX_PLATFORMS=cuda,cpu"
  "JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/runs/compile-cache}"
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=2
)
