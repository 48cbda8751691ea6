"""Times the steps of one process and prints one line of JSON; every peer's script and ours use it.

CPU-seconds are those of all threads of the process: on a shared machine they say more than the clock on the wall.
"""

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

WARM_UP = 2  # steps that compile, allocate and are not counted


def measure(step: Callable[[], float], tokens: int, steps: int, packages: tuple[str, ...]) -> None:
    """Prints tokens/s, seconds and CPU-seconds of a step, the first and the last loss, and versions.

    Args:
      step: does one whole step and gives its loss as a number, so that nothing is left running.
      tokens: of one step.
      packages: whose versions are printed.
    """
    losses = [step() for _ in range(WARM_UP)]
    seconds, cpu_seconds = [], []
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        losses.append(step())
        seconds.append(time.perf_counter() - wall)
        cpu_seconds.append(time.process_time() - cpu)
    line = {
        "tokens_per_second": tokens / statistics.median(seconds),
        "seconds_per_step": statistics.median(seconds),
        "cpu_seconds_per_step": statistics.median(cpu_seconds),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "versions": versions(packages),
    }
    print(json.dumps(line))


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


class Whole:
    """The clock, the processor time and the memory of one long piece of work in two parts."""

    def __enter__(self) -> "Whole":
        self._before = _peak_bytes()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._build = 0.0
        return self

    def built(self) -> None:
        """Ends the first part."""
        self._build = time.perf_counter() - self._wall

    def __exit__(self, *_: object) -> None:
        self._seconds, self._cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self._peak = _peak_bytes() - self._before

    def line(self, raw: int, packages: tuple[str, ...], given: int = 0) -> dict[str, object]:
        """What was measured; memory is what was added to that of the imports, as a multiple of `raw` bytes.

        Args:
          given: bytes that the work was given in memory, and holds as well.
        """
        return {
            "seconds": self._seconds,
            "build": self._build,
            "search": self._seconds - self._build,
            "cpu_seconds": self._cpu,
            "memory/raw": (self._peak + given) / raw,
            "versions": versions(packages),
        }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
