"""The n-grams of the measured documents, and which of them a stream of other documents has.

Memory holds the n-grams of the measured documents alone, however long the stream is.

Shapes: K distinct n-grams, G n-grams of documents (each one once a document), W words.
"""

from collections.abc import Sequence

import numpy as np

from sbp_jax.data.by_target import rank
from sbp_jax.text.shingles import Words, distinct, rolled

SPARSITY = 2  # places of the table for each hash in it
SEEN = 3  # documents with an n-gram that are counted, and named: more make no difference


class Table:
    """Finds hashes among K known ones: a table by their low bits, and those that another one drove out of it."""

    def __init__(self, keys: np.ndarray):
        """Args: uint64 [K], sorted and unique."""
        self.keys = keys
        self._mask = np.uint64((1 << max(SPARSITY * len(keys), 1).bit_length()) - 1)
        self._places = np.full(int(self._mask) + 1, -1, np.int32)
        low = (keys & self._mask).view(np.int64)
        self._places[low] = np.arange(len(keys), dtype=np.int32)
        self._driven_out = np.flatnonzero(self._places[low] != np.arange(len(keys)))

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Index of each hash among the keys, int64; -1 where it is none of them."""
        found = self._places[(hashes & self._mask).view(np.int64)].astype(np.int64)
        met = np.flatnonzero(found >= 0)
        wrong = met[self.keys[found[met]] != hashes[met]]
        found[wrong] = -1
        if len(self._driven_out) and len(wrong):
            keys = self.keys[self._driven_out]
            places = np.minimum(np.searchsorted(keys, hashes[wrong]), len(keys) - 1)
            right = keys[places] == hashes[wrong]
            found[wrong[right]] = self._driven_out[places[right]]
        return found


class Seen:
    """In how many documents of a stream each n-gram of the measured documents is, up to `SEEN`.

    Attributes:
      owners_G: the measured document that each n-gram is of.
      keys_G: index of the n-gram.
      documents_K: uint8, documents of the stream that have it.
      first_KS: ordinals of the first of them, -1 where there are fewer; None unless they were asked for.
    """

    def __init__(self, owners_G: np.ndarray, hashes_G: np.ndarray, names: bool = False):
        keys_K = distinct(np.sort(hashes_G))
        self.table = Table(keys_K)
        self.owners_G = owners_G.astype(np.int32)
        self.keys_G = self.table.find(hashes_G).astype(np.int32)
        self.documents_K = np.zeros(len(keys_K), np.uint8)
        self.first_KS = np.full((len(keys_K), SEEN), -1, np.int64) if names else None

    def add(self, documents: np.ndarray, hashes: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
        """Counts some documents of the stream.

        Args:
          documents: number of the document within this batch that each hash is of, rising.
          hashes: n-grams, any number of times each.
          ordinals: of the documents of the batch.

        Returns:
          Numbers of the documents that have any of the n-grams, sorted.
        """
        found = self.table.find(hashes)
        hits = np.flatnonzero(found >= 0)
        which = distinct(documents[hits])
        hits = hits[self.documents_K[found[hits]] < SEEN]
        pairs = distinct(np.sort(found[hits] * len(ordinals) + documents[hits]))
        keys, owners = pairs // max(len(ordinals), 1), pairs % max(len(ordinals), 1)
        places = self.documents_K[keys] + rank(keys)
        new = places < SEEN
        if self.first_KS is not None:
            self.first_KS[keys[new], places[new]] = ordinals[owners[new]]
        np.maximum.at(self.documents_K, keys[new], (places[new] + 1).astype(np.uint8))
        return which

    def others_G(self, own: np.ndarray) -> np.ndarray:
        """Whether a document other than the n-gram's own has it, bool [G].

        Args:
          own: bool, whether each measured document is itself in the stream.
        """
        return self.documents_K[self.keys_G] > own[self.owners_G]


def grams(found: Words, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The n-grams of texts: the number of its text, rising, and the hash of each, int64 and uint64."""
    owners_W = np.repeat(np.arange(len(found.offsets) - 1), np.diff(found.offsets))
    hashes = rolled(found.hashes_W, length)
    inside = owners_W[: len(hashes)] == owners_W[length - 1 :][: len(hashes)]
    return owners_W[: len(hashes)][inside], hashes[inside]


def distinct_grams(parts: Sequence[Words], length: int) -> tuple[np.ndarray, np.ndarray]:
    """As `grams`, of the texts of several parts, each n-gram once a text."""
    owners, hashes, first = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
    for part in parts:
        own, some = grams(part, length)
        order = np.lexsort((some, own))
        own, some = own[order], some[order]
        new = np.ones(len(own), bool)
        new[1:] = (own[1:] != own[:-1]) | (some[1:] != some[:-1])
        owners.append(own[new] + first)
        hashes.append(some[new])
        first += len(part.offsets) - 1
    return np.concatenate(owners), np.concatenate(hashes)
