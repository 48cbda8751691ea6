"""What several arms score on the same documents, or items of a task, under several seeds each."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from sbp_jax.scoring.draws import Draws, binned, bins_of, over_seeds, resampled

Run = TypeVar("Run")
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # ordinals, sums such as nats, and weights such as targets


class Scores:
    """The scores of arms by seed, resampled together.

    Attributes:
      documents: that are scored.
      targets: the sum of their weights.
      seeds: of each arm.
    """

    def __init__(self, scored: Mapping[str, Mapping[int, Run]], read: Callable[[Run], Columns], stream: str = ""):
        """Reads one run after another; memory holds what `BINS` documents take for each, and one run.

        Args:
          scored: by arm and seed, what `read` makes into the documents' ordinals, sums and weights.
          stream: names the documents; draws of other ones are independent of these.

        Raises:
          ValueError: two runs were scored on different documents, which is a fault of the program.
        """
        self.seeds = {arm: tuple(runs) for arm, runs in scored.items()}
        self._columns = [(arm, seed) for arm, runs in scored.items() for seed in runs]
        sums: list[np.ndarray] = []
        known: tuple[np.ndarray, np.ndarray] | None = None
        for arm, seed in self._columns:
            ordinals, values, weights = read(scored[arm][seed])
            order = np.argsort(ordinals, kind="stable")
            ordinals, weights = ordinals[order], weights[order]
            if known is None:
                known, bins = (ordinals, weights), bins_of(len(ordinals))
            elif not (np.array_equal(known[0], ordinals) and np.array_equal(known[1], weights)):
                raise ValueError(f"{arm}, seed {seed}, was scored on other documents than {self._columns[0]}")
            sums.append(binned(values[order], bins))
        assert known is not None
        self.documents, self.targets = len(known[0]), float(known[1].sum())
        values_C, self._draws = resampled(np.stack(sums, axis=1), binned(known[1], bins), stream)
        self._values = dict(zip(self._columns, values_C.tolist(), strict=True))

    def common(self, *arms: str) -> tuple[int, ...]:
        """The seeds that all of these arms have."""
        first, *others = (self.seeds[arm] for arm in arms)
        return tuple(seed for seed in first if all(seed in other for other in others))

    def by_seed(self, arm: str) -> list[float]:
        return [self._values[arm, seed] for seed in self.seeds[arm]]

    def of(self, arm: str, seeds: Sequence[int] | None = None) -> Draws:
        """The mean over an arm's seeds, or over some of them."""
        chosen = [(arm, seed) for seed in (self.seeds[arm] if seeds is None else seeds)]
        values_S = np.array([self._values[column] for column in chosen])
        places = [self._columns.index(column) for column in chosen]
        return over_seeds(values_S, None if self._draws is None else self._draws[:, places])

    def difference(self, arm: str, against: str) -> Draws | None:
        """Arm minus another arm, over the seeds that both have; None where they have none in common."""
        seeds = self.common(arm, against)
        return self.of(arm, seeds) - self.of(against, seeds) if seeds else None
