"""Where a run's time went, over all its starts: how much of it was steps that count.

Buckets: `startup` (restoring, placing, opening), `compile` (the first step, which compiles), `data` (waiting for a
batch), `step`, `evaluation`, `checkpoint` (what the loop waits for, not the writing in the background), `other`, and
`lost` (steps done again after a kill).
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from etils import epath

from sbp_jax.artifacts.artifact import read_json

FILE = "goodput.json"
BUCKETS = ("startup", "compile", "data", "step", "evaluation", "checkpoint", "other", "lost")


class Goodput:
    """Seconds by bucket, added to those of earlier starts.

    Attributes:
      starts: times this run was started, this one included.
    """

    def __init__(self, path: epath.Path, started: float):
        """Reads what earlier starts left.

        Args:
          path: the JSON file.
          started: `time.monotonic()` at the start.
        """
        self._path, self._from = path, started
        before = read_json(path)
        before = before if isinstance(before, dict) else {}
        self.seconds = {name: float(before.get("seconds", {}).get(name, 0.0)) for name in BUCKETS}
        self.starts = int(before.get("starts", 0)) + 1
        self._counted = int(before.get("step", 0))  # up to here, `seconds` has what the steps took
        self._earlier = sum(self.seconds.values())

    @contextmanager
    def clock(self, bucket: str) -> Iterator[None]:
        """Adds the time that the block takes to a bucket."""
        start = time.monotonic()
        yield
        self.seconds[bucket] += time.monotonic() - start

    def lose(self, steps: Mapping[int, float]) -> None:
        """Takes steps of an earlier start, which are done again, for lost.

        Args:
          steps: the seconds that each took. That start may have counted them, before a checkpoint that a kill kept
            from being completed, or have been killed before it could.
        """
        self.seconds["lost"] += sum(steps.values())
        counted = sum(seconds for step, seconds in steps.items() if step <= self._counted)
        self.seconds["step"] = max(0.0, self.seconds["step"] - counted)
        self._earlier += sum(steps.values()) - counted

    def summary(self) -> dict[str, Any]:
        """Seconds by bucket, and the share of them that were steps."""
        total = self._earlier + time.monotonic() - self._from
        seconds = {**self.seconds, "other": 0.0}
        seconds["other"] = max(0.0, total - sum(seconds.values()))
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        return {"starts": self.starts, "seconds": rounded, "goodput": round(seconds["step"] / max(total, 1e-9), 4)}

    def write(self, step: int) -> None:
        """Leaves the sums for a later start, after so many steps."""
        self._path.write_text(json.dumps({"step": step, **self.summary()}, indent=1))
