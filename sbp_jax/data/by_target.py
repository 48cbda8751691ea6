"""Pairs shuffled on disk, so that all pairs of one target d2 are seen together.

Neighbours come by d1. Each shard is sorted by d2 and written; then each range of targets is read from all shards, which
is little: memory holds the pairs of one shard, or of one range. Answers go back the same way, by row.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sbp_jax.artifacts import Output
from sbp_jax.data.screened import mapped, save

RANGE = 1 << 22  # pairs of one range of targets, on average
PAIR = np.dtype([("row", "<i8"), ("d1", "<i8"), ("d2", "<i8"), ("similarity", "<f4")])  # documents by their places


def save_by_target(scratch: Output, name: str, pairs: np.ndarray) -> None:
    save(scratch, name, pairs[np.argsort(pairs["d2"], kind="stable")])


def answers(
    scratch: Output,
    name: str,
    shards: Sequence[str],
    documents: int,
    answer: Callable[[np.ndarray, slice], np.ndarray],
) -> list[np.ndarray]:
    """What `answer` says of the pairs of each range of targets, each answer with its `row`, mapped into memory.

    Args:
      scratch: where the shards are and the answers go.
      name: of the answers.
      shards: files of pairs, sorted by d2.
      documents: how many there are.
      answer: receives the pairs of a range, by d2 and then falling similarity, ties by d1, and the range.
    """
    pairs = [mapped(scratch.path / shard) for shard in shards]
    ranges = max(1, sum(map(len, pairs)) // RANGE)
    bounds = [documents * part // ranges for part in range(ranges + 1)]
    cuts = [np.searchsorted(part["d2"], bounds) for part in pairs]
    names = [f"{name}-{index:05d}.npy" for index in range(ranges)]
    for index, file in enumerate(names):
        if not scratch.has(file):
            slices = [part[cut[index] : cut[index + 1]] for part, cut in zip(pairs, cuts, strict=True)]
            some = np.concatenate([np.empty(0, PAIR), *slices])
            some = some[np.lexsort((some["d1"], -some["similarity"], some["d2"]))]
            found = answer(some, slice(bounds[index], bounds[index + 1]))
            save(scratch, file, found[np.argsort(found["row"], kind="stable")])
    return [mapped(scratch.path / file) for file in names]


def of_rows(found: Sequence[np.ndarray], rows: slice) -> Iterator[np.ndarray]:
    """The answers to these rows."""
    for part in found:
        low, high = np.searchsorted(part["row"], (rows.start, rows.stop))
        yield part[low:high]


def rank(groups: np.ndarray) -> np.ndarray:
    """Place of each element among its equals, in a sorted array, from 0."""
    starts = np.flatnonzero(np.concatenate(([True], groups[1:] != groups[:-1]))) if len(groups) else np.empty(0, int)
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
