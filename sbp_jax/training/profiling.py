"""A profiler window on request: `execution.profile_from`, or SIGUSR1 to the process while it runs."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from etils import epath

PROFILE = "profile"


class ProfilerWindow:
    """Traces some steps into a folder that TensorBoard and Perfetto read."""

    def __init__(self, folder: epath.Path, first: int | None, steps: int):
        self._folder, self._first, self._steps = folder / PROFILE, first, steps
        self._last: int | None = None
        self._before: Any = None
        self._asked = self._done = False

    def __enter__(self) -> "ProfilerWindow":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._last is not None:
            jax.profiler.stop_trace()
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def before(self, step: int) -> None:
        """Opens the window at its first step, or at the first after it that this start of the run does."""
        due = self._first is not None and step >= self._first and not self._done
        if self._last is None and (due or self._asked):
            self._asked, self._done, self._last = False, True, step + self._steps - 1
            jax.profiler.start_trace(str(self._folder))

    def after(self, step: int, result: Any) -> None:
        """Closes the window once its last step has been computed."""
        if step == self._last:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._last = None
