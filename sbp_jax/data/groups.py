"""Which documents are read before one is written: the seed d1, and documents that it is paired with.

The accepted pairs (d1, x) give the partners x of d1, the most similar first. Tuning on the pair (d1, t) reads the
nearest partners other than t; generation from d1 reads the nearest ones for its first document, and for each further
one those that follow, round in a circle. What is read goes furthest first and the seed last, next to what is written.

Legend: G = groups, F = further documents at most.
"""

import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, parquet


class Partners:
    """The partners of every seed, for generation.

    Memory holds 20 bytes for each seed that has any; the partners lie in a file in the temporary folder, 8 bytes for
    each accepted pair, which vanishes with the process.
    """

    def __init__(self, pairs: Artifact, limit: int):
        """Args: the pairs; the documents that are read at most, the seed among them.

        Raises:
          ValueError: the pairs are not in the order of d1, which is a fault of the program.
        """
        self._further = limit - 1
        seeds, counts, nearest = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        with tempfile.TemporaryFile() as file:
            for table in accepted(pairs, ["d1", "d2", "similarity"]):
                d1, d2, similarity = (table[name].to_numpy() for name in ("d1", "d2", "similarity"))
                order = partner_order(d1, d2, similarity)
                firsts, sizes = np.unique(d1, return_counts=True)
                seeds.append(firsts)
                counts.append(sizes)
                nearest.append(similarity[order][np.cumsum(sizes) - sizes])
                if self._further:
                    file.write(np.ascontiguousarray(d2[order], "<i8").data)
            file.flush()
            self._partners = np.memmap(file, "<i8", "r") if file.tell() else np.empty(0, np.int64)
        self._seeds, self._nearest = np.concatenate(seeds), np.concatenate(nearest)
        self._starts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
        if np.any(self._seeds[1:] <= self._seeds[:-1]):
            raise ValueError(f"the pairs of {pairs.path} are not in the order of d1")

    def of(self, seed: int, sample: int) -> list[int]:
        """Ordinals of the further documents to read for one sample of a seed, the most important first.

        Args:
          seed: ordinal of the seed; one without partners has no further documents.
          sample: 0 has the nearest partners, 1 those after them, and so on, round in a circle.
        """
        place = self._place(seed)
        if place is None or not self._further:
            return []
        partners = self._partners[self._starts[place] : self._starts[place + 1]]
        count = min(self._further, len(partners))
        start = sample * self._further
        return [int(partners[(start + step) % len(partners)]) for step in range(count)]

    def similarity(self, seed: int) -> float | None:
        """Of a seed and its nearest partner; None where it has none."""
        place = self._place(seed)
        return None if place is None else float(self._nearest[place])

    def _place(self, seed: int) -> int | None:
        place = int(np.searchsorted(self._seeds, seed))
        return place if place < len(self._seeds) and self._seeds[place] == seed else None


def accepted(pairs: Artifact, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The accepted pairs of each shard."""
    for table in parquet.tables(pairs, [*columns, "verdict"]):
        yield table.filter(pc.equal(table["verdict"], "accepted")).select(list(columns))


def partner_order(d1: np.ndarray, d2: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """The order of pairs by d1, then falling similarity; ties by d2."""
    return np.lexsort((d2, -similarity, d1))


def fitting(lengths_GF: np.ndarray, room_G: np.ndarray) -> np.ndarray:
    """Which further documents fit, each behind those before it; one that does not is passed over.

    Args:
      lengths_GF: tokens of each document.
      room_G: positions of the context that the seed and what is written leave; a document takes one more than its
        tokens, for the separator.

    Returns:
      bool [G, F].
    """
    left_G = np.array(room_G)
    fits_GF = np.zeros(lengths_GF.shape, bool)
    for place in range(lengths_GF.shape[1]):
        sizes_G = lengths_GF[:, place] + 1
        fits_GF[:, place] = sizes_G <= left_G
        left_G -= np.where(fits_GF[:, place], sizes_G, 0)
    return fits_GF


def conditioning(seed: int, further: Sequence[int], lengths: Sequence[int], room: int) -> list[int]:
    """The documents of one group in the order in which they are read: furthest first, the seed last.

    Args:
      seed: ordinal of the seed.
      further: ordinals of the others, as `Partners.of` gives them.
      lengths: tokens of each of the others.
      room: positions of the context that the seed and what is written leave.
    """
    fits = fitting(np.array([lengths], np.int64).reshape(1, -1), np.array([room]))[0]
    return [*(ordinal for ordinal, kept in zip(further[::-1], fits[::-1].tolist(), strict=True) if kept), seed]
