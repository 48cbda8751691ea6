"""Spherical k-means on the mesh: centroids from a sample, and the nearest centroids of every vector.

Legend: S vectors of the sample, C centroids, D width, B vectors of a block, K nearest centroids.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbp_jax.search.ranking import largest

ROUNDS = 6  # more change the recall of a search in the third decimal
BLOCK = 1024  # vectors of a device that are scored at a time
SCORES = 1 << 24  # scores alive on a device while vectors are assigned


def train(sample_SD: np.ndarray, clusters: int, mesh: Mesh, rounds: int = ROUNDS) -> np.ndarray:
    """Centroids of unit length, float32 [C, D]: at first vectors of the sample, evenly chosen, then means.

    A centroid that loses all its vectors stays where it was.
    """
    clusters = min(clusters, len(sample_SD))
    centroids_CD = sample_SD[np.linspace(0, len(sample_SD) - 1, clusters).astype(np.int64)]
    size = mesh.size * min(BLOCK, -(-len(sample_SD) // mesh.size))
    padding = -len(sample_SD) % size
    cut = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    vectors_SD = jax.device_put(_padded(sample_SD, padding), cut)
    centroids = jax.device_put(centroids_CD, NamedSharding(mesh, PartitionSpec()))
    improve = _improve(mesh)
    for _ in range(rounds):
        centroids = improve(vectors_SD, centroids)
    return np.asarray(centroids)


@lru_cache
def _improve(mesh: Mesh) -> Any:
    """One round: vectors [S, D], of which zeros are padding, and centroids [C, D] to better centroids."""
    axes = mesh.axis_names

    def local(vectors_SD: jax.Array, centroids_CD: jax.Array) -> jax.Array:
        def add(sums_CD: jax.Array, vectors_BD: jax.Array) -> tuple[jax.Array, None]:
            nearest_B = largest(vectors_BD @ centroids_CD.T, 1)[1][:, 0]
            return sums_CD.at[nearest_B].add(vectors_BD), None

        block = min(BLOCK, len(vectors_SD))
        vectors_NBD = vectors_SD.reshape(-1, block, vectors_SD.shape[1])
        sums_CD, _ = jax.lax.scan(add, jnp.zeros_like(centroids_CD), vectors_NBD)
        sums_CD = jax.lax.psum(sums_CD, axes)
        lengths_C = jnp.linalg.norm(sums_CD, axis=1, keepdims=True)
        return jnp.where(lengths_C > 0, sums_CD / jnp.maximum(lengths_C, 1e-30), centroids_CD)

    cut, whole = PartitionSpec(axes), PartitionSpec()
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(cut, whole), out_specs=whole, check_vma=False))


class Assign:
    """Finds the nearest centroids of vectors, nearest first; among equals the first centroids."""

    def __init__(self, centroids_CD: np.ndarray, nearest: int, mesh: Mesh):
        self._nearest = min(nearest, len(centroids_CD))
        each = max(min(SCORES // len(centroids_CD), BLOCK), 1)
        self._size, self._mesh = each * mesh.size, mesh
        self._centroids_CD = jnp.asarray(centroids_CD)
        self._program = _nearest(mesh, self._nearest)

    def __call__(self, vectors_ND: np.ndarray) -> np.ndarray:
        """int32 [N, K]."""
        found = [np.empty((0, self._nearest), np.int32)]
        for start in range(0, len(vectors_ND), self._size):
            part_BD = vectors_ND[start : start + self._size]
            padded_BD = _padded(part_BD, self._size - len(part_BD))
            found.append(np.asarray(self._program(padded_BD, self._centroids_CD))[: len(part_BD)])
        return np.concatenate(found)


def _padded(vectors_ND: np.ndarray, rows: int) -> np.ndarray:
    """With rows of zeros at the end; a copy only where there are any."""
    return np.pad(vectors_ND, ((0, rows), (0, 0))) if rows else vectors_ND


@lru_cache
def _nearest(mesh: Mesh, nearest: int) -> Any:
    def local(vectors_BD: jax.Array, centroids_CD: jax.Array) -> jax.Array:
        return largest(vectors_BD @ centroids_CD.T, nearest)[1]

    cut, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(cut, whole), out_specs=cut, check_vma=False))
