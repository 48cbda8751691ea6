"""What several arms score on the same documents, or items of a task, under several seeds each."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from sbp_jax.scoring.draws import Draws, binned, bins_of, mean, over_seeds, resampled

Run = TypeVar("Run")
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # ordinals, sums such as nats, and weights such as targets
Function = Callable[[np.ndarray], np.ndarray]


class Scores:
    """The scores of arms by seed, resampled together.

    Attributes:
      documents: that are scored.
      targets: the sum of their weights.
      seeds: of each arm.
    """

    def __init__(
        self,
        scored: Mapping[str, Mapping[int, Run]],
        read: Callable[[Run], Columns],
        stream: str = "",
        function: Function = lambda values: values,
    ):
        """Reads one run after another; memory holds what `BINS` documents take for each, and one run.

        Args:
          scored: by arm and seed, what `read` makes into the documents' ordinals, sums and weights.
          stream: names the documents; draws of other ones are independent of these.
          function: of the ratio of the sums, such as that which makes it a perplexity.

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
        values_C, draws_BC = resampled(np.stack(sums, axis=1), binned(known[1], bins), stream)
        self._values = dict(zip(self._columns, function(values_C).tolist(), strict=True))
        self._draws = None if draws_BC is None else function(draws_BC)

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


class Average(Scores):
    """The mean of several scores of the same arms, such as accuracies: documents drawn apart, seeds drawn together."""

    def __init__(self, parts: Sequence[Scores]):
        """Args: the scores, all of the same arms and seeds."""
        self._parts = parts
        self.seeds = parts[0].seeds
        self.documents, self.targets = sum(part.documents for part in parts), sum(part.targets for part in parts)

    def by_seed(self, arm: str) -> list[float]:
        return np.mean([part.by_seed(arm) for part in self._parts], axis=0).tolist()

    def of(self, arm: str, seeds: Sequence[int] | None = None) -> Draws:
        return mean([part.of(arm, seeds) for part in self._parts])
