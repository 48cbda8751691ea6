"""Where tasks are carried out: the same bytes from everywhere, and what failing tasks and lost processes do."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from etils import epath

from sbp_jax.artifacts import arrayrecord
from sbp_jax.artifacts.artifact import Waiting, Writing, report_failure, wait_for
from sbp_jax.config import Corpus, Execution, Experiment, Splits
from sbp_jax.errors import SbpError
from sbp_jax.parallel import executor, hosts
from sbp_jax.parallel.executor import TRIES, carry_out
from sbp_jax.pipeline import Pipeline
from tests.executor_tasks import ITEMS, dies, fails, fills, refuses

SHARDED = ("splits", "tokens", "screened")


@pytest.fixture(params=["here", "processes"])
def execution(request, monkeypatch) -> Execution:
    monkeypatch.setattr(executor, "POOL_SECONDS", float("inf") if request.param == "here" else 0.0)
    return Execution(workers=2)


@pytest.mark.parametrize("times", [0, TRIES - 1])
def test_a_task_that_fails_now_and_then_is_tried_again(tmp_path, execution, times):
    found = carry_out(execution, "tokens", partial(fails, str(tmp_path), times), ITEMS)
    assert sorted(found) == [item.upper() for item in ITEMS]
    assert (tmp_path / ITEMS[3]).stat().st_size == times + 1


def test_a_task_that_fails_every_time_is_named_and_takes_no_other_along(tmp_path, execution):
    found = []
    with pytest.raises(SbpError, match=r"tokens: 1 of 8 .* part-3: ValueError: bad bytes in part-3") as raised:
        for result in carry_out(execution, "tokens", partial(fails, str(tmp_path), 99), ITEMS):
            found.append(result)
    assert isinstance(raised.value.__cause__, ValueError)
    assert sorted(found) == [item.upper() for item in ITEMS if item != ITEMS[3]]
    assert (tmp_path / ITEMS[3]).stat().st_size == TRIES


def test_what_the_user_has_to_mend_is_told_as_it_is_and_not_tried_again(execution):
    with pytest.raises(SbpError, match="^part-3 is damaged; copy it again$"):
        list(carry_out(execution, "tokens", refuses, ITEMS))


@pytest.mark.parametrize("times", [1, 99])
def test_a_killed_process_is_replaced_and_the_task_that_kills_it_found(tmp_path, monkeypatch, times):
    monkeypatch.setattr(executor, "POOL_SECONDS", 0.0)
    found = []
    tasks = carry_out(Execution(workers=2), "tokens", partial(dies, str(tmp_path), times), ITEMS)
    if times == 1:
        assert sorted(tasks) == [item.upper() for item in ITEMS]
        return
    with pytest.raises(SbpError, match="part-3: Lost: its process was killed"):
        for result in tasks:
            found.append(result)
    assert sorted(found) == [item.upper() for item in ITEMS if item != ITEMS[3]]


def test_a_full_disk_ends_everything_at_once(tmp_path, execution):
    with pytest.raises(OSError, match="No space"):
        list(carry_out(execution, "tokens", partial(fills, str(tmp_path)), ITEMS))
    assert not (tmp_path / ITEMS[7]).exists() and (tmp_path / ITEMS[1]).stat().st_size == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_whatever_library_says_so(tmp_path):
    (tmp_path / "part.array_record").symlink_to("/dev/full")
    writing = Writing(epath.Path(tmp_path / "part.array_record"))
    with pytest.raises(OSError) as raised:
        arrayrecord.write(writing, (b"x" * 100_000 for _ in range(100)))
    assert raised.value.errno == errno.ENOSPC


def test_who_waits_for_another_process_hears_of_its_failure(tmp_path):
    """Of those before it began it hears nothing: the other may have been started again."""
    folder = epath.Path(tmp_path)
    report_failure(folder, 1, "an old fault")
    waiting = Waiting(folder)
    waiting.look("anything")
    report_failure(folder, 2, "part-00003 is damaged")
    with pytest.raises(SbpError, match="process 2 failed .part-00003 is damaged.; run it again"):
        waiting.look("anything")
    with pytest.raises(SbpError, match="process 2 failed"):
        threading.Timer(0.5, report_failure, (folder, 2, "again")).start()
        wait_for(folder, "key")


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = f"""
from functools import partial
from sbp_jax.config import Execution
from sbp_jax.parallel import executor
from tests.executor_tasks import ITEMS, waits
if __name__ == "__main__":
    executor.POOL_SECONDS = 0.0
    list(executor.carry_out(Execution(workers=2), "tokens", partial(waits, {str(tmp_path)!r}), ITEMS))
"""
    file = tmp_path / "script.py"
    file.write_text(script)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen([sys.executable, file], env=environment) as process:
        until(lambda: len(list(tmp_path.glob("part-[12]-*"))) == 2)
        process.kill()
    started = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("part-[12]-*")]
    until(lambda: not any(map(running, started)))


def running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def corpus(folder: Path) -> Experiment:
    """Eight shards of documents, every tenth of which is a near-copy of the one before it."""
    words = [[f"w{(n - (n % 10 == 9)) * 1000 + place}" for place in range(30)] for n in range(300)]
    lines = [{"id": str(n), "text": " ".join([*own, *["again"] * (n % 10 == 9)])} for n, own in enumerate(words)]
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Experiment(
        name="test",
        corpus=Corpus(paths=(str(file),), documents_per_shard=40),
        splits=Splits(validation=0.1, test=0.1, capped=0.5),
    )


def contents(pipeline: Pipeline) -> dict[str, bytes]:
    """Each file of the divided stages, and what their manifests say of them."""
    found = {}
    for name in SHARDED:
        artifact = pipeline.artifact(name)
        assert artifact is not None
        found[f"{name} stats"] = json.dumps(artifact.stats).encode()
        found |= {f"{name}/{file.name}": artifact.file(file.name).read_bytes() for file in artifact.files}
    return found


def made(experiment: Experiment, workdir: Path, execution: Execution) -> dict[str, bytes]:
    pipeline = Pipeline(replace(experiment, execution=execution), str(workdir))
    for name in SHARDED:
        pipeline.run(lambda line: None, until=name)
    return contents(pipeline)


def test_processes_write_the_bytes_that_one_writes(tmp_path, monkeypatch):
    experiment = corpus(tmp_path)
    alone = made(experiment, tmp_path / "alone", Execution(workers=1))
    assert sum(name.startswith("tokens/") for name in alone) == 8
    assert json.loads(alone["splits stats"])["moved"] > 0
    monkeypatch.setattr(executor, "POOL_SECONDS", 0.0)
    assert made(experiment, tmp_path / "processes", Execution(workers=2)) == alone


@pytest.mark.slow
def test_tasks_of_an_array_divide_the_shards_and_one_may_be_killed(tmp_path):
    experiment = corpus(tmp_path)
    alone = made(experiment, tmp_path / "alone", Execution(workers=1))
    config = tmp_path / "config.py"
    config.write_text(f"from sbp_jax.config import *\n\n\ndef get_config():\n    return {experiment!r}\n")
    workdir = tmp_path / "array"
    command = [sys.executable, "-m", "sbp_jax", "run", config, "--workdir", workdir]

    def start(index: int, stage: str) -> subprocess.Popen:
        return subprocess.Popen([*command, "--until", stage, "--task", f"{index}/3"], stderr=subprocess.PIPE, text=True)

    third = start(2, "tokens")
    assert "waiting for task 0" in third.stderr.readline()
    third.kill()
    for stage in SHARDED:
        tasks = [start(index, stage) for index in range(3)]
        assert [task.wait(timeout=120) for task in tasks] == [0, 0, 0], [task.stderr.read() for task in tasks]
    assert contents(Pipeline(experiment, str(workdir))) == alone


@pytest.mark.slow
def test_tasks_of_an_array_run_the_whole_pipeline_and_divide_generation(tmp_path):
    """Two tasks with devices of their own write the synthetic documents of one, and only the first trains."""
    sets = ("--set", "synthesis.documents_per_shard=8")
    command = [sys.executable, "-m", "sbp_jax", "run", "configs/quickstart.py", "--tiny", *sets]

    def run(workdir: Path, *options: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, "--workdir", workdir, *options], **pipes)

    def synthetic(workdir: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in workdir.glob("artifacts/synthesized/*/part-*")}

    tasks = [run(tmp_path / "array", "--task", f"{index}/2") for index in range(2)]
    outputs = [task.communicate(timeout=600) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert "report.html" in outputs[0][0] and not outputs[1][0]
    assert run(tmp_path / "alone", "--until", "synthesized").wait(timeout=600) == 0
    assert synthetic(tmp_path / "array") == synthetic(tmp_path / "alone")
    assert len(synthetic(tmp_path / "alone")) > 2


@pytest.mark.parametrize("task", ["3/3", "1", "a/b", "-1/2"])
def test_a_wrong_task_says_what_is_right(task):
    with pytest.raises(SbpError, match="such as 0/8 to 7/8"):
        hosts.join_array(task)
