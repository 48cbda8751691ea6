"""The longest run of words that a text has in common with others: exact but for collisions of 64-bit hashes.

A run of L words that both sides have begins with one of L - 1 words that both have. So lengths are tried from short to
long, and only the places where a shorter run is common are looked at again; then the longest is found by halving. All
texts go through this together, each with a length of its own.

Shapes: T texts, A words of them, B words of what they are compared with, P places.
"""

from dataclasses import dataclass

import numpy as np

from sbp_jax.text.shingles import WORDS, among, mixed, powers

FIRST = 4  # words of the first run that is tried: few places have a longer one in common
SPARSITY = 8  # places of a table for each hash in it


@dataclass(frozen=True)
class Sequences:
    """Sequences of words, one after another, and the text that each belongs to or is compared with.

    Attributes:
      hashes_W: uint64, of the words.
      lengths: words of each sequence.
      texts: int64, number of the text.
    """

    hashes_W: np.ndarray
    lengths: np.ndarray
    texts: np.ndarray


@dataclass(frozen=True)
class Common:
    """What each text has in common with the sequences that it is compared with.

    Attributes:
      longest_T: int64, words of the longest common run.
      shingles_T: int64, distinct 13-word shingles of the text that they have too; a shorter text has none.
    """

    longest_T: np.ndarray
    shingles_T: np.ndarray


class _Side:
    """Hashes of runs anywhere in some sequences, each from two places of a running sum."""

    def __init__(self, sequences: Sequences):
        ends = np.cumsum(sequences.lengths)
        self.room_W = np.repeat(ends, sequences.lengths) - np.arange(len(sequences.hashes_W))
        self.texts_W = np.repeat(sequences.texts, sequences.lengths)
        weights, self._inverses = powers(1 << max(len(sequences.hashes_W), 1).bit_length())
        weighted = sequences.hashes_W * weights[: len(sequences.hashes_W)]
        self._sums = np.concatenate(([np.uint64(0)], np.cumsum(weighted)))

    def runs(self, places_P: np.ndarray, lengths_T: np.ndarray, tags_T: np.ndarray) -> np.ndarray:
        """Hash of the run at each place, of its text's length, that no run of another text has."""
        texts_P = self.texts_W[places_P]
        sums_P = self._sums[places_P + lengths_T[texts_P]] - self._sums[places_P]
        return sums_P * self._inverses[places_P] + tags_T[texts_P]


def common(a: Sequences, b: Sequences, texts: int) -> Common:
    """Compares each text with all sequences of `b` that name it.

    Args:
      a: the texts, one sequence each.
      b: what they are compared with, any number of sequences for a text.
      texts: how many there are.
    """
    longest_T, shingles_T = np.zeros(texts, np.int64), np.zeros(texts, np.int64)
    side_a, side_b = _Side(a), _Side(b)
    tags_T = mixed(np.arange(texts, dtype=np.uint64))
    places_a, places_b = np.arange(len(a.hashes_W)), np.arange(len(b.hashes_W))
    above_T = 1 + np.minimum(_longest(a, texts), _longest(b, texts))  # so long a run is not common
    while np.any(open_T := above_T - longest_T > 1):
        tried_T = np.where(longest_T < FIRST, FIRST, np.where(longest_T < WORDS, WORDS, 2 * longest_T))
        tried_T = np.where(tried_T < above_T, tried_T, (longest_T + above_T) // 2)
        some_a, some_b = (
            places[open_T[side.texts_W[places]] & (side.room_W[places] >= tried_T[side.texts_W[places]])]
            for side, places in ((side_a, places_a), (side_b, places_b))
        )
        runs_a, runs_b = side_a.runs(some_a, tried_T, tags_T), side_b.runs(some_b, tried_T, tags_T)
        in_a, in_b = _meeting(runs_a, runs_b)
        met_T = np.bincount(side_a.texts_W[some_a[in_a]], minlength=texts) > 0
        of_shingles = tried_T[side_a.texts_W[some_a[in_a]]] == WORDS
        shared = some_a[in_a][of_shingles][np.unique(runs_a[in_a][of_shingles], return_index=True)[1]]
        shingles_T += np.bincount(side_a.texts_W[shared], minlength=texts)
        longest_T = np.where(open_T & met_T, tried_T, longest_T)
        above_T = np.where(open_T & ~met_T, tried_T, above_T)
        open_T = above_T - longest_T > 1
        places_a, places_b = (
            np.concatenate([hits[open_T[side.texts_W[hits]]], places[(open_T & ~met_T)[side.texts_W[places]]]])
            for side, places, hits in ((side_a, places_a, some_a[in_a]), (side_b, places_b, some_b[in_b]))
        )
    return Common(longest_T, shingles_T)


def _longest(sequences: Sequences, texts: int) -> np.ndarray:
    longest_T = np.zeros(texts, np.int64)
    np.maximum.at(longest_T, sequences.texts, sequences.lengths)
    return longest_T


def _meeting(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in `a` of hashes that `b` has, and places in `b` of hashes that `a` has."""
    mask = np.uint64((1 << (SPARSITY * max(len(a), len(b), 1)).bit_length()) - 1)
    # A table of marks first: nearly every hash of one side meets none of the other, and need not be sorted.
    low_a, low_b = (a & mask).view(np.int64), (b & mask).view(np.int64)
    marks = np.zeros(int(mask) + 1, bool)
    marks[low_a] = True
    in_b = np.flatnonzero(marks[low_b])
    marks[low_a] = False
    marks[low_b[in_b]] = True
    in_a = np.flatnonzero(marks[low_a])
    return in_a[among(a[in_a], np.sort(b[in_b]))], in_b[among(b[in_b], np.sort(a[in_a]))]
