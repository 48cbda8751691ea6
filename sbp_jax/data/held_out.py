"""What a set of held-out documents holds, and what a model says of it, document by document.

Beside its rows a set has an index: for every document its targets and the UTF-8 bytes of its text. Scores are added up
as rows go by, in whatever order, and are checked against the index: a target that is missing or counted twice is a
fault of the program and never a number.

Legend: B rows of a batch, T positions of a row.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sbp_jax.artifacts import Artifact
from sbp_jax.data.rows import Row
from sbp_jax.data.screened import mapped

PREFIX = "documents"  # of the index's files, one for each shard of documents
ENTRY = np.dtype([("ordinal", "<i8"), ("targets", "<i8"), ("bytes", "<i8")])


class Scores(NamedTuple):
    """The scored documents of one shard: their entries in the index, and the nats of each, float64."""

    entries: np.ndarray
    nats: np.ndarray


class ScoreSums:
    """The sums of the documents whose rows are under way; memory holds the shards that are begun and not complete.

    Attributes:
      shards: of the index, each to be completed once.
    """

    def __init__(self, rows: Artifact):
        """Args: the rows of a set with its index, whose ordinals rise over all shards."""
        self._index = [mapped(path) for path in rows.shards(".npy", PREFIX)]
        self._firsts = np.array([shard["ordinal"][0] for shard in self._index])
        self._left = np.ones(len(self._index), np.bool_)
        self._sums: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def shards(self) -> int:
        return len(self._index)

    def leave_out(self, shards: Sequence[int]) -> None:
        """Takes out shards that an earlier run has completed."""
        self._left[list(shards)] = False

    def need(self, batch: Row) -> bool:
        """Whether the rows [B, ...] hold a target of a document that is still to be scored."""
        return bool(self._left[self._shards_of(batch.documents[batch.mask])].any())

    def add(self, batch: Row, nats_BT: np.ndarray) -> Iterator[tuple[int, Scores]]:
        """Adds up a batch of rows; gives each shard that is complete with it, and forgets that.

        Raises:
          RuntimeError: a document has other targets than the index says.
        """
        ordinals, index = np.unique(batch.documents[batch.mask], return_inverse=True)
        nats = np.bincount(index, nats_BT[batch.mask].astype(np.float64), len(ordinals))
        targets = np.bincount(index, minlength=len(ordinals))
        shards = self._shards_of(ordinals)
        for shard in np.unique(shards[self._left[shards]]).tolist():
            here, entries = shards == shard, self._index[shard]
            places = np.searchsorted(entries["ordinal"], ordinals[here])
            if not np.isin(ordinals[here], entries["ordinal"]).all():
                raise RuntimeError(f"rows hold a document that is not in the set, one of {ordinals[here].tolist()}")
            if shard not in self._sums:
                self._sums[shard] = np.zeros(len(entries)), np.zeros(len(entries), np.int64)
            of_nats, of_targets = self._sums[shard]
            of_nats[places] += nats[here]
            of_targets[places] += targets[here]
            if of_targets.sum() >= entries["targets"].sum():
                yield shard, self._complete(shard)

    def check_complete(self) -> None:
        """Raises `RuntimeError` where targets of the index have not been in any row."""
        if self._left.any():
            raise RuntimeError(f"rows lack targets of documents in shards {np.flatnonzero(self._left).tolist()}")

    def _shards_of(self, documents: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._firsts, documents, side="right") - 1

    def _complete(self, shard: int) -> Scores:
        (nats, targets), entries = self._sums.pop(shard), self._index[shard]
        self._left[shard] = False
        wrong = np.flatnonzero(targets != entries["targets"])
        if len(wrong):
            entry = entries[wrong[0]]
            raise RuntimeError(
                f"document {entry['ordinal']} has {entry['targets']} targets, and {targets[wrong[0]]} were scored"
            )
        return Scores(entries, nats)


def entries(ordinals: np.ndarray, targets: Sequence[int], sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """The index of some documents.

    Args:
      targets: of each document.
      sizes: UTF-8 bytes of each text.
    """
    found = np.empty(len(ordinals), ENTRY)
    found["ordinal"], found["targets"], found["bytes"] = ordinals, targets, sizes
    return found
