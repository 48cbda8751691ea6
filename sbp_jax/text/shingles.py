"""Hashed word n-grams: how much of one text is literally inside another.

A shingle is `length` consecutive words; words are lower-cased runs of word characters. Two texts are compared by
the shingles they share, pair by pair: chains of near-copies are never merged into one component.
"""

import re
from functools import cache

import numpy as np
import xxhash

WORDS = 13  # words a shingle
_WORD = re.compile(r"\w+")


def shingles(text: str, length: int = WORDS) -> np.ndarray:
    """Hashes of the word n-grams of a text.

    Args:
      text: any text that UTF-8 can hold.
      length: words a shingle; a text of fewer words is one shingle of all its words.

    Returns:
      uint64 [n], sorted and unique; empty for a text without words.
    """
    found = _WORD.findall(text.lower())
    words = np.fromiter((xxhash.xxh3_64_intdigest(word.encode()) for word in found), np.uint64, len(found))
    if len(words) == 0:
        return words
    length = min(length, len(words))
    rolled = np.zeros(len(words) - length + 1, np.uint64)
    for place, weight in enumerate(_weights(length)):
        rolled += words[place : place + len(rolled)] * weight
    rolled.sort()
    return rolled[np.concatenate(([True], rolled[1:] != rolled[:-1]))]


def overlap(a: np.ndarray, b: np.ndarray) -> int:
    """Number of shingles in both of two sorted unique arrays."""
    few, many = (a, b) if len(a) <= len(b) else (b, a)
    if len(few) == 0:
        return 0
    places = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return int(np.count_nonzero(many[places] == few))


def containment(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the smaller set of shingles that the other one has too; 0 if either is empty."""
    return overlap(a, b) / max(min(len(a), len(b)), 1)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared shingles over all shingles of two sets; 0 if both are empty."""
    shared = overlap(a, b)
    return shared / max(len(a) + len(b) - shared, 1)


@cache
def _weights(length: int) -> np.ndarray:
    """Fixed odd multipliers, one for each place in a shingle: the sum of products is a hash that knows word order."""
    return np.array([xxhash.xxh3_64_intdigest(f"place {place}".encode()) | 1 for place in range(length)], np.uint64)
