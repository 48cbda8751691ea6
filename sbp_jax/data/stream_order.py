"""The order of the documents of a packed stream, and with it the rows in which a document stands.

A stream in another order than that of `shuffled` has a list of its documents beside its rows.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import numpy as np

from sbp_jax.artifacts import Artifact, Output
from sbp_jax.data.rows import RowSource
from sbp_jax.data.screened import mapped, save
from sbp_jax.text.shingles import mixed

LIST = (
    "documents.npy"  # int64 [documents, 3]: as in the rows, its first target in the stream, and the one past its last
)


def shuffled(ordinals: np.ndarray) -> np.ndarray:
    """Orders ordinals by the SplitMix64 finalizer (Steele, Lea and Flood 2014), a bijection: there are no ties."""
    return ordinals[np.argsort(mixed(ordinals.astype(np.uint64)))]


def save_list(output: Output, documents_D: np.ndarray, targets_D: np.ndarray) -> None:
    """Writes the list of a stream's documents, sorted, from their order and the targets of each."""
    stops_D = np.cumsum(targets_D)
    order = np.argsort(documents_D)
    save(output, LIST, np.stack([documents_D, stops_D - targets_D, stops_D], axis=1)[order])


def finder(packed: Artifact) -> Callable[[int], range]:
    """What gives the rows of a stream that hold a document, which is named as in the rows; none where it is in none."""
    if all(file.name != LIST for file in packed.files):
        return partial(rows_of, RowSource(packed))
    listed, context = mapped(packed.file(LIST)), packed.stats["context"]

    def rows(document: int) -> range:
        place = int(np.searchsorted(listed[:, 0], document))
        if place == len(listed) or listed[place, 0] != document:
            return range(0)
        return range(int(listed[place, 1]) // context, (int(listed[place, 2]) - 1) // context + 1)

    return rows


def rows_of(rows: RowSource, ordinal: int) -> range:
    """The rows of a shuffled stream that hold a document; empty where it is not in the stream.

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
