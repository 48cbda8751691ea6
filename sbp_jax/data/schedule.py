"""Which seed each synthetic document is written for: passes over all of them without replacement."""

import threading

import numpy as np

KEPT = 2  # orders of passes: requests of several threads may lie on both sides of a pass's end


class Schedule:
    """The seed and the sample number of every request, from any number on, for any thread.

    A pass gives each seed once, in an order drawn anew, `samples` documents of a seed following one another. Sample
    numbers go on from pass to pass, so that no seed has one twice. The orders of the last passes asked for are kept, 8
    bytes a seed each; asking for ascending numbers draws none twice.
    """

    def __init__(self, seeds: np.ndarray, samples: int, seed: int):
        """Args: ordinals of the seeds, at least one; documents of a seed in each pass; the seed of all orders."""
        if len(seeds) == 0 or samples < 1:
            raise ValueError(f"a schedule of {len(seeds)} seeds, {samples} documents of each, is no schedule")
        self._seeds, self._samples, self._seed = seeds, samples, seed
        self._orders: dict[int, np.ndarray] = {}
        self._drawing = threading.Lock()

    def request(self, number: int) -> tuple[int, int]:
        """The ordinal of the seed of request `number`, and which of its documents this one is, from 0."""
        place, sample = divmod(number, self._samples)
        turn, place = divmod(place, len(self._seeds))
        return int(self._order(turn)[place]), turn * self._samples + sample

    def _order(self, turn: int) -> np.ndarray:
        with self._drawing:
            if turn not in self._orders:
                while len(self._orders) >= KEPT:  # the oldest is let go before the next one takes as much memory
                    del self._orders[next(iter(self._orders))]
                self._orders[turn] = np.random.default_rng([self._seed, turn]).permutation(self._seeds)
            return self._orders[turn]
