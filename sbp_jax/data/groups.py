"""Which documents are read before one is written: the seed d1, and documents that it is paired with.

The accepted pairs (d1, x) give the partners x of d1, the most similar first. Tuning on the pair (d1, t) reads the
nearest partners other than t that are no near-duplicates of t; generation from d1 reads the nearest ones for its first
document, and for each further one those that follow, round in a circle. What is read goes furthest first and the seed
last, next to what is written: the template of a pair is the end of that of a group.

Legend: P = accepted pairs of one shard, F = further documents at most.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.text.shingles import mixed

MISSING = -1
FEWER = 8  # one pair in so many reads fewer documents than it could


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
                firsts, sizes = np.unique(table["d1"].to_numpy(), return_counts=True)
                seeds.append(firsts)
                counts.append(sizes)
                nearest.append(table["similarity"].to_numpy()[np.cumsum(sizes) - sizes])
                if self._further:
                    file.write(np.ascontiguousarray(table["d2"].to_numpy(), "<i8").data)
            file.flush()
            self._partners = np.memmap(file, "<i8", "r") if file.tell() else np.empty(0, np.int64)
        self._seeds, self._nearest = np.concatenate(seeds), np.concatenate(nearest)
        self._starts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
        if np.any(self._seeds[1:] <= self._seeds[:-1]):
            raise ValueError(f"the pairs of {pairs.path} are not in the order of d1")

    def of(self, seed: int, sample: int) -> list[int]:
        """Ordinals of the further documents to read for one sample of a seed; the first is the last to be left out.

        Args:
          seed: ordinal of the seed; one without partners has no further documents.
          sample: 0 has the nearest partners, 1 those after them, and so on, round in a circle.
        """
        place = self._place(seed)
        if place is None or not self._further:
            return []
        partners = self._partners[self._starts[place] : self._starts[place + 1]]
        start = sample * self._further
        steps = range(min(self._further, len(partners)))
        return [int(partners[(start + step) % len(partners)]) for step in steps]

    def similarity(self, seed: int) -> float | None:
        """Of a seed and its nearest partner; None where it has none."""
        place = self._place(seed)
        return None if place is None else float(self._nearest[place])

    def _place(self, seed: int) -> int | None:
        place = int(np.searchsorted(self._seeds, seed))
        return place if place < len(self._seeds) and self._seeds[place] == seed else None


def accepted(pairs: Artifact, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The accepted pairs of each shard, in their order: by d1, then falling similarity.

    Args:
      columns: those wanted, d1 and similarity among them.

    Raises:
      ValueError: they are not in this order, which is a fault of the program.
    """
    for index, table in enumerate(parquet.tables(pairs, [*columns, "verdict"])):
        table = table.filter(pc.equal(table["verdict"], "accepted")).select(list(columns))
        d1, similarity = table["d1"].to_numpy(), table["similarity"].to_numpy()
        if not np.all((d1[1:] > d1[:-1]) | ((d1[1:] == d1[:-1]) & (similarity[1:] <= similarity[:-1]))):
            raise ValueError(f"the pairs of {pairs.path}, shard {index}, are not in the order of d1 and similarity")
        yield table


def reading(seed: int, further: Sequence[int], lengths: Sequence[int], room: int) -> list[int]:
    """The documents of one group in the order in which they are read: furthest first, the seed last.

    Args:
      seed: ordinal of the seed.
      further: ordinals of the others, as `Partners.of` gives them.
      lengths: tokens of each of the others.
      room: positions of the context that the seed and what is written leave.
    """
    fits = fitting(np.array([lengths], np.int64).reshape(1, -1), np.array([room]))[0].tolist()
    return [*(ordinal for ordinal, fit in zip(further[::-1], fits[::-1], strict=True) if fit), seed]


def fitting(lengths_PF: np.ndarray, room_P: np.ndarray) -> np.ndarray:
    """Which further documents fit, each behind those before it; one that does not is passed over.

    Args:
      lengths_PF: tokens of each document.
      room_P: positions of the context that are left; a document takes its tokens and a separator.

    Returns:
      bool [P, F].
    """
    left_P = np.array(room_P)
    fits_PF = np.zeros(lengths_PF.shape, bool)
    for place in range(lengths_PF.shape[1]):
        sizes_P = lengths_PF[:, place] + 1
        fits_PF[:, place] = sizes_P <= left_P
        left_P -= np.where(fits_PF[:, place], sizes_P, 0)
    return fits_PF


def wanted(d1_P: np.ndarray, d2_P: np.ndarray, limit: int) -> np.ndarray:
    """Further documents that each pair may read: all but one of `limit`, and fewer for one pair in `FEWER`, by a hash.

    So the synthesizer learns to write from fewer, whatever the corpus offers, and is asked to where a seed has fewer.
    """
    hashes_P = mixed(mixed(d1_P.astype(np.uint64)) ^ d2_P.astype(np.uint64))
    fewer_P = (hashes_P >> np.uint64(32)) % np.uint64(max(limit - 1, 1))
    return np.where(hashes_P % np.uint64(FEWER) == 0, fewer_P, limit - 1).astype(np.int64)


def others(
    d1_P: np.ndarray, wanted_P: np.ndarray, admits: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The further documents of each pair: its seed's other pairs, in their order, as far as they are admitted.

    Args:
      d1_P: seeds, ascending.
      wanted_P: how many documents each pair may have.
      admits: receives places of pairs and, for each, the place of another pair of its seed; says which of the others'
        d2 may be read for the pair.

    Returns:
      Places of pairs, int64 [P, F], `MISSING` behind the last.
    """
    chosen_PF = np.full((len(d1_P), int(wanted_P.max(initial=0))), MISSING, np.int64)
    found_P = np.zeros(len(d1_P), np.int64)
    next_P, ends_P = np.searchsorted(d1_P, d1_P), np.searchsorted(d1_P, d1_P, side="right")
    while len(places := np.flatnonzero((found_P < wanted_P) & (next_P < ends_P))):
        candidates = next_P[places]
        next_P[places] += 1
        other = candidates != places
        places, candidates = places[other], candidates[other]
        good = admits(places, candidates)
        places, candidates = places[good], candidates[good]
        chosen_PF[places, found_P[places]] = candidates
        found_P[places] += 1
    return chosen_PF
