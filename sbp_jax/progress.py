"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_LINE_SECONDS = 15.0


class Counter:
    """Counts units of finished work and shows the rate and the time left."""

    def __init__(self, label: str, total: int | None, unit: str, bar: Progress | None):
        self.label, self.total, self.unit, self.bar = label, total, unit, bar
        self.done = 0
        self.first = 0
        self.started = time.monotonic()
        self._shown = self.started
        self._task = bar.add_task(label, total=total, rate="") if bar else None

    def skip(self, units: int) -> None:
        """Counts work that an earlier run had finished; it does not enter the rate."""
        self.first += units
        self.advance(units)

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units
        if self.bar is not None and self._task is not None:
            self.bar.update(self._task, completed=self.done, rate=f"{self._rate()} {note}")
        elif time.monotonic() - self._shown > PLAIN_LINE_SECONDS:
            self._shown = time.monotonic()
            print(f"  {self._line()} {note}".rstrip(), file=sys.stderr, flush=True)

    def _rate(self) -> str:
        per_second = (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)
        return f"{per_second:,.0f} {self.unit}/s" if per_second >= 10 else f"{per_second:.2f} {self.unit}/s"

    def _line(self) -> str:
        of = f"/{self.total:,}" if self.total else ""
        line = f"{self.label}: {self.done:,}{of} {self.unit}, {self._rate()}"
        if self.total and self.done > self.first:
            left = (time.monotonic() - self.started) / (self.done - self.first) * (self.total - self.done)
            line += f", {left:.0f} s left"
        return line


@contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[Counter]:
    """Shows `label` with a rate and an estimate of the time left while the block runs.

    Args:
      label: what is being done, in a few words.
      total: units of work in all, None when unknown.
      unit: the plural of the unit, such as "documents".
    """
    if not sys.stderr.isatty():
        yield Counter(label, total, unit, None)
        return
    from rich.console import Console

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}" + (f"/{total:,}" if total else "") + f" {unit}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Counter(label, total, unit, bar)
