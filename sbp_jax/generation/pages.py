"""Which pages of the cache a slot holds."""

import heapq

import numpy as np


class PageTable:
    """Pages are given when they are needed, the lowest first, so that those in use lie close together.

    Attributes:
      table: int32 [slots, Z], the pages of each slot in their order; the number of pages for none.
    """

    def __init__(self, slots: int, pages: int, positions: int, context: int):
        """Args: slots; pages in all; positions of a page; most positions of a slot."""
        self._pages, self._positions = pages, positions
        self.table = np.full((slots, -(-context // positions)), pages, np.int32)
        self._held = [0] * slots
        self._free = list(range(pages))  # a heap

    def cover(self, slot: int, positions: int) -> bool:
        """Gives a slot the pages that so many positions take; False, and none are given, if there are not enough."""
        missing = -(-positions // self._positions) - self._held[slot]
        if missing > len(self._free):
            return False
        for _ in range(missing):
            self.table[slot, self._held[slot]] = heapq.heappop(self._free)
            self._held[slot] += 1
        return True

    def release(self, slot: int) -> None:
        for page in self.table[slot, : self._held[slot]].tolist():
            heapq.heappush(self._free, page)
        self.table[slot], self._held[slot] = self._pages, 0
