#!/usr/bin/env bash
# What launch/tpu_pod.sh does on a worker of a TPU, shipped with the repository into ~/sbp_jax:
#   launch/worker.sh install             makes .venv from requirements-tpu.txt
#   launch/worker.sh mount BUCKET        mounts a bucket as gcs/BUCKET and keeps runs/ in it
#   launch/worker.sh start RUN COMMAND   starts a program that outlives the connection; its output is in ~/logs/RUN.log
#   launch/worker.sh follow RUN          prints that output until the program ends, and ends with its status
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
logs=$HOME/logs

fail() {
  echo "$(hostname): $1" >&2
  exit 2
}

# The system's Python of these images can be older than 3.11; uv, from the package index, then fetches another.
install() {
  if [ ! -x .venv/bin/python ]; then
    local python
    python=$(command -v python3.12 || command -v python3.11 || true)
    if [ -z "$python" ] || ! "$python" -m venv .venv; then
      rm -rf .venv
      python3 -m pip install --quiet --user uv
      ~/.local/bin/uv venv --quiet --seed --python 3.12 .venv
    fi
  fi
  local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" -r requirements-tpu.txt
  "${pip[@]}" --no-deps --require-hashes -r requirements-embedder.txt
  "${pip[@]}" --no-deps -e .
}

# Cached metadata would hide what another worker has written; folders are renamed when a checkpoint is complete.
mount_bucket() {
  local bucket=$1
  if ! command -v gcsfuse >/dev/null; then
    { sudo apt-get update && sudo apt-get install --yes gcsfuse; } >/dev/null ||
      fail "gcsfuse is not here and apt-get does not have it; install it as the manual of Cloud Storage FUSE says"
  fi
  mkdir -p "gcs/$bucket"
  mountpoint --quiet "gcs/$bucket" ||
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
      --rename-dir-limit=1000000 "$bucket" "gcs/$bucket"
  if [ -e runs ] && [ ! -L runs ]; then
    fail "sbp_jax/runs holds runs made without --bucket; move them away first"
  fi
  mkdir -p "gcs/$bucket/runs"
  ln -sfn "gcs/$bucket/runs" runs
}

# A process number can come back after a restart of the machine; the name of the run is on its command line.
running() { [ -f "$logs/$1.pid" ] && grep -qsF "$logs/$1" "/proc/$(cat "$logs/$1.pid")/cmdline"; }

stop() {
  local pid
  pid=$(cat "$logs/$1.pid")
  echo "$(hostname): stopping run $1, which saves a checkpoint first"
  kill -TERM -- "-$pid"
  timeout 600 tail --sleep-interval=0.2 --pid="$pid" -f /dev/null || kill -KILL -- "-$pid"
}

start() {
  local run=$1 earlier
  shift
  mkdir -p "$logs"
  earlier=$(cat "$logs/latest" 2>/dev/null || true)
  # gcloud repeats a command whose connection broke: a run is started once.
  if [ "$earlier" = "$run" ]; then return; fi
  if [ -n "$earlier" ] && running "$earlier"; then stop "$earlier"; fi
  # A trap, unlike ignoring it, leaves SIGTERM to the program and lets this shell live to write down how it ended.
  # shellcheck disable=SC2016 # the inner shell's own arguments
  setsid bash -c 'trap : TERM; status=0; "$@" || status=$?; echo "$status" >"$0.status"' "$logs/$run" "$@" \
    >"$logs/$run.log" 2>&1 </dev/null &
  echo $! >"$logs/$run.pid"
  echo "$run" >"$logs/latest"
}

follow() {
  tail --lines=+1 --sleep-interval=0.2 --pid="$(cat "$logs/$1.pid")" -f "$logs/$1.log"
  [ -f "$logs/$1.status" ] || fail "run $1 was killed; the end of its output is above"
  exit "$(cat "$logs/$1.status")"
}

task=${1:-}
shift || true
case $task in
  install | start | follow) "$task" "$@" ;;
  mount) mount_bucket "$@" ;;
  *) fail "worker.sh knows install, mount, start and follow, not '$task'" ;;
esac
