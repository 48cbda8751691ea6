"""What ends a run from outside: SIGTERM, which saves first, and a peer that hangs, which is reported."""

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from sbp_jax.artifacts.artifact import read_json
from sbp_jax.parallel import hosts

STALLED = 75  # exit status after a stall: EX_TEMPFAIL, worth trying again
HOSTS = "hosts"


class Termination:
    """Notices SIGTERM while the block runs; on several hosts all of them stop after the same step."""

    def __init__(self) -> None:
        self._asked = False
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
        self._asked = True

    def after(self, step: int) -> bool:
        """Whether to stop after this step; has to be asked after every step."""
        return multihost_utils.reached_preemption_sync_point(step) if hosts.several() else self._asked


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
        while not self._closed.wait(min(5.0, self._limit / 10)):
            if hosts.several():
                own = {"step": self._step, "host": socket.gethostname(), "pid": os.getpid()}
                (self._folder / f"{jax.process_index()}.json").write_text(json.dumps(own))
            still = time.monotonic() - self._moved
            if still > self._limit:
                self._report(still)
                os._exit(STALLED)

    def _report(self, still: float) -> None:
        lines = [f"no progress for {still:.0f} s after step {self._step} on process {jax.process_index()}:"]
        for process in range(jax.process_count() if hosts.several() else 0):
            entry = read_json(self._folder / f"{process}.json") or {}
            where = f"{entry.get('host', 'an unknown host')} (pid {entry.get('pid', 'unknown')})"
            lines.append(f"  process {process} on {where} has done {entry.get('step', 'an unknown number of')} steps")
        lines.append("it stops now, and the same command goes on from the last checkpoint; its stacks:")
        print("\n".join(lines), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
