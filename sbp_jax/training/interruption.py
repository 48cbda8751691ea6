"""What ends a run from outside: SIGTERM, which saves first, and a peer that hangs, which is reported."""

import faulthandler
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from sbp_jax.artifacts.artifact import read_json
from sbp_jax.parallel import hosts

STALLED = 75  # exit status after a stall: EX_TEMPFAIL
HOSTS = "hosts"


_questions = itertools.count(1)  # how often this process asked; all hosts ask equally often


def all_asked_to_stop() -> bool:
    """Whether SIGTERM has come to any of several hosts; true on all of them at the same call."""
    return hosts.several() and multihost_utils.reached_preemption_sync_point(next(_questions))


class Termination:
    """Notices SIGTERM while the block runs; on several hosts all of them stop after the same step.

    Attributes:
      asked: whether the signal has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "Termination":
        # On several hosts JAX itself has the signal, and tells the others.
        if not hosts.several() and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def after_step(self) -> bool:
        """Whether to stop now; has to be asked after every step."""
        self.asked = self.asked or all_asked_to_stop()
        return self.asked


class Watchdog:
    """Ends the process when the run makes no progress for too long, with the stacks of all threads.

    A host that waits in a collective for a peer that hangs would wait without end. Each host leaves its last step in a
    shared folder, so that the report says which of them lag.
    """

    def __init__(self, folder: epath.Path, limit: float):
        """Begins to watch.

        Args:
          folder: of the run, shared by the hosts.
          limit: seconds without progress.
        """
        self._folder, self._limit = folder / HOSTS, limit
        self._step, self._moved = 0, time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if hosts.several():
            self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def progress(self, step: int) -> None:
        """Says that this many steps are done."""
        self._step = step
        self.alive()

    def alive(self) -> None:
        """Says that what comes between two steps goes on."""
        self._moved = time.monotonic()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = min(5.0, self._limit / 10)
        while not self._closed.wait(pause):
            still = time.monotonic() - self._moved
            if still > self._limit:
                self._report(still)
                if hosts.several():  # the first to end takes the others with it, who have to report as well
                    time.sleep(3 * pause)
                os._exit(STALLED)
            if hosts.several():
                own = {"step": self._step, "host": socket.gethostname(), "pid": os.getpid()}
                with suppress(OSError):  # a shared disk in trouble is what this watches for too
                    (self._folder / f"{jax.process_index()}.json").write_text(json.dumps(own))

    def _report(self, still: float) -> None:
        print(f"no progress for {still:.0f} s after step {self._step} on process {jax.process_index()}; its stacks:",
              file=sys.stderr, flush=True)  # fmt: skip
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        lines = ["the last that each process said of itself:"]
        for process in range(jax.process_count() if hosts.several() else 0):
            entry = read_json(self._folder / f"{process}.json") or {}
            where = f"{entry.get('host', 'an unknown host')} (pid {entry.get('pid', 'unknown')})"
            lines.append(f"  process {process} on {where} has done {entry.get('step', 'an unknown number of')} steps")
        lines.append("this process stops; started again, all go on from the last checkpoint")
        print("\n".join(lines), file=sys.stderr, flush=True)
