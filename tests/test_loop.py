"""Around the steps: checkpoints and what is kept, SIGTERM, batches that break, metrics, where the time goes."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from sbp_jax.config import Execution, MeshShape
from sbp_jax.errors import SbpError, Stopped
from sbp_jax.model import decoder
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.training import loop, step
from sbp_jax.training.checkpoints import Checkpoints
from sbp_jax.training.flops import flops_per_token
from sbp_jax.training.goodput import FILE, Goodput
from sbp_jax.training.loop import METRICS, train
from sbp_jax.training.metrics import TENSORBOARD, TIMING, MetricsLog, read_metrics
from sbp_jax.training.profiling import PROFILE
from tests.test_training import CONTEXT, MODEL, OPTIMIZATION, VOCABULARY, Rows, in_another_process, losses, make_run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> epath.Path:
    folder = epath.Path(tmp_path_factory.mktemp("undisturbed"))
    train(replace(make_run(), token_bytes=2.5), folder, "test", build_mesh(MeshShape()))
    return folder


def stop_after(step: int):
    """A termination that is asked for after so many steps."""
    counts: dict[int, int] = {}

    def after_step(self) -> bool:
        counts[id(self)] = counts.get(id(self), 0) + 1
        self.asked = counts[id(self)] == step
        return self.asked

    return after_step


def steps_kept(folder) -> list[int]:
    return sorted(int(path.name) for path in (folder / loop.CHECKPOINTS).iterdir() if path.name.isdigit())


def test_kept_are_the_latest_the_best_and_every_so_many(tmp_path, monkeypatch):
    """Twenty steps, saved after every second one and at the evaluations, after 5, 10, 15 and 20."""
    validations = iter([3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr(loop, "mean_loss", lambda *_: next(validations))
    execution = Execution(checkpoint_every=2, keep_last=2, keep_every=6)
    run = make_run(20, optimization=replace(OPTIMIZATION, evaluate_every=5))
    finished = train(run, epath.Path(tmp_path), "test", build_mesh(MeshShape()), execution)
    assert (finished.best_step, finished.best_validation) == (10, 1.0)
    assert steps_kept(tmp_path) == [6, 10, 12, 18, 20]


def test_text_sets_are_told_at_every_evaluation_and_change_nothing_else(undisturbed, tmp_path):
    """Guards the training itself: whoever watches it must get the model of whoever does not."""
    folder = epath.Path(tmp_path)
    run = replace(make_run(), token_bytes=2.5, texts={"easy": list(Rows(5, 3)), "same": list(make_run().validation)})
    train(run, folder, "test", build_mesh(MeshShape()))
    lines, plain = read_metrics(folder / METRICS), read_metrics(undisturbed / METRICS)
    told = [line["step"] for line in lines if "validation/easy" in line]
    assert told == [line["step"] for line in plain if "validation" in line] and len(told) == 3
    for line, other in zip(lines, plain, strict=True):
        assert line.get("validation/same") == line.get("validation")
        sets = {"validation/easy", "validation/same"}
        assert {k: line[k] for k in line.keys() - TIMING - sets} == {k: other[k] for k in other.keys() - TIMING}
        if "validation" in line:
            assert 0 < line["validation/easy"] != line["validation"]


def test_a_run_killed_between_evaluations_goes_on_from_the_checkpoint_there(undisturbed, tmp_path):
    """Guards `checkpoint_every`: killed at step 7, saved at 6, evaluated at 4."""
    folder, kill = epath.Path(tmp_path), KILL.format(saved=str(tmp_path / loop.CHECKPOINTS / "6"))
    died = in_another_process(folder, kill, execution="checkpoint_every=3")
    assert died.returncode == -signal.SIGKILL and steps_kept(folder)[-1] == 6, died.stderr.decode()
    started = []
    original = loop._batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_batches", lambda run, setup, done: started.append(done) or original(run, setup, done))
        train(make_run(), folder, "test", build_mesh(MeshShape()))
    assert started == [6] and losses(folder) == losses(undisturbed)


KILL = """
import os, signal, time
from sbp_jax.training import loop, step
original = loop.MetricsLog.write
def write(self, line):
    original(self, line)
    if line["step"] == 7:
        while not os.path.isdir({saved!r}):  # it is written in the background
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
loop.MetricsLog.write = write
"""


# Dies as soon as something in the folder has such a name.
WATCH = """
import glob, os, signal, threading
def watch():
    while not glob.glob({pattern!r}):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
"""


@pytest.mark.slow
def test_killed_after_every_step_and_inside_a_save(undisturbed, tmp_path):
    """One run whose every step is the last of a process, with a checkpoint each, one of which is cut off."""
    folder, checkpoints = epath.Path(tmp_path), tmp_path / loop.CHECKPOINTS
    for number in range(1, 10):
        kill = KILL.replace("== 7", f"== {number}").format(saved=str(checkpoints / str(number - 1)))
        if number in (1, 5):  # while the first checkpoint, or the fifth, is being written
            kill = WATCH.format(pattern=str(checkpoints / f"{number}.*tmp*"))
        died = in_another_process(folder, kill, execution="checkpoint_every=1")
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()
        if number in (1, 5):
            assert number not in steps_kept(folder) and list(checkpoints.glob(f"{number}.*tmp*"))
    finished = train(make_run(), folder, "test", build_mesh(MeshShape()))
    assert losses(folder) == losses(undisturbed)
    assert [line["step"] for line in read_metrics(folder / METRICS)] == list(range(1, 11))
    assert {name: entry["rows"] for name, entry in finished.ledger.items()} == {"real": 64, "synthetic": 16}
    assert not list(checkpoints.glob("*tmp*"))


def test_sigterm_saves_and_the_run_goes_on_to_the_same_bits(undisturbed, tmp_path):
    """At a step between evaluations and checkpoints."""
    folder = epath.Path(tmp_path)
    write = MetricsLog.write

    def terminating(self, line):
        write(self, line)
        if line["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLog, "write", terminating)
        with pytest.raises(Stopped, match="has saved its state after step 6 of 10"):
            train(make_run(), folder, "test", build_mesh(MeshShape()))
    assert steps_kept(folder) == [4, 6] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(make_run(), folder, "test", build_mesh(MeshShape()))
    assert losses(folder) == losses(undisturbed)
    assert [line["step"] for line in read_metrics(folder / METRICS)] == list(range(1, 11))


@pytest.mark.slow
def test_another_mesh_goes_on_with_the_same_rows(undisturbed, tmp_path):
    """Stopped on eight data-parallel devices, resumed with parameters cut in four and heads in two."""
    folder = epath.Path(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Termination, "after_step", stop_after(5))
        with pytest.raises(Stopped):
            train(make_run(), folder, "test", build_mesh(MeshShape()))
    finished = train(make_run(), folder, "test", build_mesh(MeshShape(data=1, fsdp=4, tensor=2)))
    assert {name: entry["rows"] for name, entry in finished.ledger.items()} == {"real": 64, "synthetic": 16}
    np.testing.assert_allclose(losses(folder), losses(undisturbed), rtol=2e-5)


def test_restoring_never_holds_two_copies(undisturbed, monkeypatch):
    """Guards against a fresh state that is made only to be replaced, and parameters restored with the moments."""
    monkeypatch.setattr(loop, "new_state", lambda *_: pytest.fail("a state was made beside the restored one"))
    before = {id(array) for array in jax.live_arrays()}
    finished = train(make_run(), undisturbed, "test", build_mesh(MeshShape()))
    copies = [array for array in jax.live_arrays() if id(array) not in before and array.shape == (VOCABULARY, 16)]
    assert len(copies) == 1, "the parameters alone are left: no moments, no second copy"
    del finished


def test_a_loss_that_is_not_finite_writes_down_the_documents_of_the_batch(tmp_path, monkeypatch):
    """Row 3 of step 3 holds a token for which the embedding is no number: the record names it, and nothing is saved."""
    run = make_run()
    poisoned = epath.Path(tmp_path)
    original = loop.to_device

    def to_device(batch, mesh, rows):
        seen.append(batch)
        if len(seen) == 3:
            batch = dict(batch, positions=batch["positions"].copy())
            batch["positions"][3] = np.iinfo(np.int32).max
        return original(batch, mesh, rows)

    seen: list[dict] = []
    monkeypatch.setattr(loop, "to_device", to_device)
    monkeypatch.setattr("sbp_jax.model.decoder._rotate", _not_a_number_far_away())
    _forget_compiled()
    with pytest.raises(SbpError, match="at step 3 is not finite .1 of its 8 rows") as refused:
        train(run, poisoned, "test", build_mesh(MeshShape()))
    _forget_compiled()
    record = json.loads((tmp_path / "not-finite-step-3.json").read_text())
    assert record["rows that give no finite loss"] == [3] and str(tmp_path) in str(refused.value)
    documents = [row["documents"] for row in record["rows of this host"]]
    assert documents == [np.unique(row).tolist() for row in seen[2]["documents"]]
    assert {row["stream"] for row in record["rows of this host"]} <= {"real", "synthetic"}
    assert [line["step"] for line in read_metrics(tmp_path / METRICS)] == [1, 2]


def _forget_compiled():
    step.train_step.cache_clear()
    step.evaluation_step.cache_clear()


def _not_a_number_far_away():
    original = decoder._rotate

    def rotate(x, positions, frequencies):
        far = (positions > 1_000_000)[:, :, None, None]
        return jax.numpy.where(far, jax.numpy.nan, original(x, jax.numpy.minimum(positions, 1_000_000), frequencies))

    return rotate


def test_a_line_has_losses_norms_counts_rates_and_waiting(undisturbed):
    lines = read_metrics(undisturbed / METRICS)
    for number, line in enumerate(lines, start=1):
        assert line["tokens_seen"] == number * 8 * CONTEXT and line["targets"] == 8 * CONTEXT
        np.testing.assert_allclose(line["bits_per_byte"], line["loss"] / np.log(2) / 2.5)
        assert line["gradient_norm"] > 0 and line["parameter_norm"] > 0 and line["skipped"] is False
        assert line["tokens_per_second_per_chip"] > 0 and line["data_seconds"] >= 0
        assert line["mfu"] is None, "a CPU has no peak that is known"
    assert [line["step"] for line in lines if "validation_bits_per_byte" in line] == [4, 8, 10]
    assert TIMING <= set(lines[0])


@pytest.mark.slow
def test_utilization_follows_from_the_formula(tmp_path, monkeypatch):
    monkeypatch.setattr("sbp_jax.training.step_metrics.peak_flops", lambda kind: 1e9)
    train(make_run(4), epath.Path(tmp_path), "test", build_mesh(MeshShape()))
    for line in read_metrics(tmp_path / METRICS):
        expected = line["tokens_per_second_per_chip"] * flops_per_token(MODEL, VOCABULARY, CONTEXT) / 1e9
        np.testing.assert_allclose(line["mfu"], expected, atol=2e-4)


def events(folder) -> dict[str, list[int]]:
    """The steps of each curve in TensorBoard's files."""
    found: dict[str, list[int]] = {}
    for file in sorted((folder / TENSORBOARD).glob("events*")):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


def test_tensorboard_has_the_validation_losses(undisturbed):
    curves = events(undisturbed)
    assert curves["validation"] == [4, 8, 10]
    assert {"loss", "bits_per_byte", "gradient_norm", "learning_rate", "tokens_per_second_per_chip"} <= set(curves)


@pytest.mark.slow
def test_goodput_accounts_for_all_of_the_time_over_several_starts(tmp_path):
    folder = epath.Path(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Termination, "after_step", stop_after(5))
        with pytest.raises(Stopped):
            train(make_run(), folder, "test", build_mesh(MeshShape()))
    first = json.loads((folder / FILE).read_text())
    lost = [json.dumps(line) for line in ({"step": 6, "seconds": 3.5}, {"step": 7, "seconds": 4.0})]
    with open(folder / METRICS, "a") as stream:
        stream.write("\n".join(lost) + "\n")
    second = train(make_run(), folder, "test", build_mesh(MeshShape())).goodput
    assert first["starts"] == 1 and second["starts"] == 2
    assert second["seconds"]["lost"] == 7.5
    for bucket in ("startup", "compile", "data", "step", "evaluation", "checkpoint"):
        assert second["seconds"][bucket] >= first["seconds"][bucket] > 0, bucket
    assert 0 < second["goodput"] < 1


def test_goodput_adds_up(tmp_path):
    clocks = Goodput(epath.Path(tmp_path) / FILE, started=0.0)
    clocks.lose({6: 2.0})
    summary = clocks.summary()
    assert sum(summary["seconds"].values()) == pytest.approx(2.0 + summary["seconds"]["other"])


def test_a_step_that_was_counted_and_then_lost_is_counted_once(tmp_path):
    """The sums were left after step 5; the checkpoint of step 5 was not completed, and steps 5 and 6 are done again."""
    path = epath.Path(tmp_path) / FILE
    path.write_text(json.dumps({"step": 5, "starts": 1, "seconds": {"startup": 1.0, "step": 10.0}}))
    clocks = Goodput(path, started=time.monotonic())
    clocks.lose({5: 2.0, 6: 3.0})
    seconds = clocks.summary()["seconds"]
    assert (seconds["step"], seconds["lost"], seconds["startup"]) == (8.0, 5.0, 1.0)
    assert seconds["other"] < 0.5


@pytest.mark.slow
def test_a_profiler_window_is_written_on_request(tmp_path):
    train(make_run(), epath.Path(tmp_path), "test", build_mesh(MeshShape()), Execution(profile_from=3, profile_steps=2))
    assert list((tmp_path / PROFILE).rglob("*.xplane.pb"))


def test_the_host_reads_a_step_only_once_the_next_is_dispatched(tmp_path, monkeypatch):
    """Guards the overlap: between two evaluations, metrics of step n are read after step n + 1 was dispatched."""
    order = []
    make = loop.train_step

    def recording(setup):
        inner = make(setup)
        count = iter(range(1, 100))
        return lambda *arguments: order.append(("dispatch", next(count))) or inner(*arguments)

    read = loop.MetricsReader.read
    monkeypatch.setattr(loop, "train_step", recording)
    monkeypatch.setattr(
        loop.MetricsReader, "read", lambda self, p: order.append(("read", self._unread.step)) or read(self, p)
    )
    train(make_run(), epath.Path(tmp_path), "test", build_mesh(MeshShape()))
    place = {event: index for index, event in enumerate(order)}
    for number in (1, 2, 3, 5, 6, 7, 9):
        assert place["read", number] > place["dispatch", number + 1]


def test_checkpoints_of_another_plan_are_refused(undisturbed):
    with pytest.raises(SbpError, match="belongs to a run that reads the rows"):
        train(make_run(steps=12), undisturbed, "test", build_mesh(MeshShape()))


def test_parameters_are_restored_without_the_optimizers_state(undisturbed):
    """Guards against reading three times the bytes when only the best model is wanted."""
    checkpoints = Checkpoints(undisturbed / loop.CHECKPOINTS)
    target = loop.abstract_state(
        loop.Setup(MODEL, VOCABULARY, OPTIMIZATION, 10, 2, build_mesh(MeshShape()), Execution())
    ).parameters
    for file in Path(undisturbed / loop.CHECKPOINTS / "10" / "rest").rglob("*"):
        if file.is_file():
            file.rename(f"{file}.away")
    restored = checkpoints.restore_parameters(10, target)
    assert np.isfinite(restored["embedding"]).all()
    checkpoints.close()


def test_rows_that_do_not_divide_over_the_devices_are_said(tmp_path, capsys):
    """Guards against paying for eight devices and getting the speed of one."""
    train(make_run(2), epath.Path(tmp_path / "even"), "test", build_mesh(MeshShape()))
    assert "note" not in capsys.readouterr().err
    train(make_run(2), epath.Path(tmp_path / "odd"), "test", build_mesh(MeshShape()), Execution(accumulate=2))
    assert "batch_rows 8 in 2 pieces do not divide over data and fsdp" in capsys.readouterr().err
