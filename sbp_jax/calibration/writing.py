"""Documents written at several settings of sampling, all of them side by side in one pass of the engines."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from sbp_jax.generation import replicas
from sbp_jax.generation.requests import Completion, Request, Sampling
from sbp_jax.generation.run_requests import RunRequests
from sbp_jax.progress import progress


@dataclass(frozen=True)
class Speed:
    """How fast the engines of this machine are once they run.

    Attributes:
      tokens: that were written while it was measured: those of documents that ended then.
      seconds: between the first and the last of them, without the time in which slots fill and run empty.
      slots: of all engines.
    """

    tokens: int
    seconds: float
    slots: int

    @property
    def rate(self) -> float:
        """New tokens a second."""
        return self.tokens / max(self.seconds, 1e-9)


def write(
    source: RunRequests,
    settings: Sequence[Sampling],
    documents: int,
    slots: int,
    build: Callable[[int], Sequence[replicas.Generator]],
    label: str,
) -> tuple[list[list[Completion]], Speed]:
    """The first documents of a run at each setting: for the same seeds, with the same random keys.

    Args:
      slots: of each engine to begin with.
      build: makes the engines for so many slots.

    Returns:
      The completions of each setting by the numbers of their requests, and the speed.
    """
    done: dict[int, Completion] = {}
    ends: list[tuple[float, int]] = []
    used = 0

    def requests(number: int) -> Iterator[Request]:
        request = source.request(number)
        for place, sampling in enumerate(settings):
            own = number * len(settings) + place
            if own not in done:
                yield replace(request, number=own, sampling=sampling)

    with progress(label, documents * len(settings), "documents") as counter:

        def use(engines: Sequence[replicas.Generator]) -> None:
            nonlocal used
            used = sum(getattr(engine, "slots", slots) for engine in engines)
            ends[:] = [(time.monotonic(), 0)]
            for completion in replicas.generate(engines, [requests(number) for number in range(documents)]):
                done[completion.request.number] = completion
                ends.append((time.monotonic(), new_tokens(completion)))
                counter.advance()

        replicas.backing_off(slots, build, use, lambda line: print(f"{label}: {line}", file=sys.stderr, flush=True))
    written = [
        [
            replace(done[own], request=replace(done[own].request, number=number))
            for number, own in enumerate(range(place, documents * len(settings), len(settings)))
        ]
        for place in range(len(settings))
    ]
    return written, steady(ends, used)


def new_tokens(completion: Completion) -> int:
    """Tokens that were generated, the closing end of the document among them."""
    return len(completion.tokens) + (completion.finish == "end")


def steady(ends: Sequence[tuple[float, int]], slots: int) -> Speed:
    """The speed while all slots are busy.

    Args:
      ends: when the engines began, with no tokens, and when each document ended, with its tokens.
    """
    edge = min(slots, (len(ends) - 1) // 4)
    inner = ends[edge : len(ends) - edge]
    return Speed(sum(tokens for _, tokens in inner[1:]), inner[-1][0] - inner[0][0], slots)
