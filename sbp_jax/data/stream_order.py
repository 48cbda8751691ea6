"""The order of the documents of a packed stream, and with it the rows in which a document stands."""

from bisect import bisect_left

import numpy as np

from sbp_jax.data.rows import RowSource
from sbp_jax.text.shingles import mixed


def shuffled(ordinals: np.ndarray) -> np.ndarray:
    """Orders ordinals by the SplitMix64 finalizer (Steele, Lea and Flood 2014), a bijection: there are no ties."""
    return ordinals[np.argsort(mixed(ordinals.astype(np.uint64)))]


def rows_of(rows: RowSource, ordinal: int) -> range:
    """The rows of a stream that hold a document; empty where it is not in the stream.

    The rows follow the order of `shuffled`, so a few of them are looked at, not all.
    """

    def last(row: int) -> int:
        documents_L = rows[row].documents
        return _key(int(documents_L[documents_L >= 0][-1]))

    start = stop = bisect_left(range(len(rows)), _key(ordinal), key=last)
    while stop < len(rows) and ordinal in rows[stop].documents:
        stop += 1
    return range(start, stop)


def _key(ordinal: int) -> int:
    return int(mixed(np.array([ordinal], np.uint64))[0])
