"""Packed rows: fixed-length pieces of token streams, and their bytes in ArrayRecord.

Legend: L = context, the number of loss-bearing positions a row can hold. A row carries L + 1 tokens: position i reads
tokens[i] and predicts tokens[i + 1].
"""

from collections.abc import Iterator
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from sbp_jax.artifacts import Artifact, Output, arrayrecord
from sbp_jax.artifacts.artifact import Writing

ROWS_PER_SHARD = 65_536
# Added to the ordinal of a synthetic document where real ones stand in the same stream.
SYNTHETIC = 1 << 62
ROW_TARGETS = "synthetic.npy"  # of such a stream: int32 [rows], how many targets of each row are synthetic


class Row(NamedTuple):
    """One packed row.

    Attributes:
      tokens: int32 [L + 1].
      segments: int32 [L]; positions attend only within their own segment; 1, 2, ... in order, 0 is padding.
      positions: int32 [L]; place within the segment, for RoPE: 0
        at its first token, also where a document continues from the previous row.
      documents: int64 [L]; ordinal of the document that the target belongs to, -1 in padding. In a stream of real and
        synthetic documents those from `SYNTHETIC` on are synthetic.
      mask: bool [L]; whether the target tokens[i + 1] bears loss.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    documents: np.ndarray
    mask: np.ndarray


_DTYPES = (np.int32, np.int32, np.int32, np.int64, np.bool_)


def blank(context: int, end_of_document: int) -> Row:
    """A row of nothing but padding, to be filled."""
    return Row(
        np.full(context + 1, end_of_document, np.int32),
        np.zeros(context, np.int32),
        np.zeros(context, np.int32),
        np.full(context, -1, np.int64),
        np.zeros(context, np.bool_),
    )


def to_bytes(row: Row) -> bytes:
    return b"".join(np.ascontiguousarray(part, dtype).tobytes() for part, dtype in zip(row, _DTYPES, strict=True))


def from_bytes(record: bytes) -> Row:
    """Inverse of `to_bytes`; L follows from the number of bytes: 4 (L + 1) + 4 L + 4 L + 8 L + L."""
    context = (len(record) - 4) // 21
    parts: list[np.ndarray] = []
    start = 0
    for dtype, length in zip(_DTYPES, (context + 1, context, context, context, context), strict=True):
        size = np.dtype(dtype).itemsize * length
        parts.append(np.frombuffer(record, dtype, length, start))
        start += size
    return Row(*parts)


def write_rows(output: Output, rows: Iterator[Row]) -> dict[str, int]:
    """Writes rows as shards; returns their targets (loss-bearing positions) and how many rows bear loss everywhere."""
    totals = {"targets": 0, "full_rows": 0}

    def counted() -> Iterator[Row]:
        for row in rows:
            targets = int(np.count_nonzero(row.mask))
            totals["targets"] += targets
            totals["full_rows"] += targets == len(row.mask)
            yield row

    def write(writing: Writing) -> None:
        arrayrecord.write(writing, map(to_bytes, shard))

    remaining, index = counted(), 0
    while (first := next(remaining, None)) is not None:
        shard = chain([first], islice(remaining, ROWS_PER_SHARD - 1))
        output.shard(index, ".array_record", write)
        for _ in shard:  # rows that an earlier run has written; without one there are none left
            pass
        index += 1
    return totals


class RowSource:
    """The rows of an artifact by index; a Grain random-access data source."""

    def __init__(self, artifact: Artifact, rows: int | None = None):
        self._records = arrayrecord.source(artifact)
        self._rows = len(self._records) if rows is None else rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Row:
        if index >= self._rows:
            raise IndexError(index)
        return from_bytes(self._records[index])
