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
from threadpoolctl import threadpool_limits

from sbp_jax.artifacts.artifact import read_json
from sbp_jax.config import Neighbors
from sbp_jax.search import kmeans
from sbp_jax.search.ranking import MISSING, largest
from sbp_jax.search.shuffle import Group, Shuffle, arrays_of_first, claim, merge, run_marker, wait_for, write_run
from sbp_jax.search.vectors import Stored

SPILL, SPILL_LARGE = 6, 5  # buckets of a document, and of one among very many, where neighbours are nearer
LARGE = 500_000  # documents that are very many
ROUND = 64  # the number of buckets is a multiple of; the nearest of so many centroids are found faster
SAMPLE = 40  # vectors that a centroid is trained on
LEAST = 8  # times top_k that a bucket holds on average at least
LARGEST = 8  # times the average above which a bucket is split
GROUP_BYTES = (1 << 24, 1 << 31)  # of vectors of a group of buckets: least and greatest; between, an eighth of them all
QUERIES = 256  # members of a bucket that are scored against all at a time
SCORES = 1 << 21  # of one join that are alive on a CPU


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
    spill = neighbors.leaves_to_search or (SPILL if n < LARGE else SPILL_LARGE)
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
        self._shuffle = Shuffle(folder, chosen.groups, stored.width, process, processes)

    def prepare(self) -> None:
        """Fills the buckets and joins them; several hosts share the folder and divide the vectors, then the groups.

        Raises:
          SbpError: the folder holds buckets of other vectors or settings.
        """
        claim(self.folder, {"vectors": self.stored.fingerprint, "settings": asdict(self.chosen)}, self._process)
        if any(read_json(run_marker(self.folder, group)) is None for group in range(self.chosen.groups)):
            self._fill()
        for group in range(self._process, self.chosen.groups, self._processes):
            if read_json(run_marker(self.folder, group)) is None:
                write_run(self.folder, group, self._join_group(self._shuffle.read(group)))
            self._shuffle.drop(group)
        for group in range(self.chosen.groups):
            wait_for(run_marker(self.folder, group))

    def search(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest others of vectors `start` to `stop`; index -1 where their buckets hold too few."""
        return merge(self.folder, range(self.chosen.groups), start, stop, self.chosen.top_k)

    def _fill(self) -> None:
        chosen = self.chosen
        trained = arrays_of_first(self.folder / "centroids.npz", self._process, self._train)
        assign = kmeans.Assign(trained["centroids_CD"], chosen.spill, self.mesh)

        def place(vectors_CD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            buckets_E = assign(vectors_CD).ravel()
            rows_E = np.repeat(np.arange(len(vectors_CD)), len(buckets_E) // len(vectors_CD))
            return buckets_E.astype(np.int64) * chosen.groups // chosen.buckets, rows_E, buckets_E

        self._shuffle.fill(self.stored, place)

    def _train(self) -> dict[str, np.ndarray]:
        chosen = np.random.default_rng(0).choice(len(self.stored), self.chosen.sample, replace=False)
        return {"centroids_CD": kmeans.train(self.stored.take(np.sort(chosen)), self.chosen.buckets, self.mesh)}

    def _join_group(self, group: Group) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Queries [M], neighbours [M, K] and similarities [M, K] of each bucket of a group."""

        def one(members_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            places_MK, similarities_MK = join(group.take(members_M), self.chosen.top_k)
            ids_M = group.indices_E[members_M]
            return ids_M, np.where(places_MK == MISSING, MISSING, ids_M[places_MK]), similarities_MK

        joins = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(joins) as pool:
            yield from pool.map(one, self._buckets(group))

    def _buckets(self, group: Group) -> Iterator[np.ndarray]:
        """Places of the members of each bucket of a group, those of too large ones in parts."""
        order_E = np.argsort(group.tags_E, kind="stable")
        for members_M in np.split(order_E, np.flatnonzero(np.diff(group.tags_E[order_E])) + 1):
            if len(members_M) > self.chosen.largest:
                yield from self._split(group, members_M)
            elif len(members_M) > 1:
                yield members_M

    def _split(self, group: Group, members_M: np.ndarray) -> Iterator[np.ndarray]:
        """Parts of a bucket by centroids of its own, with a document in two; such as do not come apart are cut."""
        parts = math.ceil(2 * len(members_M) / self.chosen.largest)
        sample_S = np.unique(np.linspace(0, len(members_M) - 1, SAMPLE * parts).astype(np.int64))
        assign = kmeans.Assign(kmeans.train(group.take(members_M[sample_S]), parts * 2, self.mesh), 2, self.mesh)
        step = self.chosen.largest
        nearest = [assign(group.take(members_M[start : start + step])) for start in range(0, len(members_M), step)]
        nearest_MS = np.concatenate(nearest)
        for part in np.unique(nearest_MS):
            own_M = members_M[np.any(nearest_MS == part, axis=1)]
            pieces = math.ceil(len(own_M) / self.chosen.largest)
            yield from (piece for piece in np.array_split(own_M, pieces) if len(piece) > 1)


def join(vectors_MD: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Places [M, K] of the nearest others of each member of a bucket, and their products; -1 where there are fewer.

    They are in no certain order; among equals at the last place the first members are in.
    """
    count, few = len(vectors_MD), min(top_k, len(vectors_MD) - 1)
    places_MK = np.full((count, top_k), MISSING, np.int32)
    similarities_MK = np.full((count, top_k), -np.inf, np.float32)
    find = _join_here if jax.default_backend() == "cpu" else _join_on_device
    places_MK[:, :few], similarities_MK[:, :few] = find(vectors_MD, few)
    return places_MK, similarities_MK


def _join_here(vectors_MD: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """On a CPU, where NumPy multiplies and partitions several times as fast as XLA does."""
    count = len(vectors_MD)
    places_MK, similarities_MK = np.empty((count, top_k), np.int32), np.empty((count, top_k), np.float32)
    step = min(max(SCORES // count, 1), QUERIES)
    for start in range(0, count, step):
        scores_QM = vectors_MD[start : start + step] @ vectors_MD.T
        rows_Q = np.arange(len(scores_QM))
        scores_QM[rows_Q, start + rows_Q] = -np.inf
        last_Q1 = np.partition(scores_QM, count - top_k, axis=1)[:, count - top_k, None]
        chosen_QM = scores_QM >= last_Q1
        for row in np.flatnonzero(np.count_nonzero(chosen_QM, axis=1) > top_k):
            ties = np.flatnonzero(scores_QM[row] == last_Q1[row])
            chosen_QM[row, ties[top_k - np.count_nonzero(chosen_QM[row]) :]] = False
        chosen_QK = np.flatnonzero(chosen_QM).reshape(-1, top_k)
        places_MK[start : start + step] = chosen_QK % count
        similarities_MK[start : start + step] = scores_QM.ravel()[chosen_QK]
    return places_MK, similarities_MK


def _join_on_device(vectors_MD: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    count = len(vectors_MD)
    padded_MD = np.zeros((_size(count), vectors_MD.shape[1]), np.float32)
    padded_MD[:count] = vectors_MD
    places_MK, similarities_MK = _join(padded_MD, np.int32(count), top_k)
    return np.asarray(places_MK)[:count], np.asarray(similarities_MK)[:count]


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
