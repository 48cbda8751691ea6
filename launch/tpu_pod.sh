#!/usr/bin/env bash
# Runs one experiment on a Cloud TPU of one host or many, every worker with the same code:
#   launch/tpu_pod.sh --name NAME --zone ZONE --type TYPE [OPTIONS] CONFIG [SBP_ARGS...]
#     --type TYPE        accelerator type, such as v6e-8, v6e-64, v5litepod-64, v5p-128 or v4-32
#     --create           ask for the TPU first, as a queued resource; without it, NAME has to exist
#     --spot             ask for one that is cheaper and can be taken away
#     --retries N        go on up to N times (5) when the TPU is taken away (with --create) or the run stands still
#     --bucket BUCKET    keep runs/, with the compile cache, in this bucket; wanted with --spot and by several hosts
#     --version VERSION  software of a new TPU; chosen by the type when left out
#     --project PROJECT  gcloud's own when left out
#     --dry-run          print the commands and run none
# Ships the committed state of the repository, installs requirements-tpu.txt and starts `sbp run` on every worker, where
# it outlives this script. Each worker's output is in ~/logs there and in runs/logs/NAME/worker-I.log here. In the
# arguments of sbp, gcs/BUCKET/... is what the bucket holds. Run again, it stops what still runs there, ships anew and
# goes on where that stopped. A program that fails otherwise is not started again. docs/launching.md says more.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" zone="" type="" version="" project="" bucket="" retries=5 create=0 spot=0
while [ $# -gt 0 ]; do
  case $1 in
    --name | --zone | --type | --version | --project | --bucket | --retries)
      [ $# -ge 2 ] || fail "$1 wants a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --create) create=1 ;;
    --spot) spot=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage ;;
    -*) fail "unknown option $1 before the config; launch/tpu_pod.sh --help lists those there are" ;;
    *) break ;;
  esac
  shift
done
if [ -z "$name" ] || [ -z "$zone" ] || [ -z "$type" ] || [ $# -lt 1 ]; then usage; fi
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries is $retries; it must be a number"
[ "$spot" -eq 0 ] || [ "$create" -eq 1 ] || fail "--spot says what to ask for; it wants --create, which asks"

case $type in
  v2-* | v3-* | v4-*) default_version="tpu-ubuntu2204-base" ;;
  v5litepod-*) default_version=v2-alpha-tpuv5-lite ;;
  v5p-*) default_version=v2-alpha-tpuv5 ;;
  v6e-*) default_version=v2-alpha-tpuv6e ;;
  *) fail "$type is no type known here; known are v2-N, v3-N, v4-N, v5litepod-N, v5p-N and v6e-N" ;;
esac
demand_number "the N of --type $type" "${type##*-}"
# N counts cores up to v4 and in v5p (a host has 8), chips in v5e and v6e (a host has up to 8, in larger types 4).
several=$((${type##*-} > 8))

bucket=${bucket#gs://}
bucket=${bucket%/}
[[ $bucket != */* ]] || fail "--bucket is $bucket; give the bucket alone, runs/ is made in it"
if [ -z "$bucket" ] && { [ "$several" -eq 1 ] || [ "$spot" -eq 1 ]; } && [[ " $* " != *" --workdir"* ]]; then
  fail "several hosts share their work folder, and that of a spot TPU has to outlive it: give --bucket BUCKET, or \
after the config --workdir with a folder that is mounted on every worker"
fi

config=$1
shift
git cat-file -e "HEAD:$config" 2>/dev/null || fail "$config is not in the last commit, and only commits are shipped: \
give a path from the root of the repository, and commit it"
[ -z "$(git status --porcelain)" ] || echo "note: changes that are not committed are not shipped" >&2

where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")
tpu=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)
poll=${SBP_POLL_SECONDS:-15}
workers=1
stalled=75 # the status of a run that stood still

scratch=$(mktemp -d)
finish() {
  local job
  for job in $(jobs -p); do kill "$job" 2>/dev/null || true; done
  rm -rf "$scratch"
  if [ "$create" -eq 1 ]; then
    echo "# it costs money until: $(show "${queue[@]}" delete "$name" "${where[@]}" --force)"
  fi
}
trap finish EXIT

say() { echo "$(date +%T) $1" >&2; }
queue_state() { run "${queue[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'; }
node_state() { "${tpu[@]}" describe "$name" "${where[@]}" '--format=value(state)'; }
on_workers() { run "${tpu[@]}" ssh "$name" "${where[@]}" --worker="$1" --command="$2" </dev/null; }
worker() { show sbp_jax/launch/worker.sh "$@"; }

# Asks for the TPU unless it was asked for before, and waits for it; fails when it is not granted.
obtain() {
  local state="" asked=("${queue[@]}" create "$name" --node-id="$name" "${where[@]}" --accelerator-type="$type"
    --runtime-version="${version:-$default_version}")
  [ "$spot" -eq 0 ] || asked+=(--spot)
  if [ "$dry_run" -eq 1 ]; then
    run "${asked[@]}"
    queue_state
    return
  fi
  state=$(queue_state 2>/dev/null) || "${asked[@]}" || return
  while [ "$state" != ACTIVE ]; do
    state=$(queue_state) || return
    say "$name is $state"
    case $state in
      ACTIVE) ;;
      FAILED | SUSPENDING | SUSPENDED) return 1 ;;
      *) sleep "$poll" ;;
    esac
  done
}

# Sees that the TPU is what was named, and counts its workers by their addresses.
examine() {
  local found describe=("${tpu[@]}" describe "$name" "${where[@]}"
    '--format=value(acceleratorType,networkEndpoints[].ipAddress)')
  if [ "$dry_run" -eq 1 ]; then
    run "${describe[@]}"
    return
  fi
  found=$("${describe[@]}") || return
  workers=$(grep -oE '[0-9]+(\.[0-9]+){3}' <<<"$found" | wc -l)
  found=${found%%[[:space:]]*}
  [ "${found##*/}" = "$type" ] || fail "$name is a ${found##*/}, not a $type"
  [ "$workers" -gt 0 ] || fail "$name has no workers; look at: $(show "${tpu[@]}" describe "$name" "${where[@]}")"
}

# A checkout over the old one leaves .venv, runs/ and gcs/ alone.
checkout="set -e; mkdir -p sbp_jax; cd sbp_jax; git init --quiet; git fetch --quiet ~/sbp_jax.bundle HEAD
git checkout --quiet --force --detach FETCH_HEAD"
ship() {
  run "${tpu[@]}" scp "$scratch/sbp_jax.bundle" "$name:" "${where[@]}" --worker=all &&
    on_workers all "$checkout" &&
    on_workers all "$(worker install)" &&
    { [ -z "$bucket" ] || on_workers all "$(worker mount "$bucket")"; }
}

# Naming the platform makes a TPU that cannot be used an error; left alone, JAX would go on with the CPU.
settings=("JAX_PLATFORMS=tpu,cpu" JAX_COMPILATION_CACHE_DIR=runs/compile-cache
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=2)
[ "$several" -eq 0 ] || settings+=(SBP_DISTRIBUTED=auto)

# Worker 0 speaks here, the others in their files. One connection for each: gcloud would mix what all of them print.
follow() {
  if [ "$dry_run" -eq 1 ]; then
    on_workers "$1" "$2"
    echo "# and so for every other worker"
    return
  fi
  local log="runs/logs/$name/worker-$1.log"
  if [ "$1" -eq 0 ]; then on_workers "$1" "$2" 2>&1 | tee -a "$log"; else on_workers "$1" "$2" >>"$log" 2>&1; fi
}

# Starts the program everywhere before it follows any, because the processes wait for one another.
work() {
  local run_name status=0 code index followers=() follower
  run_name=$name-$(date +%Y%m%d-%H%M%S)-$RANDOM
  on_workers all "$(worker start "$run_name" env "${settings[@]}" .venv/bin/sbp run "$config" "$@")" || return
  for ((index = 0; index < workers; index++)); do
    follow "$index" "$(worker follow "$run_name")" &
    followers+=($!)
  done
  for follower in "${followers[@]}"; do
    wait "$follower" || { code=$?; if [ "$status" -eq 0 ] || [ "$code" -eq "$stalled" ]; then status=$code; fi; }
  done
  return "$status"
}

attempt() { { [ "$create" -eq 0 ] || obtain; } && examine && ship && work "$@"; }

# Whether the TPU was taken away; a while can pass between the broken connection and the news of why. A question that
# gets no answer is no reason to delete anything.
taken_away() {
  local state
  for _ in {1..8}; do
    state="$(queue_state 2>/dev/null || true) $(node_state 2>/dev/null || true)"
    case $state in
      *SUSPENDING* | *SUSPENDED* | *FAILED* | *PREEMPTED* | *TERMINATED*) return 0 ;;
    esac
    sleep "$poll"
  done
  return 1
}

[ "$dry_run" -eq 1 ] || mkdir -p "runs/logs/$name"
run git bundle create --quiet "$scratch/sbp_jax.bundle" HEAD
until attempt "$@"; do
  status=$?
  logs="runs/logs/$name/worker-*.log"
  if [ "$status" -eq "$stalled" ] && [ "$retries" -gt 0 ]; then
    retries=$((retries - 1))
    say "the run stood still, the stacks are in $logs; starting it again ($retries retries left)"
    continue
  fi
  if ! taken_away; then
    say "it ended with status $status and $name is still there; the reason is above or in $logs"
    exit "$status"
  fi
  [ "$create" -eq 1 ] || fail "$name was taken away; with --create a new one would be asked for"
  [ "$retries" -gt 0 ] || fail "$name was taken away or not granted, and no retries are left; the same command goes on"
  retries=$((retries - 1))
  say "$name was taken away; asking for it again ($retries retries left)"
  "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
done

if [ -n "$bucket" ]; then
  echo "# the results are in gs://$bucket/runs"
else
  echo "# the results: $(show "${tpu[@]}" scp --recurse "$name:sbp_jax/runs" . "${where[@]}" --worker=0)"
fi
