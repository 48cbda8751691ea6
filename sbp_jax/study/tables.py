"""Means over the seeds of a study's records, differences and gaps closed, with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbp_jax.config import BASE_ARM, ORACLE_ARM
from sbp_jax.scoring.draws import RESAMPLES, Draws, Estimate, over_seeds
from sbp_jax.scoring.gap import gap_closed

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Runs:
    """The records of one setting: each arm's by seed. Losses are told in `unit`."""

    arms: Mapping[str, Mapping[int, Record]]
    unit: str = "nats_per_token"

    @classmethod
    def of(cls, records: Sequence[Record], *settings: str, unit: str = "nats_per_token") -> "Runs":
        """Those of a setting; an arm that it does not record is that of the first later one that has it."""
        arms: dict[str, dict[int, Record]] = {}
        for setting in settings:
            found: dict[str, dict[int, Record]] = {}
            for line in records:
                if line["setting"] == setting:
                    found.setdefault(line["arm"], {})[line["seed"]] = line
            arms = found | arms
        return cls(arms, unit)

    def losses(self, text: str, *arms: str) -> list[Draws]:
        """Mean losses of arms over the seeds that all of them have, resampled together."""
        seeds = sorted(set.intersection(*(set(self.arms[arm]) for arm in arms)))
        return [mean([self.arms[arm][seed]["losses"][text][self.unit] for seed in seeds]) for arm in arms]

    def difference(self, text: str, arm: str, other: str) -> Draws:
        ours, theirs = self.losses(text, arm, other)
        return ours - theirs

    def base(self, text: str) -> str:
        """The repetition arm with the least mean loss of this text: the one that was tuned for it."""
        arms = [arm for arm in self.arms if arm.startswith(BASE_ARM)]
        return min(arms, key=lambda arm: self.losses(text, arm)[0].value)

    def gap(self, text: str, arm: str) -> Estimate | None:
        """The gap closed between the best repetition arm and the oracle, of one seed without an interval.

        Returns:
          None where it is undefined: where the interval of what the oracle gains, or of one seed its gain, holds zero.
        """
        if ORACLE_ARM not in self.arms:
            return None
        base, ours, oracle = self.losses(text, self.base(text), arm, ORACLE_ARM)
        gain, whole = base - ours, base - oracle
        if whole.draws is None:
            return Estimate(gain.value / whole.value, None, None) if whole.value > 0 else None
        return gap_closed(gain, whole).closed


def mean(values: Sequence[float]) -> Draws:
    """The mean over seeds that are experiments of their own: their spread is all there is."""
    values_S = np.array(values, np.float64)
    return over_seeds(values_S, np.broadcast_to(values_S, (RESAMPLES, len(values_S))) if len(values_S) > 1 else None)


def shown(estimate: Estimate, percent: bool = False) -> str:
    """A value with its interval, such as 0.83 (0.80 to 0.86)."""
    factor, digits, unit = (100, 0, "%") if percent else (1, 3, "")
    value, *ends = (
        None if number is None else f"{factor * number:.{digits}f}{unit}".replace("-", "−")
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}" if ends[0] is None else f"{value} ({ends[0]} to {ends[1]})"
