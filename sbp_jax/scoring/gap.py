"""The gap closed: how far an arm goes from repetition towards the oracle, with an interval over documents."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Gap:
    """(arm - repetition) / (oracle - repetition) of held-out losses.

    Attributes:
      closed: the fraction; None ("undefined") where the interval of the oracle's gain contains zero.
      low, high: bounds of the paired bootstrap interval of `closed`, None with it.
      oracle_gain: repetition minus oracle, nats per token, with its bounds.
    """

    closed: float | None
    low: float | None
    high: float | None
    oracle_gain: tuple[float, float, float]


def gap_closed(
    arm: Float[np.ndarray, "documents"],
    repetition: Float[np.ndarray, "documents"],
    oracle: Float[np.ndarray, "documents"],
    targets: Float[np.ndarray, "documents"],
) -> Gap:
    """The gap closed on the same documents, resampled together (paired bootstrap, 95%).

    Args:
      arm, repetition, oracle: nats of each document under each arm.
      targets: tokens of each document.
    """
    random = np.random.default_rng(0)
    sums = np.empty((RESAMPLES, 3))  # of the oracle's gain, the arm's gain and the tokens of the documents drawn
    columns = np.stack([repetition - oracle, repetition - arm, targets], axis=1)
    for index in range(RESAMPLES):
        sums[index] = columns[random.integers(0, len(targets), len(targets))].sum(axis=0)
    low, high = _interval(sums[:, 0] / sums[:, 2])
    gain = (float((repetition - oracle).sum() / targets.sum()), low, high)
    if low <= 0.0:
        return Gap(None, None, None, gain)
    closed = sums[:, 1] / sums[:, 0]
    value = float((repetition - arm).sum() / (repetition - oracle).sum())
    return Gap(value, *_interval(closed), gain)


def _interval(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
