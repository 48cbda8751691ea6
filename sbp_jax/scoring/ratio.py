"""A ratio of sums over documents, such as bits a token or tokens a document, with an interval."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sbp_jax.scoring.gap import LEVEL, RESAMPLES

FEWEST = 5  # owners below which drawing from them says too little about others


@dataclass(frozen=True)
class Estimate:
    """A ratio with the bounds of its bootstrap interval (95%), None where there are too few owners for one."""

    value: float
    low: float | None
    high: float | None


def ratio(numerators: np.ndarray, denominators: np.ndarray, owners: np.ndarray) -> Estimate:
    """sum(numerators) / sum(denominators), resampled by owner: what has one owner is drawn together.

    Differences of paired losses as numerators make a paired interval. Documents with one seed have much in common, and
    drawn one by one they would make the interval too narrow.

    Args:
      numerators, denominators: one each for every document; denominators are above 0.
      owners: int, whom each document belongs to.
    """
    value = float(numerators.sum() / denominators.sum())
    names, places = np.unique(owners, return_inverse=True)
    if len(names) < FEWEST:
        return Estimate(value, None, None)
    sums = np.stack([np.bincount(places, numerators), np.bincount(places, denominators)], axis=1)
    drawn = _draws(len(names)) @ sums
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


@lru_cache(maxsize=2)  # many measures of the same documents are resampled one after another
def _draws(owners: int) -> np.ndarray:
    """How often each owner is in each resample, float64 [RESAMPLES, owners]."""
    draws = np.random.default_rng(0).multinomial(owners, np.full(owners, 1 / owners), RESAMPLES)
    return draws.astype(np.float64)
