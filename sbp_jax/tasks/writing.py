"""What a model writes after prompts, by the engine that writes synthetic documents, until a stop string."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from sbp_jax.config import Execution, Model
from sbp_jax.generation import replicas
from sbp_jax.generation.requests import Request, Sampling
from sbp_jax.generation.start import start
from sbp_jax.parallel import hosts
from sbp_jax.tasks.reader import Reader

SEED = 0  # of the random keys; requests are told apart by their place in the list
ROUNDED = 256  # tokens that the context of the engine is a multiple of, so that few programs are compiled


@dataclass(frozen=True)
class Asked:
    """A prompt, the most tokens to write, how they are chosen, and the strings after which no more is needed."""

    prompt: list[int]
    limit: int
    sampling: Sampling
    stops: tuple[str, ...]


def write(
    folder: epath.Path,
    model: Model,
    rows: int,
    reader: Reader,
    execution: Execution,
    asked: Sequence[Asked],
    each: Callable[[], None],
) -> list[str]:
    """The texts in order, stop strings and what follows them included; several hosts divide the prompts.

    Args:
      rows: of the model's embedding table.
      each: called for every text.
    """
    if not asked:
        return []
    context = -(-max(len(one.prompt) + one.limit for one in asked) // ROUNDED) * ROUNDED
    written: dict[int, Any] = {}
    own = range(jax.process_index(), len(asked), jax.process_count())

    def request(number: int) -> Request:
        one = asked[number]
        stop = partial(_stopped, reader, one.stops)
        return Request(number, number, 0, np.array(one.prompt, np.int32), one.limit, one.sampling, stop)

    def use(engines: Sequence[replicas.Generator]) -> None:
        # The longest first: those that are begun last end together.
        left = sorted((number for number in own if number not in written), key=lambda n: -len(asked[n].prompt))
        size = max(1, len(left) // (8 * len(engines)))
        work = [[request(number) for number in left[place : place + size]] for place in range(0, len(left), size)]
        for completion in replicas.generate(engines, work):
            written[completion.request.number] = completion.tokens
            each()

    slots = min(execution.slots, 1 << (max(len(own), 1) - 1).bit_length())
    build = partial(start, folder, model, reader.for_engine(rows), SEED, context, execution, circles=False)
    replicas.backing_off(slots, build, use, lambda line: None)
    return [reader.decode(tokens) for tokens in _everywhere(written, len(asked), max(one.limit for one in asked))]


def _stopped(reader: Reader, stops: tuple[str, ...], tokens: np.ndarray) -> bool:
    text = reader.decode(tokens)
    return any(stop in text for stop in stops if stop)


def _everywhere(written: dict[int, Any], count: int, longest: int) -> list[np.ndarray]:
    """The tokens of all prompts, on every host."""
    if not hosts.several():
        return [written[number] for number in range(count)]
    table = np.full((count, longest), -1, np.int32)
    for number, tokens in written.items():
        table[number, : len(tokens)] = tokens
    merged = np.asarray(multihost_utils.process_allgather(table)).max(axis=0)
    return [row[row >= 0] for row in merged]
