"""Metrics of a run as JSON Lines, one line a step, without gaps or doubles after a resume."""

import json
import os
from typing import Any

from etils import epath


class MetricsLog:
    """Appends to a metrics file; the lines of steps that a resumed run does again are cut off first."""

    def __init__(self, path: epath.Path, steps_done: int):
        kept = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n") or json.loads(line)["step"] > steps_done:
                    break
                kept += len(line)
            os.truncate(path, kept)  # in one call: a kill in between loses nothing
        self._stream = open(path, "a")

    def write(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of a finished metrics file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
