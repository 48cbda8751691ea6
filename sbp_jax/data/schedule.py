"""Which seed each synthetic document is written for: passes over all of them without replacement."""

import numpy as np


class Schedule:
    """The seed and the sample number of every request, from any number on.

    A pass gives each seed once, in an order drawn anew, `samples` documents of a seed following one another. Sample
    numbers go on from pass to pass, so that no seed has one twice. The order of the pass asked for last is kept, 8
    bytes a seed; asking within it, or for ascending numbers, draws no order twice.
    """

    def __init__(self, seeds: np.ndarray, samples: int, seed: int):
        """Args: ordinals of the seeds, at least one; documents of a seed in each pass; the seed of all orders."""
        if len(seeds) == 0 or samples < 1:
            raise ValueError(f"a schedule of {len(seeds)} seeds, {samples} documents of each, is no schedule")
        self._seeds, self._samples, self._seed = seeds, samples, seed
        self._drawn: tuple[int, np.ndarray] | None = None

    def request(self, number: int) -> tuple[int, int]:
        """The ordinal of the seed of request `number`, and which of its documents this one is, from 0."""
        place, sample = divmod(number, self._samples)
        turn, place = divmod(place, len(self._seeds))
        return int(self._order(turn)[place]), turn * self._samples + sample

    def _order(self, turn: int) -> np.ndarray:
        if self._drawn is None or self._drawn[0] != turn:
            self._drawn = None  # the last order is let go before the next one takes as much memory
            self._drawn = turn, np.random.default_rng([self._seed, turn]).permutation(self._seeds)
        return self._drawn[1]
