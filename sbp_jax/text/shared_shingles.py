"""Shingles that pairs of texts share, for many pairs at a time: exact, on shingles that were hashed before.

Each first text has a small hash table of its shingles, in which a later one may overwrite another. What meets another
shingle there, and a mark in a second table, is searched for in the first text.

Shapes: T texts, P pairs, M shared shingles.
"""

from dataclasses import dataclass

import numpy as np

SPARSITY = 16  # places of a table for each shingle of a first text of mean length


@dataclass(frozen=True)
class Gathered:
    """The shingles of some texts, each sorted, one text after another.

    Attributes:
      hashes: uint64, all of them.
      lengths_T: shingles of each text.
      stored_T: place of each text's first shingle in the store that it was gathered from.
    """

    hashes: np.ndarray
    lengths_T: np.ndarray
    stored_T: np.ndarray


def shared(a: Gathered, which_P: np.ndarray, b: Gathered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What text `which_P[i]` of `a` and text i of `b` have in common, for every i.

    Returns:
      The pair of each shared shingle [M], its place in the store as a shingle of `a` [M], and of `b` [M].
    """
    mean = len(a.hashes) // max(len(a.lengths_T), 1)
    bits = max(mean * SPARSITY, 1).bit_length()
    indices = np.full(len(a.lengths_T) << bits, -1, np.int32)
    marks = np.zeros(len(a.lengths_T) << bits, bool)
    filters = np.repeat(np.arange(len(a.lengths_T)) << bits, a.lengths_T)
    indices[filters | _low(a.hashes, bits)] = np.arange(len(a.hashes), dtype=np.int32)
    marks[filters | _high(a.hashes, bits)] = True
    filters = np.repeat(which_P << bits, b.lengths_T)
    places = indices.take(filters | _low(b.hashes, bits))
    met = np.flatnonzero(places >= 0)
    places = places[met].astype(np.int64)
    found = a.hashes[places] == b.hashes[met]
    # What met another index may have had its own overwritten by it.
    other = np.flatnonzero(~found)
    other = other[marks[filters[met[other]] | _high(b.hashes[met[other]], bits)]]
    starts_a, starts_b = (np.cumsum(side.lengths_T) - side.lengths_T for side in (a, b))
    texts_M = filters[met] >> bits
    texts = texts_M[other]
    places[other] = _search(a.hashes, starts_a[texts], a.lengths_T[texts], b.hashes[met[other]])
    found[other] = a.hashes[places[other]] == b.hashes[met[other]]
    texts_M, places, met = texts_M[found], places[found], met[found]
    ends = np.searchsorted(met, starts_b + b.lengths_T)  # both ascend
    pairs_M = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    return pairs_M, places + (a.stored_T - starts_a)[texts_M], met + (b.stored_T - starts_b)[pairs_M]


def _low(hashes: np.ndarray, bits: int) -> np.ndarray:
    return (hashes & np.uint64((1 << bits) - 1)).view(np.int64)


def _high(hashes: np.ndarray, bits: int) -> np.ndarray:
    return (hashes >> np.uint64(64 - bits)).view(np.int64)


def _search(hashes: np.ndarray, starts: np.ndarray, lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Place of the last of the `lengths[i]` sorted hashes from `starts[i]` on that is not above the wanted one."""
    places, ends = starts.astype(np.int64), starts + lengths - 1
    for bit in reversed(range(int(lengths.max(initial=0)).bit_length())):
        next_places = np.minimum(places + (1 << bit), ends)
        places = np.where(hashes[next_places] <= wanted, next_places, places)
    return places
