"""Documents against those that they are paired with: the seed and what else was read, or d1 of a real pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sbp_jax.quality.corpus import BATCH, Measured
from sbp_jax.quality.duplicates import NEAR
from sbp_jax.text.common_runs import Sequences, common
from sbp_jax.text.shingles import WORDS, containment, shingle_sets, words

FEWEST = 5  # words of a document that is no shingle long, from which on it can be a copy


@dataclass(frozen=True)
class Hashed:
    """A real document: its hashed words, and its 13-word shingles, sorted and unique."""

    words_W: np.ndarray
    shingles: np.ndarray


@dataclass(frozen=True)
class Copying:
    """T documents and what was read before each.

    Attributes:
      run_T: words of the longest run in common with a document that was read.
      overlap_T: share of distinct 13-word shingles that are in any document that was read.
      copy_T: whether it is a near-copy of one of them: half of the smaller one's shingles are in the other; or it is
        shorter than a shingle, has 5 words at least, and all of it is one run of the other.
    """

    run_T: np.ndarray
    overlap_T: np.ndarray
    copy_T: np.ndarray


def hash_real(texts: Mapping[int, str]) -> dict[int, Hashed]:
    """Real documents by their ordinals, hashed."""
    ordinals, made = list(texts), {}
    for start in range(0, len(ordinals), BATCH):
        some = ordinals[start : start + BATCH]
        found = words([texts[ordinal] for ordinal in some])
        shingles, counts = shingle_sets(found)
        parts = np.split(shingles, np.cumsum(counts)[:-1])
        for place, ordinal in enumerate(some):
            made[ordinal] = Hashed(found.hashes_W[found.text(place)], parts[place])
    return made


def copying(measured: Measured, read: Sequence[Sequence[int]], real: Mapping[int, Hashed]) -> Copying:
    """Compares each text with every document that was read for it; nothing was read: zeros."""
    texts = len(read)
    run_T, overlap_T, copy_T = np.zeros(texts, np.int64), np.zeros(texts), np.zeros(texts, bool)
    for batch, own in enumerate(measured.words):
        some = read[batch * BATCH : (batch + 1) * BATCH]
        pieces = [real[ordinal].words_W for ordinals in some for ordinal in ordinals]
        owners = np.repeat(np.arange(len(some)), [len(ordinals) for ordinals in some])
        hashes = np.concatenate([np.empty(0, np.uint64), *pieces])
        a = Sequences(own.hashes_W, np.diff(own.offsets), np.arange(len(some)))
        b = Sequences(hashes, np.array(list(map(len, pieces)), np.int64), owners)
        shared = common(a, b, len(some))
        here = slice(batch * BATCH, batch * BATCH + len(some))
        run_T[here], overlap_T[here] = shared.longest_T, shared.shingles_T / np.maximum(measured.counts[here], 1)
    lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(own.offsets) for own in measured.words)])
    for text, ordinals in enumerate(read):
        most = max((containment(measured.of(text), real[ordinal].shingles) for ordinal in ordinals), default=0.0)
        short = FEWEST <= lengths[text] < WORDS and run_T[text] == lengths[text]
        copy_T[text] = most >= NEAR or short
    return Copying(run_T, overlap_T, copy_T)
