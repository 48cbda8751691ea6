"""Shingles that pairs of texts share, for many pairs at a time: exact, on shingles that were hashed before.

Each pair has a small table of bits in which the shingles of its longer text are marked by some bits of their hash.
Few shingles of the shorter text meet a mark by chance; those that meet one are searched for in the longer text.

Shapes: P pairs, E shingles of all the shorter texts of the pairs, M shared shingles.
"""

from dataclasses import dataclass

import numpy as np

SPARSITY = 16  # bits of a pair's table for each shingle of a text of mean length


@dataclass(frozen=True)
class Gathered:
    """The shingles of some texts, each sorted, one text after another.

    Attributes:
      hashes: uint64, all of them.
      lengths_P: shingles of each text.
      where: place of each shingle in the store that it was gathered from.
    """

    hashes: np.ndarray
    lengths_P: np.ndarray
    where: np.ndarray


def shared(a: Gathered, b: Gathered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What text i of `a` and text i of `b` have in common, for every i.

    Returns:
      The pair of each shared shingle [M], its place in the store as a shingle of `a` [M], and of `b` [M].
    """
    pairs = len(a.lengths_P)
    mean = (len(a.hashes) + len(b.hashes)) // max(2 * pairs, 1)
    bits = max(mean * SPARSITY, 1).bit_length()
    starts_P = np.cumsum(a.lengths_P) - a.lengths_P
    slots_a = np.repeat(np.arange(pairs, dtype=np.uint32) << np.uint32(bits), a.lengths_P)
    slots_b = np.repeat(np.arange(pairs, dtype=np.uint32) << np.uint32(bits), b.lengths_P)
    mask = np.uint64((1 << bits) - 1)
    marks = np.zeros(pairs << bits, bool)
    marks[slots_a | (a.hashes & mask).astype(np.uint32)] = True
    met = np.flatnonzero(marks[slots_b | (b.hashes & mask).astype(np.uint32)])
    pairs_M = (slots_b[met] >> np.uint32(bits)).astype(np.int64)
    places = _search(a.hashes, starts_P[pairs_M], a.lengths_P[pairs_M], b.hashes[met])
    found = places >= 0
    return pairs_M[found], a.where[places[found]], b.where[met[found]]


def _search(hashes: np.ndarray, starts: np.ndarray, lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Place of each wanted hash among the sorted `lengths[i]` from `starts[i]` on; -1 where it is not there."""
    low, high = starts.astype(np.int64), starts + lengths
    for _ in range(int(lengths.max(initial=0)).bit_length()):
        middle = (low + high) // 2
        below = (middle < high) & (hashes[np.minimum(middle, len(hashes) - 1)] < wanted)
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    place = np.minimum(low, max(len(hashes) - 1, 0))
    return np.where((low < starts + lengths) & (hashes[place] == wanted), low, -1)
