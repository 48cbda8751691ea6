"""The training loop, shared by the base model, the synthesizer and every arm."""

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sbp_jax.config import Model, Optimization
from sbp_jax.data.mixing import Batch, Plan, mix
from sbp_jax.data.rows import RowSource
from sbp_jax.errors import SbpError
from sbp_jax.model.parameters import Parameters, place
from sbp_jax.progress import progress
from sbp_jax.training.checkpoints import Checkpoints
from sbp_jax.training.evaluation import mean_loss
from sbp_jax.training.metrics import MetricsLog
from sbp_jax.training.step import State, StepMetrics, abstract_state, new_state, to_device, train_step

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"


@dataclass(frozen=True)
class Run:
    """Everything that decides a training run.

    Attributes:
      vocabulary: entries of the tokenizer.
      streams: packed rows by stream name; `plan` says how many of each are read.
      validation: held-out rows that choose the best checkpoint.
      initial: parameters to start from (arrays of the host); None: random ones from `seed`.
    """

    model: Model
    vocabulary: int
    optimization: Optimization
    streams: Mapping[str, RowSource]
    plan: Plan
    validation: RowSource
    seed: int
    initial: Parameters | None = None

    @property
    def steps(self) -> int:
        return sum(self.plan.rows.values()) // self.optimization.batch_rows


@dataclass(frozen=True)
class Finished:
    """What a run leaves: parameters at the end and at the least validation loss, and tokens seen by stream."""

    final: Parameters
    best: Parameters
    best_step: int
    best_validation: float
    ledger: dict[str, dict[str, int]]


def train(run: Run, folder: epath.Path, label: str, mesh: Mesh) -> Finished:
    """Trains to the end of the plan, from the latest checkpoint in `folder` if a killed run left one.

    A resumed run repeats exactly the losses of one that was never killed.

    Raises:
      SbpError: a loss is not finite, or a checkpoint has other shapes than the model.
    """
    setup = (run.model, run.vocabulary, run.optimization, run.steps, mesh)
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    target = abstract_state(*setup)
    state, ledger = _start(run, checkpoints, target, mesh)
    done = int(state.step)
    step, log = train_step(*setup), MetricsLog(folder / METRICS, done)
    unread: tuple[int, StepMetrics] | None = None

    with closing(log), closing(checkpoints), progress(label, run.steps, "steps") as counter:
        counter.skip(done)
        for batch in _batches(run, done):
            state, metrics = step(state, to_device(batch, mesh))
            done += 1
            _count(ledger, run.plan, batch)
            if unread:  # the step just dispatched runs while the one before it is read
                log.write(_read(unread))
            unread = done, metrics
            if done % run.optimization.evaluate_every == 0 or done == run.steps:
                validation = _validate(run, state, mesh)
                log.write(_read(unread) | {"validation": validation})
                unread = None
                checkpoints.save(done, state, {"ledger": ledger}, validation)
                counter.advance(0, f"validation {validation:.3f}")
            counter.advance()
        best_step, best_validation = checkpoints.best()
        best = state if best_step == done else checkpoints.restore(best_step, target)[0]
    return Finished(state.parameters, best.parameters, best_step, best_validation, ledger)


def _start(run: Run, checkpoints: Checkpoints, target: State, mesh: Mesh) -> tuple[State, dict[str, dict[str, int]]]:
    """The state and the ledger to go on from."""
    if checkpoints.latest is not None:
        state, position = checkpoints.restore(checkpoints.latest, target)
        return state, position["ledger"]
    initial = None if run.initial is None else place(run.initial, target.parameters)
    state = new_state(run.model, run.vocabulary, run.optimization, run.steps, run.seed, mesh, initial)
    return state, {name: {"rows": 0, "tokens": 0} for name in run.plan.rows}


def _batches(run: Run, done: int) -> grain.DatasetIterator:
    """The batches of the steps that are left, read ahead by threads."""
    batches = mix(run.streams, run.plan, run.optimization.batch_rows, run.seed)
    return iter(batches[done:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def _count(ledger: dict[str, dict[str, int]], plan: Plan, batch: Batch) -> None:
    for index, name in enumerate(plan.rows):
        rows = batch["stream"] == index
        ledger[name]["rows"] += int(rows.sum())
        ledger[name]["tokens"] += int(batch["mask"][rows].sum())


def _validate(run: Run, state: State, mesh: Mesh) -> float:
    loss = mean_loss(run.model, run.vocabulary, state.parameters, run.validation, run.optimization.batch_rows, mesh)
    if not math.isfinite(loss):
        rate = run.optimization.peak_lr
        raise SbpError(f"the validation loss at step {int(state.step)} is not finite; lower peak_lr (now {rate:g})")
    return loss


def _read(unread: tuple[int, StepMetrics]) -> dict[str, Any]:
    """Brings a step's metrics to the host, as a line of the log."""
    step, on_device = unread
    metrics = StepMetrics(*(np.asarray(value) for value in jax.device_get(on_device)))
    line = {
        "step": step,
        "loss": float(metrics.nats / metrics.targets),
        "targets": int(metrics.targets),
        "gradient_norm": float(metrics.gradient_norm),
        "parameter_norm": float(metrics.parameter_norm),
        "learning_rate": float(metrics.learning_rate),
        "time": round(time.time(), 3),
    }
    if not math.isfinite(line["loss"]):
        raise SbpError(f"the loss at step {step} is not finite; lower the learning rate (peak_lr) or the gradient clip")
    return line
