"""The training loop, shared by the base model, the synthesizer and every arm."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from etils import epath
from jax.sharding import Mesh

from sbp_jax.config import Execution, Model, Optimization
from sbp_jax.data.mixing import Batch, Plan, mix
from sbp_jax.data.rows import Row, RowSource
from sbp_jax.errors import SbpError, Stopped
from sbp_jax.model.parameters import Parameters
from sbp_jax.parallel import hosts
from sbp_jax.progress import progress
from sbp_jax.training import goodput
from sbp_jax.training.batches import divides, host_rows, read_ahead, to_device
from sbp_jax.training.checkpoints import Checkpoints
from sbp_jax.training.evaluation import mean_loss, text_losses
from sbp_jax.training.interruption import Termination, Watchdog
from sbp_jax.training.metrics import MetricsLog, NoLog
from sbp_jax.training.profiling import ProfilerWindow
from sbp_jax.training.step import Setup, State, abstract_state, new_state, train_step
from sbp_jax.training.step_metrics import MetricsReader

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"


@dataclass(frozen=True)
class Run:
    """Everything that decides a training run.

    Attributes:
      vocabulary: entries of the tokenizer.
      streams: packed rows by stream name; `plan` says how many of each are read.
      validation: held-out rows that choose the best checkpoint.
      token_bytes: mean bytes of text behind a target, for bits per byte.
      texts: rows of other held-out sets, by name, whose losses are told beside that of `validation`.
      load: makes the parameters to start from, placed as the abstract ones it is given; None: random ones from `seed`.
    """

    model: Model
    vocabulary: int
    optimization: Optimization
    streams: Mapping[str, RowSource]
    plan: Plan
    validation: RowSource
    seed: int
    token_bytes: float | None = None
    load: Any = None
    texts: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return sum(self.plan.rows.values()) // self.optimization.batch_rows


@dataclass(frozen=True)
class Finished:
    """What a run leaves.

    Attributes:
      parameters: at the end.
      ledger: rows and tokens seen, by stream.
      goodput: where the time went.
    """

    setup: Setup
    parameters: Parameters
    best_step: int
    best_validation: float
    ledger: dict[str, dict[str, int]]
    goodput: dict[str, Any]


def train(run: Run, folder: epath.Path, label: str, mesh: Mesh, execution: Execution | None = None) -> Finished:
    """Trains to the end of the plan, from the latest checkpoint in `folder` if a killed run left one.

    A resumed run repeats exactly the losses of one that was never killed.

    Raises:
      SbpError: a loss or a gradient is not finite, or a checkpoint has other shapes than the model.
      Stopped: SIGTERM came; the state is saved.
    """
    started, execution = time.monotonic(), execution or Execution()
    setup = Setup(run.model, run.vocabulary, run.optimization, run.steps, len(run.plan.rows), mesh, execution)
    if hosts.is_first() and not divides(setup):
        rows, pieces = run.optimization.batch_rows, execution.accumulate
        print(
            f"note: {label}: batch_rows {rows} in {pieces} pieces do not divide over data and fsdp of the mesh"
            f" {dict(mesh.shape)}, so that every device computes all rows",
            file=sys.stderr,
        )
    with ExitStack() as stack:
        watchdog = stack.enter_context(closing(Watchdog(folder, execution.stall_seconds)))
        clocks = goodput.Goodput(folder / goodput.FILE, started)
        checkpoints = stack.enter_context(
            closing(Checkpoints(folder / CHECKPOINTS, execution.keep_last, execution.keep_every))
        )
        with clocks.clock("startup"):
            state, ledger = _start(run, setup, checkpoints)
            done = int(state.step)
            log = stack.enter_context(closing(_log(folder, done, execution)))
            clocks.lose(log.lost)
            step, batches = train_step(setup), _batches(run, setup, done)
            reader = MetricsReader(run.plan, setup, folder, ledger, run.token_bytes)
            watchdog.progress(done)
        window = stack.enter_context(ProfilerWindow(folder, execution.profile_from, execution.profile_steps))
        termination = stack.enter_context(Termination())
        counter = stack.enter_context(progress(label, run.steps, "steps"))
        counter.skip(done)

        bucket = "compile"  # what the first step takes
        while done < run.steps:
            with clocks.clock("data"):
                waited = time.monotonic()
                batch = next(batches)
                on_device = to_device(batch, mesh, run.optimization.batch_rows)
                waited = time.monotonic() - waited
            window.before(done + 1)
            with clocks.clock(bucket):
                state, metrics = step(state, on_device)
                done += 1
                if reader.waiting:  # the step just dispatched runs while the one before it is read
                    log.write(reader.read(state.parameters))
                reader.put(done, metrics, batch, on_device, waited)
            bucket = "step"
            window.after(done, metrics)
            watchdog.progress(done)
            counter.advance()

            stopping = termination.after_step()
            evaluating = done % run.optimization.evaluate_every == 0 or done == run.steps
            if evaluating or stopping or done % (execution.checkpoint_every or run.steps) == 0:
                with clocks.clock("step"):
                    line, validation = reader.read(state.parameters), None
                if evaluating:
                    with clocks.clock("evaluation"):
                        validation = mean_loss(setup, state.parameters, run.validation, watchdog.alive)
                        texts = text_losses(setup, state.parameters, run.texts, watchdog.alive)
                    line |= reader.validation(validation, texts)
                    counter.advance(0, f"validation {validation:.3f}")
                log.write(line)
                with clocks.clock("checkpoint"):
                    log.sync()
                    checkpoints.save(done, state, {"ledger": ledger, "plan": dict(run.plan.rows)}, validation)
                if hosts.is_first():
                    clocks.write(done)
                reader.restart_clock()
                watchdog.alive()
            if stopping:
                break
        if termination.asked:
            raise Stopped(f"{label} was asked to stop and has saved its state after step {done} of {run.steps}")
        best_step, best_validation = checkpoints.best()
    return Finished(setup, state.parameters, best_step, best_validation, ledger, clocks.summary())


def best_parameters(finished: Finished, folder: epath.Path) -> Parameters:
    """Those at the least validation loss; whoever holds others no longer needs to, for these come from the disk."""
    with closing(Checkpoints(folder / CHECKPOINTS)) as checkpoints:
        return checkpoints.restore_parameters(finished.best_step, abstract_state(finished.setup).parameters)


def _start(run: Run, setup: Setup, checkpoints: Checkpoints) -> tuple[State, dict[str, dict[str, int]]]:
    """The state and the ledger to go on from."""
    target, latest = abstract_state(setup), hosts.first_says(checkpoints.latest or 0)
    if not latest:
        parameters = None if run.load is None else run.load(target.parameters)
        ledger = {name: {"rows": 0, "tokens": 0} for name in run.plan.rows}
        return new_state(setup, run.seed, parameters), ledger
    state, position = checkpoints.restore(latest, target)
    if position["plan"] != dict(run.plan.rows):
        theirs, ours = position["plan"], dict(run.plan.rows)
        raise SbpError(
            f"{checkpoints.folder} belongs to a run that reads the rows {theirs}, and this one reads {ours};"
            f" delete {checkpoints.folder.parent} to start this run over"
        )
    return state, position["ledger"]


def _log(folder: epath.Path, done: int, execution: Execution) -> MetricsLog | NoLog:
    return MetricsLog(folder / METRICS, done, execution.tensorboard) if hosts.is_first() else NoLog()


def _batches(run: Run, setup: Setup, done: int) -> Iterator[Batch]:
    """The batches of the steps that are left, of each the rows of this host's devices."""
    rows = run.optimization.batch_rows
    return read_ahead(mix(run.streams, run.plan, rows, run.seed, host_rows(rows, setup.mesh))[done:])
