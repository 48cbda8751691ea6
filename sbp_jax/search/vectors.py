"""The vectors of an `embeddings` artifact, read by range: memory holds the shards that a range touches.

Legend: N vectors, D width.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sbp_jax.artifacts import Artifact
from sbp_jax.errors import SbpError

READ = 1 << 22  # numbers that are read and copied at a time
DECODED = 1024  # vectors of a Parquet file that are decoded at a time: Arrow takes several times their memory


class Stored:
    """Unit vectors in the order of their ordinals; vector i is that of document `ordinals[i]`."""

    def __init__(self, embeddings: Artifact):
        self.path = embeddings.path
        self._embeddings = embeddings
        self._files = [file for file in embeddings.files if file.name.startswith("part-")]
        self._starts = np.cumsum([0, *(file.rows for file in self._files)])
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fingerprint(self) -> str:
        """Differs where any of the vectors does."""
        return hashlib.sha256(" ".join(file.checksum for file in self._files).encode()).hexdigest()[:16]

    @cached_property
    def width(self) -> int:
        return self._shard(0).shape[1]

    @cached_property
    def ordinals(self) -> np.ndarray:
        """int64 [N]."""
        shards = [np.empty(0, np.int64)]
        for file in self._files:
            with self._embeddings.file(file.name).open("rb") as stream:
                shards.append(pq.read_table(stream, columns=["ordinal"])["ordinal"].to_numpy())
        return np.concatenate(shards)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start, D].

        Raises:
          SbpError: a vector of a shard that was read is zero or not finite.
        """
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        parts = [
            self._shard(shard)[max(start - int(self._starts[shard]), 0) : stop - int(self._starts[shard])]
            for shard in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """The vectors of a range in order, some at a time, each block with the index of its first."""
        stop = len(self) if stop is None else stop
        step = max(READ // self.width, 1)
        for first in range(start, stop, step):
            yield first, self.rows(first, min(first + step, stop))

    def take(self, indices: np.ndarray) -> np.ndarray:
        """float32 [Q, D], the vectors at some rising indices; reads every shard once at most."""
        taken_QD = np.empty((len(indices), self.width), np.float32)
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shards):
            taken_QD[shards == shard] = self._shard(int(shard))[indices[shards == shard] - self._starts[shard]]
        return taken_QD

    def mapped(self, folder: Path) -> np.ndarray:
        """All vectors as one file that the system reads as it is needed, for random access; float32 [N, D]."""
        file = folder / f"vectors-{self.fingerprint}.float32"
        if not file.exists():
            growing = file.with_suffix(".growing")
            with growing.open("wb") as stream:
                for _, block_CD in self.blocks():
                    block_CD.tofile(stream)
            growing.rename(file)
        return np.memmap(file, np.float32, "r", shape=(len(self), self.width))

    def _shard(self, shard: int) -> np.ndarray:
        if self._last is not None and self._last[0] == shard:
            return self._last[1]
        name = self._files[shard].name
        with self._embeddings.file(name).open("rb") as stream:
            file = pq.ParquetFile(stream)
            width = file.schema_arrow.field("embedding").type.list_size  # a shard may have no rows to tell it by
            vectors_CD = np.empty((file.metadata.num_rows, width), np.float32)
            done = 0
            for batch in file.iter_batches(DECODED, columns=["embedding"]):
                part = batch.column(0).flatten().to_numpy().reshape(len(batch), width)
                vectors_CD[done : done + len(batch)] = part
                done += len(batch)
        lengths_C = np.einsum("cd,cd->c", vectors_CD, vectors_CD)
        bad = np.flatnonzero(~np.isfinite(lengths_C) | (lengths_C == 0))
        if len(bad):
            ordinal = self.ordinals[self._starts[shard] + bad[0]]
            raise SbpError(
                f"{len(bad):,} embeddings of {self.path / name} are zero or not finite, the first is that of the"
                f" document with ordinal {ordinal}; check embedding.model, or the file that embedding.vectors names"
            )
        self._last = shard, vectors_CD
        return vectors_CD
