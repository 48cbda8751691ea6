"""Boilerplate: shingles in more documents than a bound, and what of each document lies outside of it.

A licence at the foot of a thousand documents must not make two of them near-duplicates, nor must it keep two that are
near-duplicates anyway from counting as such. So pairs are compared by their own shingles: those with none of their
words in a shingle that is boilerplate, as if the boilerplate had been cut out. A document of which nothing is left, one
of thirty copies of a description, has no shingles of its own.

Shuffling on disk: each shard is sorted, then each range of hashes is read from all of them. Memory holds a shard or a
range.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.data.by_hash import by_hash
from sbp_jax.data.screened import mapped, save, save_parts
from sbp_jax.progress import progress
from sbp_jax.text.shingles import WORDS, among

DOCUMENTS = 4096  # documents whose words are laid out at a time


def own_shingles(scratch: Output, screened: Artifact, common: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Which shingles are a document's own.

    Args:
      common: documents with a shingle past which it is boilerplate.

    Returns:
      For each shard a bool for each shingle, mapped into memory, and the number of own shingles of each document.
    """
    hashes = screened.shards(".npy", "hashes")
    own = [f"own-{index:05d}.npy" for index in range(len(hashes))]
    if not all(map(scratch.has, own)):
        boilerplate = _boilerplate(scratch, [mapped(path) for path in hashes], common)
        others = zip(screened.shards(".npy", "places"), screened.shards(".npy", "offsets"), strict=True)
        tables = parquet.tables(screened, ["words"])
        with progress(f"{scratch.label}: own shingles", screened.rows, "documents") as counter:
            for name, path, (places, offsets), table in zip(own, hashes, others, tables, strict=True):
                if not scratch.has(name):
                    arrays = mapped(path), mapped(places), mapped(offsets), table["words"].to_numpy()
                    save(scratch, name, np.concatenate([np.empty(0, bool), *_own(*arrays, boilerplate)]))
                counter.advance(table.num_rows)
    flags = [mapped(scratch.path / name) for name in own]
    counts = [
        _sums(part, mapped(offsets)) for part, offsets in zip(flags, screened.shards(".npy", "offsets"), strict=True)
    ]
    return flags, np.concatenate(counts)


def _boilerplate(scratch: Output, shards: Sequence[np.ndarray], common: int) -> np.ndarray:
    """The hashes in more than `common` documents, sorted."""

    def repeated(hashes: np.ndarray) -> np.ndarray:
        first = np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1]))) if len(hashes) else np.empty(0, int)
        return hashes[first][np.diff(first, append=len(hashes)) > common]

    for index, hashes in enumerate(shards):
        if not scratch.has(f"sorted-{index:05d}.npy"):
            save(scratch, f"sorted-{index:05d}.npy", np.sort(hashes))
    files = [scratch.path / f"sorted-{index:05d}.npy" for index in range(len(shards))]
    parts = by_hash(scratch, "boilerplate", files, repeated)
    if not scratch.has("boilerplate.npy"):
        save_parts(scratch, "boilerplate.npy", parts)
    return mapped(scratch.path / "boilerplate.npy")


def _own(
    hashes: np.ndarray, places: np.ndarray, offsets: np.ndarray, words: np.ndarray, boilerplate: np.ndarray
) -> Iterator[np.ndarray]:
    """Whether each shingle is its document's own, some documents at a time."""
    for start in range(0, len(words), DOCUMENTS):
        some = slice(int(offsets[start]), int(offsets[min(start + DOCUMENTS, len(words))]))
        lengths = words[start : start + DOCUMENTS].astype(np.int64)
        counts = np.diff(offsets[start : start + DOCUMENTS + 1])
        # All words in one line, the documents apart by a shingle's length so that no shingle reaches into the next.
        first = np.repeat(np.cumsum(lengths + WORDS) - lengths - WORDS, counts) + places[some]
        common = among(hashes[some], boilerplate)
        edges = np.zeros(int(np.sum(lengths + WORDS)) + 1, np.int64)
        np.add.at(edges, first[common], 1)
        np.add.at(edges, first[common] + WORDS, -1)
        covered = np.concatenate(([0], np.cumsum(np.cumsum(edges) > 0)))
        yield covered[first + WORDS] == covered[first]


def _sums(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many flags of each document are set, int32."""
    return np.diff(np.concatenate(([0], np.cumsum(flags, dtype=np.int64)))[offsets]).astype(np.int32)
