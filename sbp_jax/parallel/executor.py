"""Where the tasks of a CPU stage are carried out: in processes of this machine, or on a Ray cluster.

A task is a function of one small item, such as the number of a shard, which writes files of its own and gives little
back. Neither the place nor the number of attempts can change what it writes. So a task that fails is tried again, one
that fails every time takes no other along, and what is in flight is bounded.
"""

import errno
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Protocol, TypeVar

from sbp_jax.config import Execution
from sbp_jax.errors import SbpError

T = TypeVar("T")
R = TypeVar("R")
TRIES = 3
POOL_SECONDS = 3.0  # work in all from which on other processes, which take a second to start, are worth it
CONNECT_SECONDS = 10.0
IN_FLIGHT = 2  # tasks handed out for each one that can run
NAMES = ("processes", "ray")
SHOWN = 5  # failures told by name


class Lost(Exception):
    """Where the task ran is gone: its process was killed, or its node is down."""


def carry_out(execution: Execution, label: str, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The result of the function for each item, as they come.

    Args:
      function: picklable, as are the items and the results.

    Raises:
      SbpError: some tasks failed every time, once all others are done; or there is no such executor.
    """
    if execution.executor not in NAMES:
        raise SbpError(f"execution.executor={execution.executor}; it may be {' or '.join(NAMES)}")
    failures: dict[T, BaseException] = {}
    left = deque(items)
    if execution.executor == "processes":
        yield from _here(execution, function, left, failures)
    if left:
        place = _Ray(execution, function) if execution.executor == "ray" else _Processes(_workers(execution), function)
        yield from _in(place, left, failures)
    if failures:
        raise _summary(label, failures, len(items))


def _workers(execution: Execution) -> int:
    return execution.workers or len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )


def _here(
    execution: Execution, function: Callable[[T], R], left: deque[T], failures: dict[T, BaseException]
) -> Iterator[R]:
    """Takes tasks off the left until those behind them are many enough to be worth other processes."""
    alone, started, done = _workers(execution) == 1, time.monotonic(), 0
    while left:
        if not alone and len(left) > 1 and done and (time.monotonic() - started) / done * len(left) > POOL_SECONDS:
            return
        item = left.popleft()
        for attempt in range(TRIES):
            try:
                result = function(item)
            except Exception as error:
                if _hopeless(error):
                    raise
                failures[item] = error
                if isinstance(error, SbpError):
                    break
                time.sleep(attempt)
            else:
                failures.pop(item, None)
                yield result
                break
        done += 1


class _Place(Protocol):
    """Where tasks run."""

    @property
    def width(self) -> int:
        """Tasks that run at the same time."""

    def __enter__(self) -> "_Place": ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def submit(self, item: Any) -> Any: ...

    def next_done(self, running: Sequence[Any]) -> Any: ...

    def result(self, task: Any) -> Any:
        """What the task gave; raises `Lost`, or what the task raised."""


def _in(place: _Place, left: deque[T], failures: dict[T, BaseException]) -> Iterator[Any]:
    """Takes all tasks off the left.

    Which of several tasks killed their place is not known, so each of those that were lost with it is tried alone.
    """
    tries: dict[T, int] = {}
    suspects: deque[T] = deque()
    running: dict[Any, T] = {}
    with place:
        while left or suspects or running:
            while left and not suspects and len(running) < IN_FLIGHT * place.width:
                item = left.popleft()
                running[place.submit(item)] = item
            if suspects and not running:
                item = suspects.popleft()
                running[place.submit(item)] = item
            task = place.next_done(list(running))
            item = running.pop(task)
            try:
                result = place.result(task)
            except Exception as error:
                if _hopeless(error):
                    raise
                tries[item] = tries.get(item, 0) + 1
                if isinstance(error, SbpError) or tries[item] == TRIES:
                    failures[item] = error
                else:
                    (suspects if isinstance(error, Lost) else left).append(item)
            else:
                yield result


class _Processes:
    """Processes of this machine; those that are lost are replaced."""

    def __init__(self, workers: int, function: Callable[[Any], Any]):
        self.width, self._function = workers, function
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self._pool is not None:  # nothing half-written is read, so nobody is waited for
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._close()

    def submit(self, item: Any) -> Future:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork of a process with threads may stand still
            self._pool = ProcessPoolExecutor(self.width, context, _prepare)
        try:
            return self._pool.submit(self._function, item)
        except BrokenProcessPool as broken:
            failed: Future = Future()
            failed.set_exception(broken)
            return failed

    def next_done(self, running: Sequence[Future]) -> Future:
        return next(iter(wait(running, return_when=FIRST_COMPLETED).done))

    def result(self, task: Future) -> Any:
        try:
            return task.result()
        except BrokenProcessPool as error:
            self._close()
            why = "perhaps for want of memory (see execution.workers), or because a script of yours that runs this has"
            raise Lost(f"its process was killed, {why} no `if __name__ == '__main__':`") from error

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


def _prepare() -> None:
    """Makes a process fit for tasks: it has one core, leaves Ctrl-C to its parent, and ends when that does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


class _Ray:
    """The cores of a Ray cluster whose nodes have the work folder mounted at the same path."""

    def __init__(self, execution: Execution, function: Callable[[Any], Any]):
        try:
            import ray
        except ImportError as error:
            raise SbpError("execution.executor=ray needs Ray: pip install -r requirements-ray.txt") from error
        self._ray, self._function, self._address = ray, function, execution.ray_address
        self._workers = execution.workers

    def __enter__(self) -> "_Ray":
        if not self._ray.is_initialized():
            host, _, port = (self._address or "").rpartition(":")
            try:
                if host and port.isdigit() and "://" not in host:  # Ray itself would try for minutes
                    socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
                self._ray.init(
                    self._address, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING
                )
            except (OSError, ValueError) as error:
                where = f"no Ray cluster answers at {self._address} ({error})"
                raise SbpError(f"{where}; check --ray-address, or start one with `ray start`") from error
        # Retries are counted here, where those of all places are.
        self._task = self._ray.remote(num_cpus=1, max_retries=0)(_alone(self._function))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ray.shutdown()

    @property
    def width(self) -> int:
        """As of now, since nodes come and go."""
        return self._workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, item: Any) -> Any:
        return self._task.remote(item)

    def next_done(self, running: Sequence[Any]) -> Any:
        return self._ray.wait(list(running), num_returns=1)[0][0]

    def result(self, task: Any) -> Any:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # raised by the task itself
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except self._ray.exceptions.RayError as error:
            raise Lost(f"its node or its process was lost ({type(error).__name__})") from error


def _alone(function: Callable[[T], R]) -> Callable[[T], R]:
    """The function in a process to which one core is given."""

    def task(item: T) -> R:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return function(item)

    return task


def _hopeless(error: BaseException) -> bool:
    """Whether all other tasks would fail as well."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def _summary(label: str, failures: dict[Any, BaseException], tasks: int) -> BaseException:
    first = next(iter(failures.values()))
    if len(failures) == 1 and isinstance(first, SbpError):
        return first
    told = [f"{item}: {type(error).__name__}: {error}" for item, error in list(failures.items())[:SHOWN]]
    more = f"; and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
    error = SbpError(
        f"{label}: {len(failures)} of {tasks} tasks failed {TRIES} times, all others are done; {'; '.join(told)}{more}"
    )
    error.__cause__ = first
    return error
