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
    draws = np.random.default_rng(0).integers(0, len(targets), (RESAMPLES, len(targets)))
    tokens = targets[draws].sum(axis=1)
    gains = (repetition - oracle)[draws].sum(axis=1) / tokens
    low, high = _interval(gains)
    gain = (float((repetition - oracle).sum() / targets.sum()), low, high)
    if low <= 0.0:
        return Gap(None, None, None, gain)
    closed = (repetition - arm)[draws].sum(axis=1) / tokens / gains
    value = float((repetition - arm).sum() / (repetition - oracle).sum())
    return Gap(value, *_interval(closed), gain)


def _interval(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
