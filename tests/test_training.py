"""Training: meshes agree, killed runs resume to the same losses, the ledger is exact."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from sbp_jax.config import MeshShape, Model, Optimization
from sbp_jax.data.mixing import Plan
from sbp_jax.data.rows import Row
from sbp_jax.errors import SbpError
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.training.loop import METRICS, Run, best_parameters, train
from sbp_jax.training.metrics import MetricsLog, read_metrics

CONTEXT, VOCABULARY = 16, 128
MODEL = Model(width=16, layers=2, heads=2, kv_heads=2, head_dim=8, ffn=32)
OPTIMIZATION = Optimization(context=CONTEXT, batch_rows=8, peak_lr=1e-2, evaluate_every=4)


class Rows:
    """Rows of a learnable text: each token is the one before it plus one."""

    def __init__(self, count: int, seed: int):
        starts = np.random.default_rng(seed).integers(0, VOCABULARY, count)
        self.rows = [self._row(int(start), index) for index, start in enumerate(starts)]

    @staticmethod
    def _row(start: int, index: int) -> Row:
        tokens = ((start + np.arange(CONTEXT + 1)) % VOCABULARY).astype(np.int32)
        positions = np.arange(CONTEXT, dtype=np.int32)
        return Row(
            tokens, np.ones(CONTEXT, np.int32), positions, np.full(CONTEXT, index, np.int64), np.ones(CONTEXT, bool)
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def make_run(steps: int = 10, model: Model = MODEL, optimization: Optimization = OPTIMIZATION) -> Run:
    plan = Plan({"real": steps * 8 - 16, "synthetic": 16}, {"real": 24, "synthetic": 20})
    streams = {"real": Rows(24, 0), "synthetic": Rows(20, 1)}
    return Run(model, VOCABULARY, optimization, streams, plan, Rows(9, 2), seed=0)


def losses(folder: epath.Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / METRICS)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> epath.Path:
    folder = epath.Path(tmp_path_factory.mktemp("undisturbed"))
    finished = train(make_run(), folder, "test", build_mesh(MeshShape()))
    assert finished.ledger == {
        "real": {"rows": 64, "tokens": 64 * CONTEXT},
        "synthetic": {"rows": 16, "tokens": 16 * CONTEXT},
    }
    return folder


def test_the_model_learns(undisturbed):
    assert losses(undisturbed)[-1] < losses(undisturbed)[0] - 0.3


def test_a_mesh_that_does_not_fit_the_devices_is_an_error():
    with pytest.raises(SbpError, match="does not fit 8 devices"):
        build_mesh(MeshShape(1, 1, 2))


def in_another_process(
    folder: epath.Path, before: str = "", devices: int = 8, execution: str = ""
) -> subprocess.CompletedProcess:
    """Trains `make_run` in a process with so many devices, after running some lines there."""
    lines = f"""
import tests.test_training as t
from sbp_jax.config import Execution
{before}
t.train(t.make_run(), t.epath.Path({str(folder)!r}), "other", t.build_mesh(t.MeshShape()), Execution({execution}))
"""
    flags = {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.run([sys.executable, "-c", lines], env=os.environ | flags, capture_output=True)


def test_one_device_gives_the_losses_of_eight(undisturbed, tmp_path):
    done = in_another_process(epath.Path(tmp_path), devices=1)
    assert done.returncode == 0, done.stderr.decode()
    np.testing.assert_allclose(losses(epath.Path(tmp_path)), losses(undisturbed), rtol=2e-5)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1)])
def test_every_mesh_gives_the_losses_of_data_parallelism(undisturbed, tmp_path, shape):
    folder = epath.Path(tmp_path)
    train(make_run(), folder, "test", build_mesh(MeshShape(*shape)))
    np.testing.assert_allclose(losses(folder), losses(undisturbed), rtol=2e-5)


def test_a_killed_run_resumes_to_the_same_bits(undisturbed, tmp_path):
    """The process is killed right after step 6 is logged, between checkpoints (every 4 steps)."""
    folder = epath.Path(tmp_path)
    kill = """
import os, signal
from sbp_jax.training import loop
original = loop.MetricsLog.write
def write(self, line):
    original(self, line)
    if line["step"] == 6:
        os.kill(os.getpid(), signal.SIGKILL)
loop.MetricsLog.write = write
"""
    died = in_another_process(folder, kill)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert len(losses(folder)) == 6
    finished = train(make_run(), folder, "test", build_mesh(MeshShape()))
    assert [line["step"] for line in read_metrics(folder / METRICS)] == list(range(1, 11))
    assert losses(folder) == losses(undisturbed), "bit for bit"
    assert finished.ledger["real"]["rows"] + finished.ledger["synthetic"]["rows"] == 80


def test_best_is_the_checkpoint_with_the_least_validation_loss(tmp_path):
    """A rate so high that the model gets worse after its best step."""
    optimization = Optimization(context=CONTEXT, batch_rows=8, peak_lr=0.5, final_lr=0.5, warmup=0.9, evaluate_every=2)
    finished = train(make_run(20, optimization=optimization), epath.Path(tmp_path), "test", build_mesh(MeshShape()))
    validations = {
        line["step"]: line["validation"] for line in read_metrics(tmp_path / METRICS) if "validation" in line
    }
    assert finished.best_step == min(validations, key=validations.get) != 20
    assert finished.best_validation == validations[finished.best_step]
    final = np.asarray(finished.parameters["embedding"])
    best = np.asarray(best_parameters(finished, epath.Path(tmp_path))["embedding"])
    assert np.abs(best - final).max() > 0


def test_a_checkpoint_of_another_shape_is_an_error(undisturbed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    wider = Model(width=32, layers=2, heads=2, kv_heads=2, head_dim=8, ffn=32)
    with pytest.raises(SbpError, match="of another model"):
        train(make_run(model=wider), epath.Path(folder), "test", build_mesh(MeshShape()))


@pytest.mark.parametrize("damage", ["array", "validation", "empty"])
def test_a_damaged_checkpoint_is_an_error_that_says_what_to_delete(undisturbed, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    latest = folder / "checkpoints" / "10"
    if damage == "array":
        for file in (latest / "parameters" / "d").iterdir():
            file.write_bytes(bytes(byte ^ 255 for byte in file.read_bytes()))
    elif damage == "validation":
        (latest / "metrics" / "metrics").write_text('{"vali')
    else:
        (folder / "checkpoints" / "12").mkdir()
    with pytest.raises(SbpError, match="is damaged or of another model; delete") as refused:
        train(make_run(), epath.Path(folder), "test", build_mesh(MeshShape()))
    assert len(str(refused.value)) < 600


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    optimization = Optimization(context=CONTEXT, batch_rows=8, peak_lr=1e30, clip=1e30, warmup=0.01, evaluate_every=4)
    with pytest.raises(SbpError, match="not finite"):
        train(make_run(20, optimization=optimization), epath.Path(tmp_path), "test", build_mesh(MeshShape()))


def test_metrics_that_are_lost_are_an_error_and_not_an_empty_file(undisturbed, tmp_path):
    """They cannot be made again without training again, which the message says."""
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    (folder / METRICS).unlink()
    with pytest.raises(SbpError, match="lacks the metrics of steps 1 to 10"):
        train(make_run(), epath.Path(folder), "test", build_mesh(MeshShape()))


def test_a_metrics_line_cut_off_by_a_kill_is_written_again(tmp_path):
    path = epath.Path(tmp_path) / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    log = MetricsLog(path, steps_done=5)
    log.write({"step": 6})
    log.close()
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
