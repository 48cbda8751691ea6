"""The screened documents as readers want them: columns and shingles mapped into memory, by place among them all.

A document's place is its row over all shards. Whatever is derived from all documents is written to a scratch folder,
file by file, so that a killed run finds what it had finished.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import xxhash
from etils import epath

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.errors import SbpError
from sbp_jax.text.shared_shingles import Gathered

BATCH = 4096  # records of tokens read at a time
OPEN = 1024  # files of a `Ragged` that stay mapped
COLUMNS = np.dtype(
    [
        ("ordinal", "<i8"),
        ("tokens", "<i4"),
        ("language", "<i4"),  # a code that only this run knows; 0: undetermined
        ("source", "<u8"),  # a hash
        ("contaminated", "?"),
    ]
)


def mapped(path: epath.Path) -> np.ndarray:
    """A .npy file mapped into memory, or read where it lies in a bucket."""
    if os.path.exists(path) and path.stat().length > 128:  # an array without elements is a header and nothing to map
        return np.asarray(np.load(path, mmap_mode="r"))
    with path.open("rb") as stream:
        return np.load(stream)


def save(output: Output, name: str, array: np.ndarray) -> None:
    """Writes an array, unless an earlier run finished the file."""
    if output.has(name):
        return
    with output.writing(name) as writing, writing.path.open("wb") as stream:
        np.save(stream, array)


def save_parts(output: Output, name: str, parts: Sequence[np.ndarray]) -> None:
    """Writes the parts one after another, without all of them in memory."""
    if sum(map(len, parts)) == 0:
        save(output, name, parts[0])
        return
    with output.writing(name) as writing:
        with created(writing.path, parts[0].dtype, sum(map(len, parts))) as whole:
            np.concatenate(parts, out=whole)


@contextmanager
def created(path: epath.Path, kind: np.dtype, length: int) -> Iterator[np.ndarray]:
    """An array to fill, which becomes a .npy file: mapped where it can be; for a bucket it takes memory."""
    if "://" in str(path):
        array = np.empty(length, kind)
        yield array
        with path.open("wb") as stream:
            np.save(stream, array)
    else:
        array = np.lib.format.open_memmap(path, "w+", kind, (length,))
        yield array
        array.flush()


def columns(scratch: Output, screened: Artifact, tokens: Artifact) -> np.ndarray:
    """The columns of all documents, mapped into memory.

    Raises:
      SbpError: a document without tokens.
    """
    if not scratch.has("documents.npy"):
        codes: dict[str, int] = {"und": 0}
        records = arrayrecord.source(tokens)
        with (
            scratch.writing("documents.npy") as writing,
            created(writing.path, COLUMNS, screened.rows) as rows,
        ):
            first = 0
            for table in parquet.tables(screened, ["ordinal", "language", "source", "contaminated_by"]):
                part = rows[first : first + table.num_rows]
                part["ordinal"] = table["ordinal"].to_numpy()
                part["language"] = [codes.setdefault(name, len(codes)) for name in table["language"].to_pylist()]
                part["source"] = [xxhash.xxh3_64_intdigest(name.encode()) for name in table["source"].to_pylist()]
                part["contaminated"] = table["contaminated_by"].to_numpy(zero_copy_only=False) != ""
                if table.num_rows and part["ordinal"][-1] >= len(records):
                    raise SbpError(
                        f"{tokens.path} has {len(records):,} documents and none with ordinal {part['ordinal'][-1]},"
                        " which was screened; run `sbp clean`, then `sbp run`"
                    )
                part["tokens"] = np.concatenate([np.empty(0, np.int32), *_lengths(records, part["ordinal"])])
                first += table.num_rows
    return mapped(scratch.path / "documents.npy")


def _lengths(records: arrayrecord.ArrayRecordDataSource, ordinals: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(ordinals), BATCH):
        batch = records.__getitems__(ordinals[start : start + BATCH].tolist())
        yield np.array([len(record) // 4 for record in batch], np.int32)


class Ragged:
    """Arrays of different lengths, one for each of many documents, that lie one after another in the files of shards.

    Files are mapped when they are asked for, and a bounded number at a time.

    Attributes:
      offsets: int64 [documents + 1], where the array of each document begins among all of them.
      bases: int64 [shards + 1], where those of each shard begin.
    """

    def __init__(self, values: Sequence[epath.Path], offsets: Sequence[epath.Path]):
        """Args: for each shard the file of its arrays, and of where each of them begins and the last one ends."""
        parts = [np.array(mapped(path)) for path in offsets]
        self.bases = np.cumsum([0, *(int(part[-1]) for part in parts)])
        starts = [part[:-1] + base for part, base in zip(parts, self.bases[:-1], strict=True)]
        self.offsets = np.concatenate([*starts, self.bases[-1:]])
        self.shard = lru_cache(OPEN)(lambda shard: mapped(values[shard]))

    def gather(self, places: np.ndarray) -> Gathered:
        """The arrays of the documents at these places, in the order given."""
        starts, ends = self.offsets[places], self.offsets[places + 1]
        shards = np.searchsorted(self.bases, starts, side="right") - 1
        bases = self.bases[shards]
        views = [
            self.shard(shard)[start:end]
            for shard, start, end in zip(
                shards.tolist(), (starts - bases).tolist(), (ends - bases).tolist(), strict=True
            )
            if start < end
        ]
        return Gathered(np.concatenate([np.empty(0, np.uint64), *views]), ends - starts, starts)


class Shingles:
    """The shingles of all documents, mapped into memory.

    Attributes:
      offsets, bases: where the shingles of each document and of each shard begin, as in `Ragged`.
    """

    def __init__(self, screened: Artifact, own: Sequence[np.ndarray]):
        """Args: the screened documents, and for each shard whether each shingle is its document's own."""
        self._own = own
        stored = Ragged(screened.shards(".npy", "hashes"), screened.shards(".npy", "offsets"))
        self.offsets, self.bases, self.gather = stored.offsets, stored.bases, stored.gather

    def are_own(self, where: np.ndarray) -> np.ndarray:
        """Whether the shingles at these places among all of them are their document's own, and no boilerplate."""
        result = np.empty(len(where), bool)
        shards = np.searchsorted(self.bases, where, side="right") - 1
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            result[chosen] = self._own[shard][where[chosen] - self.bases[shard]]
        return result
