"""ScaNN past one host's memory: partitions own whole leaves of a coarse k-means, and queries go where their leaves are.

Every document lies in the partition that owns its nearest leaf; it asks there and in the others that own one of its
next leaves, and what is found is merged. Random shards, all of which every query has to search, would cost more than
comparing everything with everything. One partition's index is in memory at a time on a host.

Legend: N vectors, L leaves, D width, K neighbours, E entries of a partition.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from sbp_jax.artifacts.artifact import read_json
from sbp_jax.config import Neighbors
from sbp_jax.search import exact, kmeans, scann_search
from sbp_jax.search.ranking import MISSING, finish
from sbp_jax.search.shuffle import Shuffle, arrays_of_first, claim, merge, run_marker, wait_for, write_run
from sbp_jax.search.vectors import Stored

LEAVES = 64  # of a partition
SAMPLE = 100  # vectors that a leaf is trained on
ROUTED = 12  # nearest leaves of a document in whose partitions it asks
SLACK = 1.1  # of the even share of the documents that a partition may own
QUERIES = 10_000  # searched at a time
BUILDING = 5  # times the vectors that building an index takes (measured: 4.2)


class Partitioned:
    """The search of one set of vectors in partitions, in a folder that a killed run goes on with."""

    def __init__(
        self,
        stored: Stored,
        neighbors: Neighbors,
        partitions: int,
        mesh: Mesh,
        folder: Path,
        process: int = 0,
        processes: int = 1,
    ):
        self.stored, self.neighbors, self.partitions = stored, neighbors, partitions
        self.mesh, self.folder = mesh, folder
        self._process, self._processes = process, processes
        self._top_k = min(neighbors.top_k, len(stored) - 1)
        self._shuffle = Shuffle(folder, partitions, stored.width, process, processes)

    def prepare(self) -> None:
        """Divides the documents and searches the partitions; several hosts share the folder and divide those.

        Raises:
          SbpError: the folder holds partitions of other vectors or settings.
        """
        settings = asdict(self.neighbors) | {"partitions": self.partitions}
        claim(self.folder, {"vectors": self.stored.fingerprint, "settings": settings}, self._process)
        if any(read_json(run_marker(self.folder, part)) is None for part in range(self.partitions)):
            self._divide()
        for partition in range(self._process, self.partitions, self._processes):
            if read_json(run_marker(self.folder, partition)) is None:
                write_run(self.folder, partition, self._search(partition))
            self._shuffle.drop(partition)
        for partition in range(self.partitions):
            wait_for(run_marker(self.folder, partition))

    def search(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest others of vectors `start` to `stop`; index -1 where the leaves searched hold too few."""
        return merge(self.folder, range(self.partitions), start, stop, self._top_k)

    def _divide(self) -> None:
        leaves = arrays_of_first(self.folder / "leaves.npz", self._process, self._train)
        assign, owners_L = kmeans.Assign(leaves["centroids_LD"], ROUTED, self.mesh), leaves["owners_L"]

        def place(vectors_CD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            partitions_CL = owners_L[assign(vectors_CD)]
            rows_E, ranks_E = np.nonzero(_first_of_each(partitions_CL))
            # The tag says whether the document lies there or only asks.
            return partitions_CL[rows_E, ranks_E], rows_E, (ranks_E == 0).astype(np.int32)

        self._shuffle.fill(self.stored, place)

    def _train(self) -> dict[str, np.ndarray]:
        leaves = min(LEAVES * self.partitions, len(self.stored))
        sample = min(SAMPLE * leaves, len(self.stored))
        chosen = np.random.default_rng(0).choice(len(self.stored), sample, replace=False)
        sample_SD = self.stored.take(np.sort(chosen))
        centroids_LD = kmeans.train(sample_SD, leaves, self.mesh)
        sizes_L = np.bincount(kmeans.Assign(centroids_LD, 1, self.mesh)(sample_SD)[:, 0], minlength=leaves)
        return {"centroids_LD": centroids_LD, "owners_L": owners(centroids_LD, sizes_L, self.partitions, self.mesh)}

    def _search(self, partition: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Queries [E], neighbours [E, K] and similarities [E, K] of all that ask in a partition, some after others."""
        group = self._shuffle.read(partition)
        inside = np.flatnonzero(group.tags_E == 1)
        if len(inside) == 0:
            return
        vectors_ND = group.take(inside)
        chosen = scann_search.settings(len(inside), self.neighbors)
        if len(inside) < scann_search.SMALLEST:
            resident = exact.place(
                lambda a, b: vectors_ND[a:b], 0, len(inside), self.stored.width, self.mesh, precise=True
            )

            def candidates(asked_QD: np.ndarray) -> np.ndarray:
                return exact.best(resident, asked_QD, min(self._top_k + 1, len(inside)))[0]
        else:
            index = scann_search.build(vectors_ND, chosen)

            def candidates(asked_QD: np.ndarray) -> np.ndarray:
                return scann_search.candidates(index, asked_QD, chosen)

        own_E = np.full(len(group.indices_E), MISSING, np.int64)
        own_E[inside] = np.arange(len(inside))
        ids_N = group.indices_E[inside]
        for start in range(0, len(own_E), QUERIES):
            part = slice(start, start + QUERIES)
            asked_QD = group.take(np.arange(len(own_E))[part])
            found = finish(vectors_ND, own_E[part], candidates(asked_QD), self._top_k, asked_QD)
            places_QK, similarities_QK = (
                np.pad(x, ((0, 0), (0, self._top_k - x.shape[1])), constant_values=fill)
                for x, fill in zip(found, (MISSING, -np.inf), strict=True)
            )
            yield group.indices_E[part], np.where(places_QK == MISSING, MISSING, ids_N[places_QK]), similarities_QK


def partitions_for(vectors: int, width: int, memory: int) -> int:
    """Partitions whose index and vectors fit into so many bytes."""
    return math.ceil(BUILDING * 4 * vectors * width / memory)


def owners(centroids_LD: np.ndarray, sizes_L: np.ndarray, partitions: int, mesh: Mesh) -> np.ndarray:
    """The partition that owns each leaf, int64 [L]: near leaves together, no partition much above its even share."""
    anchors_PD = kmeans.train(centroids_LD, partitions, mesh)
    scores_LP = centroids_LD @ anchors_PD.T
    room_P = np.full(partitions, SLACK * sizes_L.sum() / partitions)
    owners_L = np.empty(len(centroids_LD), np.int64)
    for leaf in np.argsort(-sizes_L, kind="stable"):
        fitting = np.flatnonzero(room_P >= sizes_L[leaf])
        if len(fitting):
            owners_L[leaf] = fitting[np.argmax(scores_LP[leaf, fitting])]
        else:
            owners_L[leaf] = np.argmax(room_P)
        room_P[owners_L[leaf]] -= sizes_L[leaf]
    return owners_L


def _first_of_each(partitions_CL: np.ndarray) -> np.ndarray:
    """bool [C, L], where a row names a partition for the first time."""
    earlier_CLL = partitions_CL[:, :, None] == partitions_CL[:, None, :]
    return ~np.any(np.tril(earlier_CLL, -1), axis=2)
