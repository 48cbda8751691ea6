"""The launchers: shellcheck, dry runs, what is refused, and whole runs against a pretended gcloud and Slurm."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = "configs/quickstart.py"
TPU = ["launch/tpu_pod.sh", "--name", "pod", "--zone", "zone-a", "--type"]
NOTE = 'note=it\'s a "test", $HOME ~ *\\ \nsecond line'

# Keeps the state of the TPU in $CLOUD: `queue` says what the queued resource is in, `worker-I` is a worker's home.
# Deleting the TPU loses its disks. What `ssh` is asked to run, runs in the worker's home.
GCLOUD = """#!/usr/bin/env bash
set -e
echo "${*//$'\\n'/ }" >>"$CLOUD/calls"
for argument; do
  case $argument in --command=*) command=${argument#--command=} ;; --worker=*) worker=${argument#--worker=} ;; esac
done
case "$*" in
  *"queued-resources create"*)
    ls "$CLOUD" | grep -q worker && exit 9
    for ((i = 0; i < WORKERS; i++)); do mkdir "$CLOUD/worker-$i"; done
    echo ACTIVE >"$CLOUD/queue" ;;
  *"queued-resources describe"*) cat "$CLOUD/queue" ;;
  *"queued-resources delete"*) rm -rf "$CLOUD"/worker-* "$CLOUD/queue" ;;
  *"tpu-vm describe"*"value(state)"*) grep -q ACTIVE "$CLOUD/queue" && echo READY || echo PREEMPTED ;;
  *"tpu-vm describe"*)
    echo -e "projects/p/locations/zone-a/acceleratorTypes/$TYPE\\t$(seq -f 10.0.0.%g -s ';' "$WORKERS")" ;;
  *"tpu-vm scp"*) for folder in "$CLOUD"/worker-*; do cp "$5" "$folder/"; sha1sum <"$5" >>"$CLOUD/shipped"; done ;;
  *"tpu-vm ssh"*)
    [ "$worker" = all ] && folders=("$CLOUD"/worker-*) || folders=("$CLOUD/worker-$worker")
    for folder in "${folders[@]}"; do (cd "$folder" && HOME=$folder bash -c "$command"); done ;;
  *) exit 9 ;;
esac
"""

# Stands for the worker's Python: `-m venv` makes an environment whose sbp says what it was asked to run, counts its
# runs in runs/, and ends as the test wants: by $SBP_STATUS, or with the TPU taken away the first $PREEMPTIONS times.
PYTHON = """#!/usr/bin/env bash
[ "$2" = venv ] || exit 0
mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
cat >"$3/bin/sbp" <<'SBP'
#!/usr/bin/env bash
printf '<%s>' sbp "$@"
echo " distributed=${SBP_DISTRIBUTED:-no} devices=${JAX_LOCAL_DEVICE_IDS:-} cache=${JAX_COMPILATION_CACHE_DIR:-}"
mkdir -p runs && echo >>"runs/times-$(basename "$HOME")"
if [ -n "${PREEMPTIONS:-}" ] && [ "$(grep -c "queued-resources create" "$CLOUD/calls")" -le "$PREEMPTIONS" ]; then
  echo SUSPENDED >"$CLOUD/queue"
  exit 143
fi
if [ -n "${SBP_SLEEPS:-}" ]; then
  trap 'echo saved >saved; exit 143' TERM
  for _ in {1..600}; do sleep 0.1; done
fi
exit "${SBP_STATUS:-0}"
SBP
chmod +x "$3/bin/sbp"
"""

# A mount is a link into $CLOUD/buckets, which outlives the workers.
GCSFUSE = """#!/usr/bin/env bash
bucket="${*: -2:1}" folder="${*: -1}"
mkdir -p "$CLOUD/buckets/$bucket"
[ -L "$folder" ] || { rmdir "$folder" && ln -s "$CLOUD/buckets/$bucket" "$folder"; }
"""

# Runs a copy of the batch script, as Slurm does, and runs it again as long as it asks for that.
SBATCH = """#!/usr/bin/env bash
set -e
printf '%s\\n' "$@" >"$CLOUD/sbatch"
while [[ $1 == --* ]]; do
  case $1 in
    --chdir=*) cd "${1#*=}" ;;
    --nodes=*) export SLURM_JOB_NUM_NODES=${1#*=} ;;
    --gpus-per-node=*) export SLURM_GPUS_ON_NODE=${1#*=} ;;
    --cpus-per-task=*) export SLURM_CPUS_PER_TASK=${1#*=} ;;
    --output=*) output=${1#*=} ;;
  esac
  shift
done
cp "$1" "$CLOUD/slurm_script"
shift
[ -d "$(dirname "$output")" ]
until
  rm -f "$CLOUD/requeue"
  SLURM_JOB_ID=7 bash "$CLOUD/slurm_script" "$@" >>"${output//%j/7}" 2>&1 || true
  [ ! -e "$CLOUD/requeue" ]
do export SBP_STATUS=0; done
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do case $1 in --output=*) output=${1#*=} ;; esac; shift; done
for ((i = 0; i < SLURM_JOB_NUM_NODES; i++)); do "$@" >>"${output//%n/$i}" 2>&1 || status=$?; done
exit "${status:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = "requeue 7" ] && touch "$CLOUD/requeue"
"""
PRETENDED = {
    "gcloud": GCLOUD,
    "python3.12": PYTHON,
    "gcsfuse": GCSFUSE,
    "sbatch": SBATCH,
    "srun": SRUN,
    "scontrol": SCONTROL,
    "nvidia-smi": "#!/bin/sh\n",
}


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a TPU of three workers and a Slurm cluster, behind commands that reach no further."""
    if sys.platform != "linux":
        pytest.skip("the workers of TPUs and the nodes of Slurm clusters run Linux, and so does what runs there")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in PRETENDED.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    folder = tmp_path / "cloud"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    for name, value in {"CLOUD": str(folder), "WORKERS": "3", "TYPE": "v6e-64", "SBP_POLL_SECONDS": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHON", "python3.12")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of one commit to launch from, so that neither this one's state nor its runs/ matter."""
    folder = tmp_path / "repository"
    for name in (*(str(path.relative_to(ROOT)) for path in ROOT.glob("launch/*.sh")), CONFIG, ".gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text())
        (folder / name).chmod((ROOT / name).stat().st_mode)
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=launch"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.fixture
def existing(cloud: Path) -> Path:
    """The TPU is there already, made without a queued resource."""
    for worker in range(3):
        (cloud / f"worker-{worker}").mkdir()
    (cloud / "queue").write_text("ACTIVE\n")
    return cloud


def launch(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


def commands(text: str) -> list[list[str]]:
    """The commands of a dry run as argument lists, without its remarks; quoted arguments may span lines."""
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("# "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " ", True, ""
    found: list[list[str]] = [[]]
    for token in lexer:
        if set(token) == {"\n"}:
            found.append([])
        else:
            found[-1].append(token)
    return [command for command in found if command]


def calls(cloud: Path, part: str) -> list[str]:
    return [line for line in (cloud / "calls").read_text().splitlines() if part in line]


def test_shell_scripts_pass_shellcheck() -> None:
    """Guards against words that split and globs that expand, in scripts that spend money."""
    shellcheck = Path(sys.executable).parent / "shellcheck"
    scripts = [*sorted(map(str, ROOT.glob("launch/*.sh"))), ".ci/run", ".ci/lock"]
    assert len(scripts) >= 7
    done = subprocess.run([shellcheck, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_tpu_dry_run_prints_the_commands_in_order_and_runs_none(cloud: Path, repository: Path) -> None:
    """Guards against a command out of order, an argument mangled by two shells, and a dry run that costs money."""
    options = ("--create", "--spot", "--project", "p", "--bucket", "gs://mine/", "--dry-run")
    done = launch(*TPU, "v5p-128", *options, CONFIG, "--set", NOTE, folder=repository)
    assert done.returncode == 0, done.stderr
    printed = commands(done.stdout)
    assert printed.pop(0)[:3] == ["git", "bundle", "create"]
    assert all(command[0] == "gcloud" and "--project=p" in command for command in printed)
    assert [command[4] for command in printed] == "create describe describe scp ssh ssh ssh ssh ssh".split()
    assert {"--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--spot"} <= set(printed[0])
    assert all("--worker=all" in command for command in printed[3:-1])
    told = [command[-1].removeprefix("--command=") for command in printed[5:]]
    assert [command.split()[1] for command in told] == ["install", "mount", "start", "follow"]
    assert told[1].endswith(" mine") and "SBP_DISTRIBUTED=auto" in told[2]
    assert shlex.split(told[2])[-4:] == ["run", CONFIG, "--set", NOTE]
    assert not (cloud / "calls").exists() and not (repository / "runs").exists()


@pytest.mark.parametrize(
    ("type_", "version", "hosts"),
    [
        ("v4-8", "tpu-ubuntu2204-base", "one"),
        ("v4-32", "tpu-ubuntu2204-base", "several"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite", "one"),
        ("v5litepod-64", "v2-alpha-tpuv5-lite", "several"),
        ("v5p-8", "v2-alpha-tpuv5", "one"),
        ("v6e-8", "v2-alpha-tpuv6e", "one"),
        ("v6e-16", "v2-alpha-tpuv6e", "several"),
    ],
)
def test_tpu_type_decides_software_and_number_of_processes(repository: Path, type_: str, version: str, hosts: str):
    """Guards against eight hosts that each train their own model and are paid for."""
    done = launch(*TPU, type_, "--create", "--bucket", "b", "--dry-run", CONFIG, folder=repository)
    assert done.returncode == 0, done.stderr
    assert f"--runtime-version={version}" in done.stdout
    assert ("SBP_DISTRIBUTED=auto" in done.stdout) == (hosts == "several")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["v6e-8", "--flavour", "x", CONFIG], "unknown option --flavour"),
        (["h100", CONFIG], "h100 is no type known here"),
        (["v6e-many", CONFIG], "it must be a number"),
        (["v6e-16", CONFIG], "several hosts share their work folder"),
        (["v6e-8", "--create", "--spot", CONFIG], "has to outlive it: give --bucket"),
        (["v6e-8", "--spot", CONFIG], "--spot says what to ask for"),
        (["v6e-8", "--retries", "x", CONFIG], "--retries is x"),
        (["v6e-8", "--bucket", "gs://b/runs", CONFIG], "give the bucket alone"),
        (["v6e-8", "configs/quickstrat.py"], "not in the last commit"),
        (["v6e-8"], "--name NAME --zone ZONE"),
    ],
)
def test_tpu_refuses_what_cannot_work_before_it_costs_money(cloud, arguments: list[str], message: str) -> None:
    done = launch(*TPU, *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert not (cloud / "calls").exists()


def test_tpu_run_ships_installs_runs_and_resumes_on_every_worker(existing: Path, repository: Path) -> None:
    """Guards the scripts that run on the workers, and a second launch that would wipe what the first one finished."""
    for times in (1, 2):
        done = launch(*TPU, "v6e-64", CONFIG, "--workdir", "~/a", "--set", NOTE, "", folder=repository)
        assert done.returncode == 0, done.stderr
        said = f"<sbp><run><{CONFIG}><--workdir><~/a><--set><{NOTE}><> distributed=auto"
        assert done.stdout.count(said) == 1, "worker 0 alone speaks here"
        for worker in range(3):
            home = existing / f"worker-{worker}"
            assert (home / "sbp_jax" / CONFIG).exists()
            assert (home / f"sbp_jax/runs/times-worker-{worker}").read_text().count("\n") == times
            assert [said in log.read_text() for log in (home / "logs").glob("*.log")] == [True] * times
            assert (repository / f"runs/logs/pod/worker-{worker}.log").read_text().count(said) == times
    assert len(set((existing / "shipped").read_text().split())) <= 2 + 1, "one bundle for all workers of a launch"


def test_tpu_taken_away_is_asked_for_again_and_goes_on(cloud, repository: Path, monkeypatch) -> None:
    """Guards against a night lost to a preemption, and against a new TPU that starts from nothing."""
    monkeypatch.setenv("PREEMPTIONS", "2")
    asked = ("--create", "--spot", "--bucket", "mine")
    done = launch(*TPU, "v6e-64", *asked, CONFIG, folder=repository)
    assert done.returncode == 0, done.stderr
    assert len(calls(cloud, "queued-resources create")) == 3
    assert len(calls(cloud, "queued-resources delete pod --zone=zone-a --force --quiet")) == 2
    assert "(3 retries left)" in done.stderr and "it costs money until" in done.stdout
    for worker in range(3):
        times = cloud / f"buckets/mine/runs/times-worker-{worker}"
        assert times.read_text().count("\n") == 3, "the work folder is the bucket's, and outlives the TPU"
    assert (repository / "runs/logs/pod/worker-2.log").read_text().count("<sbp>") == 3
    assert len(set((cloud / "shipped").read_text().split())) == 2, "every attempt and worker has one bundle"


def test_tpu_retries_end(cloud: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against asking for ever for what is always taken away."""
    monkeypatch.setenv("PREEMPTIONS", "9")
    done = launch(*TPU, "v6e-64", "--create", "--bucket", "b", "--retries", "1", CONFIG, folder=repository)
    assert done.returncode == 2 and "no retries are left" in done.stderr
    assert len(calls(cloud, "queued-resources create")) == 2


def test_tpu_taken_away_without_create_is_left_to_its_owner(existing: Path, repository: Path, monkeypatch) -> None:
    monkeypatch.setenv("PREEMPTIONS", "9")
    done = launch(*TPU, "v6e-64", "--bucket", "b", CONFIG, folder=repository)
    assert done.returncode == 2 and "with --create" in done.stderr
    assert not calls(existing, "create") and not calls(existing, "delete")


def test_tpu_run_that_stood_still_is_started_again(cloud: Path, repository: Path, monkeypatch) -> None:
    """Guards against a pod that waits for a person because one host hung, and against trying for ever."""
    monkeypatch.setenv("SBP_STATUS", "75")
    done = launch(*TPU, "v6e-64", "--create", "--bucket", "b", "--retries", "1", CONFIG, folder=repository)
    assert done.returncode == 75 and "(0 retries left)" in done.stderr
    starts, asked = calls(cloud, "worker.sh start"), calls(cloud, "queued-resources create")
    assert len(starts) == 2 and len(asked) == 1, "the TPU is kept"


def test_tpu_program_that_fails_is_not_started_again(cloud: Path, repository: Path, monkeypatch) -> None:
    """Guards the exit status, which has to pass a detached shell and an ssh, and a bug retried for money."""
    monkeypatch.setenv("SBP_STATUS", "7")
    done = launch(*TPU, "v6e-64", "--create", "--bucket", "b", CONFIG, folder=repository)
    assert done.returncode == 7 and "ended with status 7 and pod is still there" in done.stderr
    assert len(calls(cloud, "worker.sh start")) == len(calls(cloud, "queued-resources create")) == 1
    assert not calls(cloud, "delete"), "what is not ours to judge is not deleted"


def test_tpu_of_another_type_is_refused(existing: Path, repository: Path) -> None:
    done = launch(*TPU, "v4-8", CONFIG, folder=repository)
    assert done.returncode == 2 and "is a v6e-64, not a v4-8" in done.stderr
    assert not calls(existing, "ssh")


def test_worker_starts_a_run_once_and_the_next_run_stops_it(cloud: Path, tmp_path: Path, monkeypatch) -> None:
    """Guards against two programs on one chip: gcloud repeats a command whose connection broke."""
    monkeypatch.setenv("SBP_SLEEPS", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    subprocess.run(["python3.12", "-m", "venv", str(tmp_path / "venv")], check=True)
    worker = str(ROOT / "launch/worker.sh")
    start = [worker, "start", "a", "env", "-C", str(tmp_path), str(tmp_path / "venv/bin/sbp")]
    assert launch(*start).returncode == 0
    process = (tmp_path / "logs/a.pid").read_text()
    _wait_for(tmp_path / "runs")
    assert launch(*start).returncode == 0
    assert (tmp_path / "logs/a.pid").read_text() == process and not (tmp_path / "saved").exists()
    monkeypatch.delenv("SBP_SLEEPS")
    done = launch(worker, "start", "b", "env", "printf", "<%s>", NOTE)
    assert "stopping run a" in done.stdout and done.returncode == 0, done.stderr
    assert (tmp_path / "saved").exists() and (tmp_path / "logs/a.status").read_text() == "143\n"
    done = launch(worker, "follow", "b")
    assert done.returncode == 0 and done.stdout == f"<{NOTE}>"


def _wait_for(path: Path) -> None:
    for _ in range(200):
        if path.exists() and any(path.iterdir()):
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.parametrize("launcher", ["gpu.sh", "slurm.sh"])
def test_gpu_dry_runs_print_the_commands_and_run_none(launcher: str, tmp_path: Path) -> None:
    """Guards against a launcher that installs files that are not there, drops arguments, or wants to be called here."""
    before = sorted(ROOT.iterdir())
    done = launch(str(ROOT / "launch" / launcher), "--dry-run", CONFIG, NOTE, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = commands(done.stdout)
    files = [command[command.index("-r") + 1] for command in printed if "-r" in command]
    assert files == ["requirements-cuda.txt", "requirements-embedder.txt"]
    assert all((ROOT / file).exists() for file in files)
    last = {"gpu.sh": [".venv-gpu/bin/sbp", "run"], "slurm.sh": ["launch/slurm_job.sh"]}[launcher]
    assert printed[-1][-2 - len(last) :] == [*last, CONFIG, NOTE]
    assert sorted(ROOT.iterdir()) == before


@pytest.mark.parametrize("launcher", ["gpu.sh", "slurm.sh"])
def test_gpu_launchers_name_what_is_wrong(launcher: str) -> None:
    done = launch(f"launch/{launcher}", "--dry-run", "configs/quickstrat.py")
    assert done.returncode == 2 and CONFIG in done.stderr
    done = launch(f"launch/{launcher}", "--dry-rum", CONFIG)
    assert done.returncode == 2 and "unknown option --dry-rum" in done.stderr
    done = launch(f"launch/{launcher}")
    assert done.returncode == 2 and f"launch/{launcher} [" in done.stderr


def test_gpu_run_keeps_what_it_compiled(cloud: Path, repository: Path) -> None:
    done = launch("launch/gpu.sh", CONFIG, NOTE, folder=repository)
    assert done.returncode == 0, done.stderr
    assert f"<sbp><run><{CONFIG}><{NOTE}> distributed=no" in done.stdout
    assert f"cache={repository}/runs/compile-cache" in done.stdout


def test_slurm_run_has_one_process_a_node_with_all_its_gpus(cloud: Path, repository: Path) -> None:
    """Guards against JAX's habit of one GPU for each of Slurm's processes, and against nodes that share a log."""
    options = ("--nodes", "2", "--gpus-per-node", "4", "--time", "12:00:00", "--partition", "big")
    done = launch("launch/slurm.sh", *options, CONFIG, NOTE, folder=repository)
    assert done.returncode == 0, done.stderr
    asked = (cloud / "sbatch").read_text().splitlines()
    wanted = {"--signal=TERM@120", "--requeue", "--ntasks-per-node=1", "--time=12:00:00", "--partition=big"}
    assert wanted | {"--cpus-per-task=32", f"--chdir={repository}"} <= set(asked)
    logs = repository / "runs/logs/quickstart"
    for node in range(2):
        said = (logs / f"7-node-{node}.log").read_text()
        assert f"<sbp><run><{CONFIG}><{NOTE}> distributed=auto devices=0,1,2,3 cache={repository}/runs" in said


@pytest.mark.parametrize("status", ["143", "75"])
def test_slurm_job_that_can_go_on_queues_again(cloud: Path, repository: Path, monkeypatch, status: str) -> None:
    """Guards against a long run that ends with its first time limit, or with one peer that hung."""
    monkeypatch.setenv("SBP_STATUS", status)
    assert launch("launch/slurm.sh", CONFIG, folder=repository).returncode == 0
    logs = repository / "runs/logs/quickstart"
    said = (logs / "7-node-0.log").read_text()
    assert said.count("<sbp>") == 2 and said.count("distributed=no devices= ") == 2
    assert "queues again" in (logs / "7.log").read_text()


def test_slurm_job_that_fails_does_not_queue_again(cloud: Path, repository: Path, monkeypatch) -> None:
    monkeypatch.setenv("SBP_STATUS", "7")
    assert launch("launch/slurm.sh", CONFIG, folder=repository).returncode == 0
    assert (repository / "runs/logs/quickstart/7-node-0.log").read_text().count("<sbp>") == 1
