"""Pairs shuffled on disk, so that all pairs of one target d2 are seen together.

Neighbours come by d1. Each shard is sorted by d2 and written; then each range of targets is read from all shards, which
is little: memory holds the pairs of one shard, or of one range. Answers go back the same way, by row.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

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
    # No shard stays mapped: there are more of them than files that a process may have open.
    ranges = max(1, sum(len(mapped(scratch.path / shard)) for shard in shards) // RANGE)
    bounds = [documents * part // ranges for part in range(ranges + 1)]
    names = [f"{name}-{index:05d}.npy" for index in range(ranges)]
    for index, file in enumerate(names):
        if not scratch.has(file):
            targets = slice(bounds[index], bounds[index + 1])
            slices = [np.array(between(mapped(scratch.path / shard), "d2", targets)) for shard in shards]
            some = np.concatenate([np.empty(0, PAIR), *slices])
            some = some[np.lexsort((some["d1"], -some["similarity"], some["d2"]))]
            found = answer(some, targets)
            save(scratch, file, found[np.argsort(found["row"], kind="stable")])
    return [mapped(scratch.path / file) for file in names]


def of_rows(found: Sequence[np.ndarray], rows: slice) -> Iterator[np.ndarray]:
    """The answers to these rows."""
    for part in found:
        yield between(part, "row", rows)


def between(records: np.ndarray, field: str, values: slice) -> np.ndarray:
    """Those records, sorted by a field, whose value lies in the range; few of a mapped file are looked at."""
    low, high = (bisect_left(records, value, key=itemgetter(field)) for value in (values.start, values.stop))
    return records[low:high]


def rank(groups: np.ndarray) -> np.ndarray:
    """Place of each element among its equals, in a sorted array, from 0."""
    starts = np.flatnonzero(np.concatenate(([True], groups[1:] != groups[:-1]))) if len(groups) else np.empty(0, int)
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
