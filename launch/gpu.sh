#!/usr/bin/env bash
# Runs one experiment on this machine's NVIDIA GPUs: launch/gpu.sh [--dry-run] CONFIG [SBP_ARGS...]
# Makes .venv-gpu from requirements-cuda.txt (CUDA 13 comes with it; the driver has to be there, 580 or newer).
# Run again after an interruption, it goes on where it stopped. PYTHON=python3.12 chooses the interpreter.
set -euo pipefail

usage() {
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
}

dry_run=0
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=1 ;;
    -h | --help) usage ;;
    -*) echo "unknown option $1" >&2; usage ;;
    *) break ;;
  esac
  shift
done
[ $# -ge 1 ] || usage

# Quoted for the shell only where it needs to be, so that the printed commands can be read and pasted.
show() {
  local argument line=""
  for argument in "$@"; do
    [[ $argument =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]] || argument="'${argument//\'/\'\\\'\'}'"
    line+="$argument "
  done
  echo "${line% }"
}

run() { if [ "$dry_run" -eq 1 ]; then show "$@"; else "$@"; fi; }

config=$1
shift
cd "$(dirname "$0")/.."
if [ ! -f "$config" ]; then
  echo "there is no config $config in $PWD; those there are: $(echo configs/*.py)" >&2
  exit 2
fi
if [ "$dry_run" -eq 0 ] && ! command -v nvidia-smi >/dev/null; then
  echo "nvidia-smi is not on the path: this machine has no NVIDIA driver. On a CPU: make quickstart" >&2
  exit 2
fi

venv=.venv-gpu
python=$venv/bin/python
install=("$python" -m pip install --quiet --disable-pip-version-check)

[ -x "$python" ] || run "${PYTHON:-python3}" -m venv "$venv"
run "${install[@]}" -r requirements-cuda.txt
run "${install[@]}" --no-deps --require-hashes -r requirements-embedder.txt
run "${install[@]}" --no-deps -e .
# Naming the platform makes a GPU that cannot be used an error; left alone, JAX would go on with the CPU.
run env JAX_PLATFORMS=cuda,cpu "$venv/bin/sbp" run "$config" "$@"
