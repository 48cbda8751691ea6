"""Metrics of the steps as lines of the log, each read from the device while the next step runs."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from sbp_jax.data.mixing import Batch, Plan
from sbp_jax.data.rows import SYNTHETIC
from sbp_jax.errors import SbpError
from sbp_jax.model.parameters import Parameters
from sbp_jax.parallel import hosts
from sbp_jax.training.batches import host_rows
from sbp_jax.training.flops import flops_per_token, peak_flops
from sbp_jax.training.step import Setup, StepMetrics, evaluation_step


class _Unread(NamedTuple):
    step: int
    metrics: StepMetrics
    batch: Batch
    on_device: dict[str, jax.Array]
    data_seconds: float


class MetricsReader:
    """Holds the metrics of the last step until they are read, and keeps the ledger of rows and tokens seen."""

    def __init__(
        self,
        plan: Plan,
        setup: Setup,
        folder: epath.Path,
        ledger: dict[str, dict[str, int]],
        token_bytes: float | None,
    ):
        self._plan, self._setup, self._folder, self._ledger = plan, setup, folder, ledger
        self._token_bytes = token_bytes
        self._unread: _Unread | None = None
        self._mark = time.monotonic()
        devices = setup.mesh.devices
        peak = peak_flops(devices.flat[0].device_kind)
        token_flops = flops_per_token(setup.model, setup.vocabulary, setup.optimization.context)
        self._token_utilization = None if peak is None else token_flops / peak
        self._chips = devices.size

    @property
    def waiting(self) -> bool:
        return self._unread is not None

    def put(
        self, step: int, metrics: StepMetrics, batch: Batch, on_device: dict[str, jax.Array], data_seconds: float
    ) -> None:
        self._unread = _Unread(step, metrics, batch, on_device, data_seconds)

    def restart_clock(self) -> None:
        """Leaves what came since the last line, such as a checkpoint, out of the next step's seconds."""
        self._mark = time.monotonic()

    def read(self, parameters: Parameters) -> dict[str, Any]:
        """The line of the step that waits; counts its rows and tokens.

        Args:
          parameters: the latest; they find the rows at fault where a number is not finite.

        Raises:
          SbpError: the loss or the gradient is not finite; the documents of the batch are written down.
        """
        assert self._unread is not None
        step, data_seconds = self._unread.step, self._unread.data_seconds
        metrics = StepMetrics(*(np.asarray(value) for value in jax.device_get(self._unread.metrics)))
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        targets = int(metrics.targets.sum())
        line: dict[str, Any] = {"step": step, "loss": float(metrics.nats / max(targets, 1))}
        if not math.isfinite(line["loss"]) or not math.isfinite(float(metrics.gradient_norm)):
            raise self._not_finite(self._unread, parameters)
        for stream, rows, tokens in zip(self._ledger.values(), metrics.rows, metrics.targets, strict=True):
            stream["rows"] += int(rows)
            stream["tokens"] += int(tokens)
        self._unread = None
        line |= self._bits(line["loss"], "bits_per_byte")
        line |= {
            "targets": targets,
            "tokens_seen": sum(stream["tokens"] for stream in self._ledger.values()),
            "gradient_norm": float(metrics.gradient_norm),
            "parameter_norm": float(metrics.parameter_norm),
            "learning_rate": float(metrics.learning_rate),
            "skipped": bool(metrics.skipped),
        }
        rate = targets / seconds / self._chips
        line |= {"tokens_per_second_per_chip": round(rate, 1)}
        line |= {"mfu": None if self._token_utilization is None else round(rate * self._token_utilization, 4)}
        return line | {
            "seconds": round(seconds, 6),
            "data_seconds": round(data_seconds, 6),
            "time": round(time.time(), 3),
        }

    def validation(self, loss: float, texts: Mapping[str, float]) -> dict[str, float]:
        """What an evaluation adds to the line of its step.

        Args:
          texts: losses on other held-out sets, by name.

        Raises:
          SbpError: the loss is not finite.
        """
        if not math.isfinite(loss):
            rate = self._setup.optimization.peak_lr
            raise SbpError(f"the validation loss is not finite; lower peak_lr (now {rate:g})")
        others = {f"validation/{name}": told for name, told in texts.items()}
        return {"validation": loss} | self._bits(loss, "validation_bits_per_byte") | others

    def _bits(self, loss: float, name: str) -> dict[str, float]:
        return {} if self._token_bytes is None else {name: loss / math.log(2) / self._token_bytes}

    def _row_losses(self, batch: dict[str, jax.Array], parameters: Parameters) -> np.ndarray:
        """Nats of each row of the batch, in the pieces that training takes, for more may not fit the device."""
        pieces = self._setup.execution.accumulate
        losses_B = np.empty(self._setup.optimization.batch_rows)
        for first in range(pieces):
            piece = {name: array[first::pieces] for name, array in batch.items()}
            losses_B[first::pieces] = np.asarray(evaluation_step(self._setup)(parameters, piece)).sum(axis=1)
        return losses_B

    def _not_finite(self, unread: _Unread, parameters: Parameters) -> SbpError:
        """Writes down which documents this host's rows of the batch hold, and the error that says where."""
        losses_B = self._row_losses(unread.on_device, parameters)
        rows = np.flatnonzero(~np.isfinite(losses_B)).tolist()
        own = host_rows(len(losses_B), self._setup.mesh) or range(len(losses_B))
        names = list(self._plan.rows)
        record = {
            "step": unread.step,
            "rows that give no finite loss": rows,
            "rows of this host": [
                {"row": row, "stream": names[int(stream)], **_documents(documents)}
                for row, stream, documents in zip(own, unread.batch["stream"], unread.batch["documents"], strict=True)
            ],
        }
        suffix = f"-{jax.process_index()}" if hosts.several() else ""
        file = self._folder / f"not-finite-step-{unread.step}{suffix}.json"
        file.write_text(json.dumps(record, indent=1))
        found = f"{len(rows)} of its {len(losses_B)} rows give no finite loss" if rows else "the gradient overflows"
        return SbpError(
            f"the loss or the gradient at step {unread.step} is not finite ({found}); the documents of the batch are"
            f" listed in {file}. Lower the learning rate (peak_lr) or the gradient clip, or look at those documents;"
            " the run goes on from its last checkpoint"
        )


def _documents(documents_L: np.ndarray) -> dict[str, list[int]]:
    """Ordinals of a row's documents; those of synthetic ones apart where real ones stand in the same stream."""
    held = np.unique(documents_L[documents_L >= 0])
    synthetic = held[held >= SYNTHETIC] - SYNTHETIC
    told = {"documents": held[held < SYNTHETIC].tolist()}
    return told | ({"synthetic documents": synthetic.tolist()} if len(synthetic) else {})
