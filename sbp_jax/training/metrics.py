"""Metrics of a run as JSON Lines, one line a step, without gaps or doubles after a resume."""

import json
import os
from typing import Any

from etils import epath

from sbp_jax.errors import SbpError


class MetricsLog:
    """Appends to a metrics file; the lines of steps that a resumed run does again are cut off first.

    Raises:
      SbpError: the lines of the steps done are not all there.
    """

    def __init__(self, path: epath.Path, steps_done: int):
        kept = lines = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True)[:steps_done]:
                if not line.endswith(b"\n") or _step(line) != lines + 1:
                    break
                kept, lines = kept + len(line), lines + 1
        if lines != steps_done:
            raise SbpError(
                f"{path} lacks the metrics of steps {lines + 1} to {steps_done}, which cannot be made again;"
                f" delete {path.parent} and run `sbp run` again to train anew"
            )
        if path.exists():
            os.truncate(path, kept)  # in one call: a kill in between loses nothing
        self._stream = open(path, "a")

    def write(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def _step(line: bytes) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # damaged
        return None


def read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of a finished metrics file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
