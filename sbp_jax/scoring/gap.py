"""The gap closed: how far an arm goes from repetition towards the oracle (SBP, section 4)."""

from dataclasses import dataclass

import numpy as np

from sbp_jax.scoring.draws import LEVEL, Draws, Estimate


@dataclass(frozen=True)
class Gap:
    """The arm's gain over repetition as a fraction of the oracle's.

    Attributes:
      closed: the fraction with its interval; None where it is undefined.
      reason: why it is undefined: "worse" (the oracle surely is), "unclear" (the interval of its gain holds zero), or
        "few" (documents).
    """

    closed: Estimate | None
    reason: str | None = None


def gap_closed(gain: Draws, oracle: Draws) -> Gap:
    """gain / oracle, where the interval of the oracle's gain lies above zero; undefined elsewhere.

    The interval is Fieller's (1954), by resampling: the fractions f for which zero lies in the central part of the
    draws of gain - f oracle. It is bounded exactly where the gap is defined, which a ratio's own quantiles are not.

    Args:
      gain: what the arm gains over repetition, positive where it is better.
      oracle: what the oracle gains, resampled together with it.
    """
    bounds = oracle.estimate
    if oracle.draws is None or gain.draws is None or bounds.low is None or bounds.high is None:
        return Gap(None, "few")
    if bounds.low <= 0.0:
        return Gap(None, "worse" if bounds.high < 0.0 else "unclear")
    with np.errstate(divide="ignore", invalid="ignore"):  # of accuracies, a draw may find no gain at all
        fractions_B = gain.draws / oracle.draws
    order = np.argsort(fractions_B, kind="stable")
    # The share of the draws in which gain - f oracle is not above zero, for f at each of the fractions in order.
    signs_B = np.sign(oracle.draws[order])
    below_B = (np.count_nonzero(signs_B < 0) + np.cumsum(signs_B)) / len(signs_B)
    first = int(np.argmax(below_B >= (1 - LEVEL) / 2))
    last = len(below_B) - 1 - int(np.argmax(below_B[::-1] <= (1 + LEVEL) / 2))
    low, high = fractions_B[order[first]], fractions_B[order[min(last + 1, len(order) - 1)]]
    return Gap(Estimate(gain.value / oracle.value, float(low), float(high)))
