"""Hashes of many shards brought together by value, on disk: memory holds one shard, or one range of values of all."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from operator import itemgetter

import numpy as np
from etils import epath

from sbp_jax.artifacts import Output
from sbp_jax.data.screened import mapped, save

RANGE = 1 << 24  # hashes of one range, on average


def by_hash(
    scratch: Output,
    name: str,
    files: Sequence[epath.Path],
    make: Callable[[np.ndarray], np.ndarray],
    field: str | None = None,
) -> list[np.ndarray]:
    """What `make` makes of each range of hashes, mapped into memory.

    Args:
      scratch: where the results go, as `name`-00000.npy and so on; those that are there are not made again.
      files: shards, each sorted by hash.
      make: receives what all shards have in a range, sorted by hash and then as it stands in the shards.
      field: that holds the hash, where the shards are records.
    """
    total = sum(len(mapped(file)) for file in files)  # no shard stays mapped: a process may open only so many
    ranges = max(1, total // RANGE)
    bounds = [(1 << 64) * part // ranges for part in range(1, ranges)]
    names = [f"{name}-{index:05d}.npy" for index in range(ranges)]
    for index, file in enumerate(names):
        if not scratch.has(file):
            low, high = (bounds[index - 1] if index else None), (bounds[index] if index < len(bounds) else None)
            parts = [_between(mapped(shard), low, high, field) for shard in files]
            some: np.ndarray = np.concatenate(parts) if parts else np.empty(0, np.uint64)
            save(scratch, file, make(np.sort(some) if field is None else some[np.argsort(some[field], kind="stable")]))
    return [mapped(scratch.path / file) for file in names]


def _between(shard: np.ndarray, low: int | None, high: int | None, field: str | None) -> np.ndarray:
    """A copy of what lies in a range; few of a mapped file are looked at."""
    key = None if field is None else itemgetter(field)
    first = 0 if low is None else bisect_left(shard, low, key=key)
    last = len(shard) if high is None else bisect_left(shard, high, key=key)
    return np.array(shard[first:last])
