"""The launchers: what a dry run prints, what is refused, and a whole TPU run against a pretended gcloud."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = "configs/quickstart.py"
TPU = ["launch/tpu_pod.sh", "--name", "pod", "--zone", "zone-a", "--type"]
NOTE = 'note=it\'s a "test", $HOME'

# Runs what `ssh` is asked to run in a folder that stands for the worker, and copies what `scp` is asked to copy.
GCLOUD = """#!/usr/bin/env bash
set -e
echo "$*" >>"$WORKER/calls"
case "$*" in
  *"queued-resources create"*) ;;
  *"queued-resources describe"*) echo ACTIVE ;;
  *"tpu-vm describe"*) echo projects/p/locations/zone-a/acceleratorTypes/v6e-8 ;;
  *"tpu-vm scp"*) cp "$5" "$WORKER/" ;;
  *"tpu-vm ssh"*) for argument; do case $argument in --command=*) command=${argument#--command=} ;; esac; done
    cd "$WORKER" && HOME=$WORKER bash -c "$command" ;;
  *) exit 9 ;;
esac
"""

# Stands for the worker's Python: `-m venv` makes an environment whose sbp says what it was asked to run.
PYTHON = """#!/usr/bin/env bash
[ "$2" = venv ] || exit 0
mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
cat >"$3/bin/sbp" <<'SBP'
#!/usr/bin/env bash
printf '<%s>' sbp "$@"
mkdir -p runs && echo >>runs/times
exit "${SBP_STATUS:-0}"
SBP
chmod +x "$3/bin/sbp"
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a TPU worker, behind a gcloud that reaches nothing else."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"gcloud": GCLOUD, "python3.12": PYTHON}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    folder = tmp_path / "worker"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("WORKER", str(folder))
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of one commit to launch from, so that neither this one's state nor its runs/ matter."""
    folder = tmp_path / "repository"
    for name in (TPU[0], CONFIG, ".gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text())
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=launch"]):
        subprocess.run([*git, *command], check=True)
    return folder


def launch(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


def commands(text: str) -> list[list[str]]:
    """The commands of a dry run as argument lists; quoted arguments may span lines."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="\n")
    lexer.whitespace, lexer.whitespace_split = " ", True
    found: list[list[str]] = [[]]
    for token in lexer:
        if set(token) == {"\n"}:
            found.append([])
        else:
            found[-1].append(token)
    return [command for command in found if command]


def test_tpu_dry_run_prints_the_commands_in_order_and_runs_none(worker: Path, repository: Path) -> None:
    """Guards against a command out of order, an argument mangled by two shells, and a dry run that costs money."""
    done = launch(*TPU, "v6e-8", "--create", "--dry-run", CONFIG, NOTE, folder=repository)
    assert done.returncode == 0, done.stderr
    printed = commands(done.stdout)
    assert [command[0] for command in printed] == ["gcloud"] * 2 + ["git"] + ["gcloud"] * 4
    assert [command[4] for command in printed if command[0] == "gcloud"] == "create describe scp ssh ssh ssh".split()
    assert "--accelerator-type=v6e-8" in printed[0] and "--runtime-version=v2-alpha-tpuv6e" in printed[0]
    assert all("--worker=all" in command for command in printed[3:])
    assert "requirements-tpu.txt" in printed[-2][-1]
    remote = shlex.split(printed[-1][-1].removeprefix("--command="))
    assert remote[remote.index("run") :][:3] == ["run", CONFIG, NOTE]
    assert not (worker / "calls").exists()


@pytest.mark.parametrize("type_", ["v6e-16", "v5litepod-256", "v4-16", "v5p-16", "h100"])
def test_tpu_of_several_hosts_is_refused(worker: Path, type_: str) -> None:
    """Guards against eight hosts that each train their own model and are paid for."""
    done = launch(*TPU, type_, "--create", CONFIG)
    assert done.returncode == 2 and "not yet supported" in done.stderr
    assert not (worker / "calls").exists()


def test_tpu_names_what_is_missing(worker: Path) -> None:
    done = launch("launch/tpu_pod.sh", "--name", "pod", CONFIG)
    assert done.returncode == 2 and "--zone ZONE" in done.stderr
    done = launch(*TPU, "v6e-8", "--flavour", "x", CONFIG)
    assert done.returncode == 2 and "unknown option --flavour" in done.stderr


def test_tpu_run_ships_installs_runs_and_resumes(worker: Path, repository: Path) -> None:
    """Guards the scripts that run on the worker, and a second launch that would wipe what the first one finished."""
    for times in (1, 2):
        done = launch(*TPU, "v6e-8", CONFIG, NOTE, folder=repository)
        assert done.returncode == 0, done.stderr
        assert f"<sbp><run><{CONFIG}><{NOTE}>" in done.stdout
        assert (worker / "sbp_jax" / CONFIG).exists()
        assert (worker / "sbp_jax/runs/times").read_text().count("\n") == times
    assert NOTE in (repository / "runs/logs/pod.log").read_text()
    assert [NOTE in log.read_text() for log in (worker / "logs").iterdir()] == [True]


def test_tpu_run_that_fails_says_so(worker: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the exit status, which has to pass two pipes and an ssh; and a TPU of another type than named."""
    monkeypatch.setenv("SBP_STATUS", "7")
    assert launch(*TPU, "v6e-8", CONFIG, folder=repository).returncode == 7
    done = launch(*TPU, "v4-8", CONFIG, folder=repository)
    assert done.returncode == 2 and "is a v6e-8, not a v4-8" in done.stderr


def test_gpu_dry_run_prints_the_commands_and_runs_none() -> None:
    """Guards against a launcher that installs files that are not there, or drops arguments."""
    before = sorted(ROOT.iterdir())
    done = launch("launch/gpu.sh", "--dry-run", CONFIG, NOTE)
    assert done.returncode == 0, done.stderr
    printed = commands(done.stdout)
    files = [command[command.index("-r") + 1] for command in printed if "-r" in command]
    assert files == ["requirements-cuda.txt", "requirements-embedder.txt"]
    assert all((ROOT / file).exists() for file in files)
    assert printed[-1][-4:] == [".venv-gpu/bin/sbp", "run", CONFIG, NOTE]
    assert sorted(ROOT.iterdir()) == before


def test_gpu_names_the_config_that_is_missing() -> None:
    done = launch("launch/gpu.sh", "--dry-run", "configs/quickstrat.py")
    assert done.returncode == 2 and CONFIG in done.stderr
