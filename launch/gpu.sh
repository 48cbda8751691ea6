#!/usr/bin/env bash
# Runs one experiment on all NVIDIA GPUs of this machine, in one process: launch/gpu.sh [--dry-run] CONFIG [SBP_ARGS...]
# Makes .venv-gpu from requirements-cuda.txt (CUDA 13 comes with it; the driver has to be there, 580 or newer).
# Compiled programs are kept in runs/compile-cache. Run again after an interruption, it goes on where it stopped.
# PYTHON=python3.12 chooses the interpreter, CUDA_VISIBLE_DEVICES=0,1 the GPUs; --dry-run prints the commands.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=1 ;;
    -h | --help) usage ;;
    -*) fail "unknown option $1 before the config; launch/gpu.sh --help lists those there are" ;;
    *) break ;;
  esac
  shift
done
[ $# -ge 1 ] || usage
config=$1
shift
demand_config "$config"
if [ "$dry_run" -eq 0 ] && ! command -v nvidia-smi >/dev/null; then
  fail "nvidia-smi is not on the path: this machine has no NVIDIA driver. On a CPU: make quickstart"
fi

make_gpu_environment
run env "${gpu_settings[@]}" "$gpu_venv/bin/sbp" run "$config" "$@"
