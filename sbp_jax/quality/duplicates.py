"""Near-duplicates among the documents of a set, and Duplicate@N: how many one would meet among N of them.

A near-duplicate of a document shares at least half of the 13-word shingles of the smaller one. Of the measured
documents every one is compared, pair by pair, with all documents of its set, which go by as a stream.

Duplicate@N is the expected share of documents that have a near-duplicate among N drawn from the set, without putting
back. A document with k near-duplicates among the M - 1 others has one among the N - 1 drawn beside it with probability
1 - C(M - 1 - k, N - 1) / C(M - 1, N - 1); Duplicate@N is the mean of that. So sets of different sizes are compared at
one N, and N can be anything up to M.
"""

import numpy as np

from sbp_jax.quality.grams import Table
from sbp_jax.text.near_duplicates import CopyIndex
from sbp_jax.text.shingles import distinct

NEAR = 0.5  # containment of a near-duplicate


class Degrees:
    """Counts the near-duplicates of the measured documents of one set.

    Attributes:
      size: documents of the set that have gone by.
    """

    def __init__(self, rows: np.ndarray, shingles: np.ndarray, counts: np.ndarray):
        """Args: place of each measured document in the stream, rising; their shingles, one after another; how many."""
        parts = np.split(shingles, np.cumsum(counts)[:-1]) if len(counts) else []
        self._index = CopyIndex(zip(range(len(parts)), parts, strict=True), NEAR)
        self._table = Table(distinct(np.sort(shingles)))
        self._rows, self._wordless = rows, counts == 0
        self._degrees = np.zeros(len(rows), np.int64)
        self._wordless_seen = self.size = 0

    def add(self, rows: np.ndarray, shingles: np.ndarray, counts: np.ndarray) -> None:
        """Compares some documents of the set: their places in it, their shingles, and how many each has."""
        self.size += len(rows)
        self._wordless_seen += int(np.count_nonzero(counts == 0))
        owners = np.repeat(np.arange(len(rows)), counts)
        ends = np.cumsum(counts)
        for number in distinct(owners[self._table.find(shingles) >= 0]).tolist():
            own = shingles[ends[number] - counts[number] : ends[number]]
            copies = np.array(self._index.copies(own), np.int64)
            self._degrees[copies[self._rows[copies] != rows[number]]] += 1

    def degrees(self) -> np.ndarray:
        """Near-duplicates of each measured document among all the others, int64."""
        return np.where(self._wordless, self._wordless_seen - 1, self._degrees)


def probabilities(degrees: np.ndarray, size: int, drawn: int) -> np.ndarray:
    """Probability of each document to meet a near-duplicate among so many documents, itself one of them.

    Args:
      degrees: near-duplicates among the others.
      size: documents of the set.
      drawn: N, at most `size`.
    """
    distinct_degrees, which = np.unique(degrees, return_inverse=True)
    met = np.zeros(len(distinct_degrees))
    for place, degree in enumerate(distinct_degrees.tolist()):
        left = (size - drawn - np.arange(degree)) / np.maximum(size - 1 - np.arange(degree), 1)
        met[place] = 1 - np.prod(np.maximum(left, 0.0))
    return met[which]
