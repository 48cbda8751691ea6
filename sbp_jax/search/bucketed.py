"""A k-means-routed self-join: every document goes into the buckets of its nearest centroids, each joined with itself.

A pair is found where the two share a bucket. The buckets lie on disk, so memory holds what one group of them needs,
whatever the number of documents; each group that is joined is kept, for a killed run to go on from.

Legend: N vectors, M members of a bucket, D width, K neighbours, E entries of a group of buckets.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sbp_jax.artifacts.artifact import read_json
from sbp_jax.config import Neighbors
from sbp_jax.search import kmeans
from sbp_jax.search.ranking import MISSING, largest
from sbp_jax.search.shuffle import Group, Shuffle, check_stamp, merge, run_marker, wait_for, write_run
from sbp_jax.search.vectors import Stored

SPILL = 6  # buckets of a document
ROUND = 64  # the number of buckets is a multiple of; the nearest of so many centroids are found faster
SAMPLE = 40  # vectors that a centroid is trained on
LEAST = 8  # times top_k that a bucket holds on average at least
LARGEST = 4  # times the average above which a bucket is split
GROUP_BYTES = (1 << 26, 1 << 31)  # of vectors of a group of buckets: least and greatest; between, an eighth of them all
QUERIES = 256  # members of a bucket that are scored against all at a time
JOINS = 2  # buckets that are joined at the same time on a CPU


@dataclass(frozen=True)
class Settings:
    """Everything that decides the buckets and the joins, derived or given."""

    top_k: int
    buckets: int
    spill: int
    largest: int
    groups: int
    sample: int


def settings(n: int, width: int, neighbors: Neighbors) -> Settings:
    """Derives what `neighbors` leaves open: with so many buckets, assigning costs about as much as joining."""
    top_k = min(neighbors.top_k, n - 1)
    spill = neighbors.leaves_to_search or SPILL
    buckets = neighbors.leaves or min(round(4 * math.sqrt(n)), spill * n // (LEAST * (top_k + 1)))
    buckets = max(min(buckets, n), 1)
    if neighbors.leaves is None and buckets > ROUND:
        buckets -= buckets % ROUND
    spill = min(spill, buckets)
    average = math.ceil(spill * n / buckets)
    size = 4 * width * spill * n
    groups = math.ceil(size / min(max(size // (8 * spill), GROUP_BYTES[0]), GROUP_BYTES[1]))
    most = max(LARGEST * average, 4 * (top_k + 1), QUERIES)
    return Settings(top_k, buckets, spill, most, min(groups, buckets), min(SAMPLE * buckets, n))


class Bucketed:
    """The join of one set of vectors, in a folder that a killed run goes on with."""

    def __init__(
        self, stored: Stored, chosen: Settings, mesh: Mesh, folder: Path, process: int = 0, processes: int = 1
    ):
        self.stored, self.chosen, self.mesh, self.folder = stored, chosen, mesh, folder
        self._process, self._processes = process, processes
        self._shuffle = Shuffle(folder, chosen.groups, stored.width)

    def prepare(self) -> None:
        """Fills the buckets and joins them; several hosts share the folder and divide the groups.

        Raises:
          SbpError: the folder holds buckets of other vectors or settings.
        """
        stamp = {"vectors": self.stored.fingerprint, "settings": asdict(self.chosen)}
        if self._process == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_stamp(self.folder, stamp)
            if read_json(self._shuffle.marker) is None:
                self._fill()
        wait_for(self._shuffle.marker)
        for group in range(self._process, self.chosen.groups, self._processes):
            if read_json(run_marker(self.folder, group)) is None:
                write_run(self.folder, group, *self._join_group(self._shuffle.read(group)))
            self._shuffle.drop(group)
        for group in range(self.chosen.groups):
            wait_for(run_marker(self.folder, group))

    def search(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest others of vectors `start` to `stop`; index -1 where their buckets hold too few."""
        return merge(self.folder, range(self.chosen.groups), start, stop, self.chosen.top_k)

    def _fill(self) -> None:
        chosen = self.chosen
        rng = np.random.default_rng(0)
        sample_SD = self.stored.take(np.sort(rng.choice(len(self.stored), chosen.sample, replace=False)))
        assign = kmeans.Assign(kmeans.train(sample_SD, chosen.buckets, self.mesh), chosen.spill, self.mesh)
        del sample_SD
        self._shuffle.start()
        for start, vectors_CD in self.stored.blocks():
            buckets_CS = assign(vectors_CD)
            rows_E = np.repeat(np.arange(len(vectors_CD)), buckets_CS.shape[1])
            buckets_E = buckets_CS.ravel()
            groups_E = buckets_E.astype(np.int64) * chosen.groups // chosen.buckets
            self._shuffle.add(groups_E, start + rows_E, buckets_E, vectors_CD, rows_E)
        self._shuffle.finish()

    def _join_group(self, group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries [E], neighbours [E, K] and similarities [E, K] of all buckets of a group."""
        top_k = self.chosen.top_k

        def one(members_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            places_MK, similarities_MK = join(group.vectors_ED[members_M], top_k)
            ids_M = group.indices_E[members_M]
            return ids_M, np.where(places_MK == MISSING, MISSING, ids_M[places_MK]), similarities_MK

        joins = min(JOINS, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
        with ThreadPoolExecutor(joins) as pool:
            parts = list(pool.map(one, self._buckets(group)))
        if not parts:
            return np.empty(0, np.int64), np.empty((0, top_k), np.int64), np.empty((0, top_k), np.float32)
        queries, indices, similarities = zip(*parts, strict=True)
        return np.concatenate(queries), np.concatenate(indices), np.concatenate(similarities)

    def _buckets(self, group: Group) -> Iterator[np.ndarray]:
        """Places of the members of each bucket of a group, those of too large ones in parts."""
        order_E = np.argsort(group.tags_E, kind="stable")
        for members_M in np.split(order_E, np.flatnonzero(np.diff(group.tags_E[order_E])) + 1):
            if len(members_M) > self.chosen.largest:
                yield from self._split(group.vectors_ED, members_M)
            elif len(members_M) > 1:
                yield members_M

    def _split(self, vectors_ED: np.ndarray, members_M: np.ndarray) -> Iterator[np.ndarray]:
        """Parts of a bucket by centroids of its own, with a document in two; such as do not come apart are cut."""
        parts = math.ceil(2 * len(members_M) / self.chosen.largest)
        sample_S = np.unique(np.linspace(0, len(members_M) - 1, SAMPLE * parts).astype(np.int64))
        assign = kmeans.Assign(kmeans.train(vectors_ED[members_M[sample_S]], parts * 2, self.mesh), 2, self.mesh)
        step = self.chosen.largest
        nearest = [assign(vectors_ED[members_M[start : start + step]]) for start in range(0, len(members_M), step)]
        nearest_MS = np.concatenate(nearest)
        for part in np.unique(nearest_MS):
            own_M = members_M[np.any(nearest_MS == part, axis=1)]
            pieces = math.ceil(len(own_M) / self.chosen.largest)
            yield from (piece for piece in np.array_split(own_M, pieces) if len(piece) > 1)


def join(vectors_MD: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Places [M, K] of the nearest others of each member of a bucket, and their products; -1 where there are fewer."""
    count = len(vectors_MD)
    padded_MD = np.zeros((_size(count), vectors_MD.shape[1]), np.float32)
    padded_MD[:count] = vectors_MD
    places_MK, similarities_MK = _join(padded_MD, np.int32(count), min(top_k, len(padded_MD)))
    places_MK, similarities_MK = np.asarray(places_MK)[:count], np.asarray(similarities_MK)[:count]
    fill = ((0, 0), (0, top_k - places_MK.shape[1]))
    places_MK = np.pad(np.where(np.isneginf(similarities_MK), MISSING, places_MK), fill, constant_values=MISSING)
    return places_MK, np.pad(similarities_MK, fill, constant_values=-np.inf)


def _size(members: int) -> int:
    """The next of a few sizes, so that few programs are compiled."""
    size = QUERIES
    while size < members:
        size *= 2
        if members <= size * 3 // 4 and size * 3 // 4 % QUERIES == 0:
            return size * 3 // 4
    return size


@partial(jax.jit, static_argnums=2)
def _join(vectors_MD: jax.Array, count: jax.Array, top_k: int) -> tuple[jax.Array, jax.Array]:
    members, width = vectors_MD.shape
    columns_M = jnp.arange(members)

    def block(asked: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        queries_QD, rows_Q = asked
        scores_QM = jnp.einsum("qd,md->qm", queries_QD, vectors_MD, precision=jax.lax.Precision.HIGHEST)
        scores_QM = jnp.where((columns_M < count) & (columns_M != rows_Q[:, None]), scores_QM, -jnp.inf)
        similarities_QK, places_QK = largest(scores_QM, top_k)
        return places_QK, similarities_QK

    blocks = vectors_MD.reshape(-1, QUERIES, width), columns_M.reshape(-1, QUERIES)
    places, similarities = jax.lax.map(block, blocks)
    return places.reshape(members, -1), similarities.reshape(members, -1)
