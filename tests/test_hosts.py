"""Several hosts, as two processes of four devices over loopback: they train together, die together and resume."""

import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from sbp_jax.artifacts.artifact import Output, find, wait_for
from sbp_jax.artifacts.recipe import Recipe
from sbp_jax.config import MeshShape
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.training import batches
from sbp_jax.training.interruption import STALLED
from sbp_jax.training.loop import METRICS, train
from sbp_jax.training.metrics import read_metrics
from tests.test_training import losses, make_run

LEDGER = {"real": {"rows": 64, "tokens": 1024}, "synthetic": {"rows": 16, "tokens": 256}}
DONE = "finished with the ledger"

# Trains on the mesh that spans both processes; {before} may break something first.
SCRIPT = """
import os, signal, sys, time
from sbp_jax.parallel import hosts
hosts.start(heartbeat_seconds=10)
import jax
import tests.test_training as t
from sbp_jax.config import Execution
from sbp_jax.errors import Stopped
from sbp_jax.training import loop
process = jax.process_index()
assert jax.process_count() == {count} and len(jax.devices()) == 8
own = loop.host_rows(8, t.build_mesh(t.MeshShape()))
assert own == list(range(8 * process // {count}, 8 * (process + 1) // {count})), own
def after_step(step):
    {before}
read = loop.MetricsReader.read
def reading(self, parameters):
    line = read(self, parameters)
    after_step(line["step"])
    return line
loop.MetricsReader.read = reading
mesh = t.build_mesh(t.MeshShape({mesh}))
try:
    finished = t.train(t.make_run(), t.epath.Path({folder!r}), "other", mesh, Execution(stall_seconds={stall}))
except Stopped as stopped:
    print(stopped)
    sys.exit(143)
print({done!r}, finished.ledger)
"""


def start(folder, before="pass", mesh="fsdp=2", count=2, stall=120.0) -> list[subprocess.Popen]:
    """The processes of one run, which share a folder."""
    script = SCRIPT.format(folder=str(folder), before=before, mesh=mesh, count=count, stall=stall, done=DONE)
    return processes("-c", script, count=count)


def processes(*arguments, count=2) -> list[subprocess.Popen]:
    """So many Python processes that find one another on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.getcwd(),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // count}",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([sys.executable, *arguments], env=environment | {"JAX_PROCESS_ID": str(process)}, **pipes)
        for process in range(count)
    ]


def finish(processes) -> list[tuple[int, str, str]]:
    """Status and output of each; none may outlive the test."""
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> epath.Path:
    """An undisturbed run of two processes."""
    folder = epath.Path(tmp_path_factory.mktemp("together"))
    for status, out, err in finish(start(folder)):
        assert status == 0 and f"{DONE} {LEDGER}" in out, err
    return folder


def test_two_processes_give_the_losses_of_one_and_one_metrics_file(together, tmp_path):
    alone = epath.Path(tmp_path)
    train(make_run(), alone, "alone", build_mesh(MeshShape(fsdp=2)))
    np.testing.assert_allclose(losses(together), losses(alone), rtol=2e-5)
    assert [line["step"] for line in read_metrics(together / METRICS)] == list(range(1, 11))


def test_a_lost_process_ends_the_other_and_both_resume_to_the_same_bits(together, tmp_path):
    kill = "if process == 1 and step == 6: os.kill(os.getpid(), signal.SIGKILL)"
    (status, _, _), (killed, _, _) = finish(start(tmp_path, kill))
    assert killed == -signal.SIGKILL and status not in (0, None), "the one left neither waits nor goes on alone"
    for status, out, err in finish(start(tmp_path)):
        assert status == 0 and f"{DONE} {LEDGER}" in out, err
    assert losses(epath.Path(tmp_path)) == losses(together)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_hosts_and_another_mesh(together, tmp_path):
    """Stopped at step 4 on two hosts; one host with another mesh does the rest, and no row is lost or repeated."""
    folder = epath.Path(tmp_path)
    stop = "if process == 1 and step == 6: os.kill(os.getpid(), signal.SIGKILL)"
    finish(start(folder, stop))
    finished = train(make_run(), folder, "alone", build_mesh(MeshShape(data=2, fsdp=2, tensor=2)))
    assert finished.ledger == LEDGER
    np.testing.assert_allclose(losses(folder), losses(together), rtol=2e-5)


@pytest.mark.slow
def test_a_hung_peer_is_reported_with_the_stacks_of_all(tmp_path):
    hang = "if process == 1 and step == 6: time.sleep(1000)"
    ended = finish(start(tmp_path, hang, stall=30.0))
    statuses = [status for status, _, _ in ended]
    assert STALLED in statuses and 0 not in statuses  # the end of one may be what ends the other
    for process, (_, _, err) in enumerate(ended):
        assert "no progress for" in err and f"on process {process}" in err
        assert "process 0 on" in err and "process 1 on" in err and "has done" in err
        assert "most recent call first" in err
    assert "in after_step" in ended[1][2] and "in after_step" not in ended[0][2], "only one of them hangs there"


@pytest.mark.slow
def test_sigterm_to_one_stops_all_after_the_same_step_with_a_checkpoint(together, tmp_path):
    term = "if process == 1 and step == 5: os.kill(os.getpid(), signal.SIGTERM); time.sleep(2)"
    ended = finish(start(tmp_path, term))
    assert [status for status, _, _ in ended] == [143, 143], ended
    said = {out.strip().splitlines()[-1] for _, out, _ in ended}
    assert len(said) == 1 and "has saved its state after step" in said.pop()
    for status, _, err in finish(start(tmp_path)):
        assert status == 0, err
    assert losses(epath.Path(tmp_path)) == losses(together)


@pytest.mark.slow
def test_the_whole_pipeline_on_two_hosts_is_complete_for_one(tmp_path):
    """All stages: those of one program on both, the others on the first while the second waits; a text set too."""
    (tmp_path / "mine.txt").write_text("A held-out text. " * 50)
    sets = ("--set", f"evaluation.texts.mine.paths={tmp_path / 'mine.txt'}")
    arguments = ("-m", "sbp_jax", "run", "configs/quickstart.py", "--tiny", "--workdir", str(tmp_path), *sets)
    (first, out, err), (second, silent, other) = finish(processes(*arguments))
    assert (first, second) == (0, 0), err + other
    assert "gap" in out and "report:" in out and "report:" not in silent
    alone = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert alone.returncode == 0 and "..." not in alone.stderr, "one host finds nothing left to do"
    assert alone.stdout == out[out.index(alone.stdout[:20]) :]


@pytest.mark.slow
def test_a_stage_that_fails_on_the_first_host_ends_the_second(tmp_path):
    """Guards against a second host that waits without end for an artifact nobody makes."""
    missing = ("--set", "corpus.max_skipped=0", "--set", "corpus.text_field=no_such_field")
    arguments = ("-m", "sbp_jax", "run", "configs/quickstart.py", "--tiny", "--workdir", str(tmp_path), *missing)
    (first, _, err), (second, _, _) = finish(processes(*arguments))
    assert first == 2 and "error:" in err and second != 0


def test_only_one_process_writes_an_artifact_and_the_others_wait_for_it(tmp_path):
    """Two outputs of one artifact, as two processes hold them."""
    recipe, path = Recipe("stage", 1, {}, {}), epath.Path(tmp_path) / "artifact"
    writer, other = Output(path, recipe, "writer"), Output(path, recipe, "other", writes=False)
    for output, text in ((writer, "right"), (other, "wrong")):
        output.shard(0, ".txt", lambda writing, text=text: writing.path.write_text(text))
    assert find(path, recipe.key) is None
    made = writer.finish({"count": 1})
    assert other.finish() == made == wait_for(path, recipe.key)
    assert made.file("part-00000.txt").read_text() == "right"


def test_a_host_reads_the_rows_of_its_own_devices(monkeypatch):
    monkeypatch.setattr(batches.hosts, "several", lambda: True)
    assert batches.host_rows(16, build_mesh(MeshShape(fsdp=2))) == list(range(16)), "all devices are this process's"
    assert batches.host_rows(3, build_mesh(MeshShape())) == [0, 1, 2], "rows that do not divide are everywhere"
