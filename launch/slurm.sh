#!/usr/bin/env bash
# Submits one experiment to Slurm, one process a node with all the GPUs asked for there:
#   launch/slurm.sh [OPTIONS] CONFIG [SBP_ARGS...]
#     --nodes N           nodes, 1 when left out
#     --gpus-per-node G   1 when left out
#     --cpus-per-node C   8 for each GPU when left out
#     --time T            limit in Slurm's notation, such as 12:00:00; the cluster's own when left out
#     --partition P, --account A
#     --dry-run           print the commands and run none
# The repository, with runs/ in it, has to lie on a file system that all nodes share; .venv-gpu is made there, once.
# Two minutes before the limit the run saves a checkpoint, and the job queues itself again. The logs of each node are in
# runs/logs/CONFIG/. What else sbatch takes, it reads from the environment: SBATCH_QOS=high launch/slurm.sh ...
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes=1 gpus_per_node=1 cpus_per_node="" limits=(--requeue)
while [ $# -gt 0 ]; do
  case $1 in
    --nodes | --gpus-per-node | --cpus-per-node)
      [ $# -ge 2 ] || fail "$1 wants a number"
      demand_number "$1" "$2"
      variable=${1#--}
      printf -v "${variable//-/_}" '%s' "$2"
      shift
      ;;
    --time | --partition | --account)
      [ $# -ge 2 ] || fail "$1 wants a value"
      limits+=("$1=$2")
      shift
      ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage ;;
    -*) fail "unknown option $1 before the config; launch/slurm.sh --help lists those there are" ;;
    *) break ;;
  esac
  shift
done
[ $# -ge 1 ] || usage
config=$1
shift
demand_config "$config"
if [ "$dry_run" -eq 0 ] && ! command -v sbatch >/dev/null; then
  fail "sbatch is not on the path: call this on a machine that submits to Slurm, or see --dry-run"
fi

make_gpu_environment
name=$(basename "$config" .py)
run mkdir -p "runs/logs/$name" # Slurm drops the output of a job whose folder is missing
# Without a B: before TERM, Slurm signals the processes of the step and leaves the batch shell alone, which requeues.
run sbatch --job-name="sbp-$name" --chdir="$PWD" --output="runs/logs/$name/%j.log" --open-mode=append \
  --signal=TERM@120 --nodes="$nodes" --ntasks-per-node=1 --gpus-per-node="$gpus_per_node" \
  --cpus-per-task="${cpus_per_node:-$((8 * gpus_per_node))}" "${limits[@]}" launch/slurm_job.sh "$config" "$@"
echo "# what it says: tail -F runs/logs/$name/*.log"
