"""Finding the near-copies of a text among many: candidates from an index of shingles, each then verified.

If two texts share at least a fraction t of the m shingles of the smaller one, then any m - ceil(t m) + 1 of those m
hold a shared one. The rarest are taken, so a licence at the foot of every document makes no candidates; and as every
candidate is verified, the answer is exact.
"""

import math
from collections.abc import Iterable

import numpy as np

from sbp_jax.text.shingles import among, containment


class CopyIndex:
    """A set of texts by their shingles, to be asked which of them are near-copies of another text.

    Attributes:
      threshold: least containment of a near-copy, above 0.
    """

    def __init__(self, texts: Iterable[tuple[int, np.ndarray]], threshold: float):
        """Args: the shingles of each text with its number, which is >= 0 and unique; the least containment."""
        self.threshold = threshold
        self._texts = {number: shingles for number, shingles in texts if len(shingles)}
        self._build()

    def copies(self, shingles: np.ndarray) -> list[int]:
        """Numbers of the texts that are near-copies of the text with these shingles, in ascending order."""
        common = _search(self._hashes, shingles)
        counts = common[1] - common[0]
        prefix = _rarest(counts, self.threshold)
        longer = _postings(self._owners, common[0][prefix], common[1][prefix])  # texts that may hold this one
        shorter = _postings(self._prefix_owners, *_search(self._prefix_hashes, shingles))  # that this one may hold
        candidates = np.unique(np.concatenate([longer, shorter])).tolist()
        return [number for number in candidates if containment(self._texts[number], shingles) >= self.threshold]

    def copies_of_any(self, shingles: np.ndarray, counts: np.ndarray) -> set[int]:
        """Numbers of the texts that are near-copies of any of some others; most of those share nothing with any.

        Args:
          shingles: of one text after another, those of each sorted and unique.
          counts: how many each of them has.
        """
        ends = np.cumsum(counts)
        sharing = np.unique(np.searchsorted(ends, np.flatnonzero(among(shingles, self._hashes)), side="right"))
        found: set[int] = set()
        for place in sharing.tolist():
            found.update(self.copies(shingles[ends[place] - counts[place] : ends[place]]))
        return found

    def remove(self, numbers: Iterable[int]) -> None:
        """Takes texts out of the index."""
        for number in numbers:
            self._texts.pop(number, None)
        self._build()

    def shingles(self, number: int) -> np.ndarray:
        """The shingles of one text; empty for one without words."""
        return self._texts.get(number, np.empty(0, np.uint64))

    def _build(self) -> None:
        numbers = np.fromiter(self._texts, np.int64, len(self._texts))
        lengths = np.fromiter(map(len, self._texts.values()), np.int64, len(self._texts))
        hashes = np.concatenate([*self._texts.values(), np.empty(0, np.uint64)])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], np.repeat(numbers, lengths)[order]
        prefixes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for number, shingles in self._texts.items():
            low, high = _search(self._hashes, shingles)
            prefixes.append(shingles[_rarest(high - low, self.threshold)])
            owners.append(np.full(len(prefixes[-1]), number))
        hashes = np.concatenate(prefixes)
        order = np.argsort(hashes, kind="stable")
        self._prefix_hashes, self._prefix_owners = hashes[order], np.concatenate(owners)[order]


def _search(hashes: np.ndarray, shingles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.searchsorted(hashes, shingles), np.searchsorted(hashes, shingles, side="right")


def _rarest(counts: np.ndarray, threshold: float) -> np.ndarray:
    """Places of the shingles of which a near-copy must hold one; ties go by hash, as the shingles are sorted."""
    shared = max(1, math.ceil(threshold * len(counts) - 1e-9))
    return np.argsort(counts, kind="stable")[: max(0, len(counts) - shared + 1)]


def _postings(owners: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """owners[low[i]:high[i]] for all i, one after the other."""
    counts = high - low
    found = counts > 0
    low, counts = low[found], counts[found]
    if len(counts) == 0:
        return owners[:0]
    steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return owners[np.repeat(low, counts) + steps]
