"""Metrics of a run: JSON Lines, one line a step without gaps or doubles after a resume, and TensorBoard events."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from sbp_jax.errors import SbpError

TENSORBOARD = "tensorboard"
TIMING = {"time", "seconds", "data_seconds", "tokens_per_second_per_chip", "mfu"}  # differ from run to run
EVENT_SECONDS = 1.0  # least time between TensorBoard's points; validation losses are all there


class MetricsLog:
    """Appends to a metrics file; the lines of steps that a resumed run does again are cut off first.

    Attributes:
      lost: seconds that each of the steps cut off had taken.

    Raises:
      SbpError: the lines of the steps done are not all there.
    """

    def __init__(self, path: epath.Path, steps_done: int, tensorboard: bool = False):
        kept = lines = 0
        content = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for line in content[:steps_done]:
            if not line.endswith(b"\n") or _parse(line).get("step") != lines + 1:
                break
            kept, lines = kept + len(line), lines + 1
        if lines != steps_done:
            raise SbpError(
                f"{path} lacks the metrics of steps {lines + 1} to {steps_done}, which cannot be made again;"
                f" delete {path.parent} and run `sbp run` again to train anew"
            )
        cut = [line for line in map(_parse, content[lines:]) if "step" in line]
        self.lost: dict[int, float] = {line["step"]: line.get("seconds", 0.0) for line in cut}
        if path.exists():
            os.truncate(path, kept)  # in one call: a kill in between loses nothing
        self._stream = open(path, "a")
        self._events = None
        if tensorboard:
            self._events = SummaryWriter(str(path.parent / TENSORBOARD), purge_step=steps_done + 1)
        self._last_event = 0.0

    def write(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        if self._events is None or ("validation" not in line and time.monotonic() - self._last_event < EVENT_SECONDS):
            return
        self._last_event = time.monotonic()
        for name, value in line.items():
            if isinstance(value, float | int) and name not in ("step", "time"):
                self._events.add_scalar(name, value, line["step"], walltime=line.get("time"))

    def sync(self) -> None:
        """Brings the lines to the disk; a checkpoint must never outlive the metrics of its steps."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()
        if self._events is not None:
            self._events.close()


class NoLog:
    """Stands for the log on the hosts that write none."""

    lost: Mapping[int, float] = {}

    def write(self, line: dict[str, Any]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def _parse(line: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:  # damaged
        return {}
    return parsed if isinstance(parsed, dict) else {}


def read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of a finished metrics file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
