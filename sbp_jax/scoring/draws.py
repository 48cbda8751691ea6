"""Intervals over documents and over seeds: a paired bootstrap of ratios of sums, such as nats a token.

Documents are drawn with replacement, the same draws for everything that is measured on them, so that what two models
have in common cancels in their difference. Seeds are few, and three values drawn with replacement say too little: their
spread is too small by sqrt(2/3), and its ends are too near. They get random weights instead, a multiplier bootstrap
whose spread is that of Student's t with one degree of freedom less than there are seeds. docs/numbers.md tells how
often these intervals hold the truth, and why.

Legend: N documents, G bins of them, B draws, S seeds, C columns.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 5000  # of the documents; each stands with the weights of its seeds and with their opposites
LEVEL = 0.95
QUANTILE = 1.959964  # of the normal distribution, for LEVEL
BINS = 4096  # past so many documents, bins of them are drawn; their spread is known to 1.1%
FEWEST = 5  # documents below which drawing from them says too little about others
CHUNK = 500  # resamples at a time


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its interval (95%), None where there are too few documents for one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Draws:
    """A value, and what it comes out as in each resample; sums and multiples of these are resampled together.

    Attributes:
      draws: float64 [B]; None: too few documents.
      seeds: that it is a mean over; 1: their luck is not in it.
    """

    value: float
    draws: np.ndarray | None
    seeds: int = 1

    def __add__(self, other: "Draws") -> "Draws":
        return self._joined(other, 1.0)

    def __sub__(self, other: "Draws") -> "Draws":
        return self._joined(other, -1.0)

    def __mul__(self, factor: float) -> "Draws":
        return Draws(factor * self.value, None if self.draws is None else factor * self.draws, self.seeds)

    def _joined(self, other: "Draws", sign: float) -> "Draws":
        both = None if self.draws is None or other.draws is None else self.draws + sign * other.draws
        return Draws(self.value + sign * other.value, both, min(self.seeds, other.seeds))

    @property
    def estimate(self) -> Estimate:
        """The value with the central part of the draws (percentile interval)."""
        if self.draws is None:
            return Estimate(self.value, None, None)
        low, high = np.quantile(self.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(self.value, float(low), float(high))


def binned(values_N: np.ndarray, bins: np.ndarray | None) -> np.ndarray:
    """Sums over the bins that `bins_of` gives; None: a document is a bin."""
    return values_N.astype(np.float64) if bins is None else np.bincount(bins, values_N)


def bins_of(documents: int) -> np.ndarray | None:
    """The bin of each of so many documents, at random and of equal sizes; None where there are few."""
    if documents <= BINS:
        return None
    return np.random.default_rng(0).permutation(documents) % BINS


def resampled(sums_GC: np.ndarray, weights_G: np.ndarray, stream: str = "") -> tuple[np.ndarray, np.ndarray | None]:
    """Ratios of sums over the documents, sum(column) / sum(weights), and the same in each resample.

    Args:
      sums_GC: of each document or bin, such as its nats under each model.
      weights_G: such as its tokens.
      stream: names what is drawn; equal names give equal draws, different ones independent draws.

    Returns:
      Values [C], and draws [B, C] or None. The draws' spread is widened for few documents as Student's t is.
    """
    values_C = sums_GC.sum(axis=0) / weights_G.sum()
    count = len(weights_G)
    if count < FEWEST:
        return values_C, None
    counts_BG = _counts(count, zlib.crc32(stream.encode()))
    both = np.concatenate([sums_GC, weights_G[:, None]], axis=1)
    drawn_BC = np.concatenate([part.astype(np.float64) @ both for part in np.array_split(counts_BG, _chunks())])
    ratios_BC = drawn_BC[:, :-1] / drawn_BC[:, -1:]
    return values_C, values_C + (ratios_BC - values_C) * widening(count)


def over_seeds(values_S: np.ndarray, draws_BS: np.ndarray | None) -> Draws:
    """The mean over seeds, from columns of `resampled`, its draws over the documents and over the seeds.

    Equal numbers of seeds get equal weights: seed by seed, since models of one seed start from the same parameters and
    read in the same order, and what that does to both cancels in their difference.
    """
    seeds, mean = len(values_S), float(values_S.mean())
    if draws_BS is None:
        return Draws(mean, None, seeds)
    of_documents_B = draws_BS.mean(axis=1)
    of_seeds_B = multipliers(seeds) @ (values_S - mean) if seeds > 1 else np.zeros(len(of_documents_B))
    return Draws(mean, np.concatenate([of_documents_B + of_seeds_B, of_documents_B - of_seeds_B]), seeds)


@lru_cache
def multipliers(seeds: int) -> np.ndarray:
    """Random weights of the seeds, [B, S], beside the 1/S that each has in the mean.

    A weighted sum of deviations from the mean has the distribution of t with S - 1 degrees of freedom times the
    standard error of the mean.
    """
    random = np.random.default_rng([seeds, 1])
    normal_BS = random.normal(size=(RESAMPLES, seeds))
    spread_B1 = np.sqrt(random.chisquare(seeds - 1, size=(RESAMPLES, 1)) / (seeds - 1))
    centred_BS = normal_BS - normal_BS.mean(axis=1, keepdims=True)
    return centred_BS / spread_B1 / math.sqrt(seeds * (seeds - 1))


def widening(documents: int) -> float:
    """By how much the spread of the bootstrap is too small for so few documents.

    sqrt(n / (n - 1)) times the ratio of the quantiles of Student's t and of the normal distribution (Hesterberg 2015,
    "What teachers should know about the bootstrap", section 4.3), by the expansion of Cornish and Fisher.
    """
    free, z = documents - 1, QUANTILE
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    t = z + sum(term / free**power for power, term in enumerate(terms, 1))
    return t / z * math.sqrt(documents / free)


@lru_cache(maxsize=4)
def _counts(items: int, seed: int) -> np.ndarray:
    """How often each item is drawn in each resample, uint8 [B, G]."""
    random = np.random.default_rng([items, seed])
    counts = np.empty((RESAMPLES, items), np.uint8)
    for row in counts:
        row[:] = np.bincount(random.integers(0, items, items), minlength=items)
    return counts


def _chunks() -> int:
    return max(1, RESAMPLES // CHUNK)


def mean(draws: Sequence[Draws]) -> Draws:
    """The mean of several values, such as the accuracies of several tasks."""
    total = draws[0]
    for other in draws[1:]:
        total = total + other
    return total * (1 / len(draws))
