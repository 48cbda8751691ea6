#!/usr/bin/env bash
# The batch script that launch/slurm.sh submits, in the root of the repository: launch/slurm_job.sh CONFIG [SBP_ARGS...]
set -euo pipefail
source launch/common.sh # Slurm runs a copy of this file from elsewhere, so that its own place says nothing

name=$(basename "$1" .py)
settings=("${gpu_settings[@]}")
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  # Left alone, JAX takes Slurm's processes for one a GPU and would use the first GPU of each node.
  settings+=(SBP_DISTRIBUTED=auto "JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))")
fi

status=0
srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --open-mode=append \
  --output="runs/logs/$name/$SLURM_JOB_ID-node-%n.log" env "${settings[@]}" "$gpu_venv/bin/sbp" run "$@" || status=$?

# 143 is SIGTERM with the checkpoint saved. This shell gets none ahead of the time limit, and one from scancel, which
# ends it here and now: a cancelled job does not come back.
if [ "$status" -eq 143 ]; then
  echo "$(date +%FT%T) the time limit is near; the checkpoint is saved, and the job queues again"
  scontrol requeue "$SLURM_JOB_ID"
elif [ "$status" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ]; then # what stands still every time ends at last
  echo "$(date +%FT%T) the run stood still, its stacks are above; the job queues again, from the last checkpoint"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
