#!/usr/bin/env bash
# Runs one experiment on a Cloud TPU of one host:
#   launch/tpu_pod.sh --name NAME --zone ZONE --type TYPE [--create] [--version VERSION] [--dry-run] CONFIG [SBP_ARGS...]
#     --type     accelerator type of one host, such as v6e-8, v5litepod-8, v5p-8 or v4-8
#     --create   ask for the TPU first, as a queued resource; without it, NAME has to exist
#     --version  software of a new TPU; chosen by the type when left out
#     --dry-run  print every command and run none
# Ships the committed state of the repository, installs requirements-tpu.txt, runs `sbp run` on every worker and keeps
# each worker's output in logs/ there, and all of it in runs/logs/ here. Run again after an interruption, it goes on
# where it stopped. Types of several hosts are refused: `sbp run` is one process, and multi-host runs are not yet supported.
set -euo pipefail

usage() {
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

fail() {
  echo "$1" >&2
  exit 2
}

name="" zone="" type="" version="" create=0 dry_run=0
while [ $# -gt 0 ]; do
  case $1 in
    --name | --zone | --type | --version)
      [ $# -ge 2 ] || fail "$1 wants a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --create) create=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage ;;
    -*) fail "unknown option $1; launch/tpu_pod.sh --help lists those there are" ;;
    *) break ;;
  esac
  shift
done
if [ -z "$name" ] || [ -z "$zone" ] || [ -z "$type" ] || [ $# -lt 1 ]; then usage; fi

case $type in # the number counts cores up to v4 and in v5p (4 chips a host), chips in v5e and v6e (up to 8 a host)
  v2-8 | v3-8 | v4-8) default_version="tpu-ubuntu2204-base" ;;
  v5litepod-1 | v5litepod-4 | v5litepod-8) default_version="v2-alpha-tpuv5-lite" ;;
  v5p-8) default_version="v2-alpha-tpuv5" ;;
  v6e-1 | v6e-4 | v6e-8) default_version="v2-alpha-tpuv6e" ;;
  *) fail "$type is not a type of one host, and multi-host runs are not yet supported; take one of v2-8, v3-8, v4-8, v5litepod-{1,4,8}, v5p-8, v6e-{1,4,8}" ;;
esac

config=$1
shift
cd "$(dirname "$0")/.."
git cat-file -e "HEAD:$config" 2>/dev/null || fail "$config is not in the last commit, and only commits are shipped: give a path from the root of the repository, and commit it"
[ -z "$(git status --porcelain)" ] || echo "note: changes that are not committed are not shipped" >&2

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

tpu=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)

on_workers() { run "${tpu[@]}" ssh "$name" --zone="$zone" --worker=all --command="$1"; }

wait_until_active() {
  local state=""
  if [ "$dry_run" -eq 1 ]; then show "${queue[@]}" describe "$name" --zone="$zone" '--format=value(state.state)'; return; fi
  while [ "$state" != ACTIVE ]; do
    state=$("${queue[@]}" describe "$name" --zone="$zone" '--format=value(state.state)')
    echo "$(date +%T) $name is $state"
    case $state in
      ACTIVE) ;;
      FAILED | SUSPENDING | SUSPENDED) fail "$name was not granted; look at: ${queue[*]} describe $name --zone=$zone" ;;
      *) sleep 30 ;;
    esac
  done
}

if [ "$create" -eq 1 ]; then
  run "${queue[@]}" create "$name" --node-id="$name" --zone="$zone" --accelerator-type="$type" --runtime-version="${version:-$default_version}"
  wait_until_active
elif [ "$dry_run" -eq 1 ]; then
  run "${tpu[@]}" describe "$name" --zone="$zone" '--format=value(acceleratorType)'
else
  found=$("${tpu[@]}" describe "$name" --zone="$zone" '--format=value(acceleratorType)')
  [ "${found##*/}" = "$type" ] || fail "$name is a ${found##*/}, not a $type"
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
run git bundle create --quiet "$scratch/sbp_jax.bundle" HEAD
run "${tpu[@]}" scp "$scratch/sbp_jax.bundle" "$name:" --zone="$zone" --worker=all

# A checkout over the old one leaves runs/ alone, so that a second run resumes.
on_workers "$(
  cat <<'REMOTE'
set -e
mkdir -p sbp_jax logs
cd sbp_jax
git init --quiet
git fetch --quiet ~/sbp_jax.bundle HEAD
git checkout --quiet --force --detach FETCH_HEAD
REMOTE
)"

# The system's Python of these images can be older than 3.11; uv, from the package index, then fetches another.
on_workers "$(
  cat <<'REMOTE'
set -e
cd sbp_jax
if [ ! -x .venv/bin/python ]; then
  python=$(command -v python3.12 || command -v python3.11 || true)
  if [ -z "$python" ] || ! "$python" -m venv .venv; then
    rm -rf .venv
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --seed --python 3.12 .venv
  fi
fi
install=".venv/bin/python -m pip install --quiet --disable-pip-version-check"
$install -r requirements-tpu.txt
$install --no-deps --require-hashes -r requirements-embedder.txt
$install --no-deps -e .
REMOTE
)"

# Naming the platform makes a TPU that cannot be used an error; left alone, JAX would go on with the CPU.
command=$(show env JAX_PLATFORMS=tpu,cpu .venv/bin/sbp run "$config" "$@")
remote="set -o pipefail; cd sbp_jax; $command 2>&1 | tee -a ~/logs/\$(hostname).log"
if [ "$dry_run" -eq 1 ]; then
  on_workers "$remote"
else
  mkdir -p runs/logs
  on_workers "$remote" | tee -a "runs/logs/$name.log"
fi

echo "# the results:      ${tpu[*]} scp --recurse $name:sbp_jax/runs . --zone=$zone --worker=0"
if [ "$create" -eq 1 ]; then
  echo "# it costs money until: ${queue[*]} delete $name --zone=$zone --force"
fi
