"""A ratio of sums over documents, such as bits a token or tokens a document, with an interval."""

import numpy as np

from sbp_jax.scoring.draws import FEWEST, Draws, Estimate, binned, bins_of, resampled

__all__ = ["FEWEST", "Estimate", "ratio"]


def ratio(numerators: np.ndarray, denominators: np.ndarray, owners: np.ndarray) -> Estimate:
    """sum(numerators) / sum(denominators), resampled by owner: what has one owner is drawn together.

    Differences of paired losses as numerators make a paired interval. Documents with one seed have much in common, and
    drawn one by one they would make the interval too narrow.

    Args:
      numerators, denominators: one each for every document; denominators are above 0.
      owners: int, whom each document belongs to.
    """
    _, places = np.unique(owners, return_inverse=True)
    bins = bins_of(int(places.max(initial=-1)) + 1)
    sums_G, weights_G = (binned(np.bincount(places, values), bins) for values in (numerators, denominators))
    (value,), draws_B1 = resampled(sums_G[:, None], weights_G)
    return Draws(float(value), None if draws_B1 is None else draws_B1[:, 0]).estimate
