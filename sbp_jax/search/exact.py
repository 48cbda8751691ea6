"""Exact nearest neighbours by inner product, as one program on a mesh: blocked products with a running top-k.

Every device, on whichever host, holds a part of the vectors and scans it block by block for the same queries; its best
candidates are gathered, merged, and scored anew in float32 where their vectors are. No more than one block of scores is
alive on a device.

Legend: N vectors (n on one device), Q queries, C vectors of one block, B blocks, D width, K candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbp_jax.search.ranking import GROUP, MISSING, largest, ordered

QUERIES = 1024  # queries scored at a time
BLOCK = 8192  # vectors that they are scored against at a time
SLAB = 1 << 27  # bytes of vectors on a device at a time, where they are not all kept there
SPARE = 8  # candidates more than needed, so that rounding at the last place does not decide who is in
RESCORED = 16  # queries whose candidates are gathered at a time
APPROXIMATE = 0.99  # of a block's true best that `approx_max_k` finds on a TPU

Rows = Callable[[int, int], np.ndarray]  # start and stop to float32 [stop - start, D]


@dataclass(frozen=True)
class Resident:
    """Vectors on the devices of a mesh.

    Attributes:
      vectors_ND: float32, cut along N over all devices and padded with zeros.
      scanned_ND: those that candidates are found with: in bfloat16 on accelerators, else the same. Cast once: inside
        the search the compiler would cast all of them again for every block of queries.
      first: index of the first of them.
      count: those before the padding.
    """

    vectors_ND: jax.Array
    scanned_ND: jax.Array
    first: int
    count: int
    mesh: Mesh


def place(rows: Rows, first: int, count: int, width: int, mesh: Mesh, precise: bool = False) -> Resident:
    """Puts vectors `first` to `first + count` on the devices; each host reads those of its own devices alone.

    Args:
      precise: candidates are found in float32 and by a full top-k on accelerators too.
    """
    each = _padded(-(-count // mesh.size))
    cut = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        start = index[0].start or 0 if index else 0
        part_nD = np.zeros((each, width), np.float32)
        inside = min(count - start, each)
        for begin in range(0, inside, BLOCK):
            end = min(begin + BLOCK, inside)
            part_nD[begin:end] = rows(first + start + begin, first + start + end)
        return part_nD

    vectors_ND = jax.make_array_from_callback((each * mesh.size, width), cut, part)
    rounded = not precise and mesh.devices.flat[0].platform != "cpu"
    scanned_ND = jax.jit(lambda x: x.astype(jnp.bfloat16))(vectors_ND) if rounded else vectors_ND
    return Resident(vectors_ND, scanned_ND, first, count, mesh)


def search(resident: Resident, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other vectors of some of the vectors, all of which are on the devices.

    Args:
      queries: int [Q], which of them ask.
      top_k: neighbours of each; N - 1 where there are no more.

    Returns:
      Indices, int64 [Q, k], and inner products, float32 [Q, k]; by falling product, ties by rising index.
    """
    top_k = max(min(top_k, resident.count - 1), 0)
    pick = _pick(resident.mesh)
    found = []
    for start in range(0, len(queries), QUERIES):
        asked = queries[start : start + QUERIES]
        padded = np.zeros(QUERIES if len(queries) > QUERIES else len(asked), np.int32)
        padded[: len(asked)] = asked
        indices, similarities = best(resident, pick(resident.vectors_ND, padded), top_k)
        found.append(ordered(indices[: len(asked)], similarities[: len(asked)], top_k, asked))
    if not found:
        return np.empty((0, top_k), np.int64), np.empty((0, top_k), np.float32)
    return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])


def scan(
    rows: Rows, count: int, queries: np.ndarray, queries_QD: np.ndarray, top_k: int, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """The same for few queries, exactly, with the vectors streamed through the devices.

    Args:
      rows: reads the vectors, of which there are `count`.
      queries: int [Q], which of them ask.
      queries_QD: their vectors.
    """
    top_k = max(min(top_k, count - 1), 0)
    width = queries_QD.shape[1]
    slab = max(SLAB // (4 * width), 1) * mesh.size
    indices = np.empty((len(queries), 0), np.int64)
    similarities = np.empty((len(queries), 0), np.float32)
    for first in range(0, count, slab):
        resident = place(rows, first, min(slab, count - first), width, mesh, precise=True)
        more_indices, more_similarities = best(resident, queries_QD, top_k)
        indices = np.concatenate([indices, more_indices], axis=1)
        similarities = np.concatenate([similarities, more_similarities], axis=1)
        indices, similarities = ordered(indices, similarities, top_k, queries)
    return indices, similarities


def best(resident: Resident, queries_QD: Any, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """A few more candidates than `top_k` for any query vectors, unordered, and their float32 products."""
    approximate = resident.mesh.devices.flat[0].platform == "tpu" and resident.scanned_ND is not resident.vectors_ND
    program = best_program(resident.mesh, top_k + 1 + SPARE, approximate)
    count = np.int32(resident.count)
    indices_QK, similarities_QK = map(np.asarray, program(resident.vectors_ND, resident.scanned_ND, queries_QD, count))
    return np.where(indices_QK == MISSING, MISSING, indices_QK.astype(np.int64) + resident.first), similarities_QK


@lru_cache
def best_program(mesh: Mesh, kept: int, approximate: bool) -> Any:
    """The compiled search: vectors [N, D] twice, queries [Q, D], the vectors that count, to int32 and float32 [Q, K].

    Args:
      approximate: whether a block's best are found with `approx_max_k`, which pays on a TPU alone.
    """
    axes = mesh.axis_names

    def local(
        vectors_nD: jax.Array, scanned_nD: jax.Array, queries_QD: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        first = jax.lax.axis_index(axes) * vectors_nD.shape[0]
        scores_QK, indices_QK = _scan(scanned_nD, queries_QD, first, count, kept, approximate)
        for axis in reversed(axes):  # the innermost first: parts stay in the order of their indices
            scores_QK, indices_QK = (jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in (scores_QK, indices_QK))
            scores_QK, places_QK = jax.lax.top_k(scores_QK, min(kept, scores_QK.shape[1]))
            indices_QK = jnp.take_along_axis(indices_QK, places_QK, axis=1)
        exact_QK = jax.lax.psum(_rescore(vectors_nD, queries_QD, indices_QK - first), axes)
        return jnp.where(jnp.isneginf(scores_QK), MISSING, indices_QK), exact_QK

    cut, whole = PartitionSpec(axes), PartitionSpec()
    return jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(cut, cut, whole, whole), out_specs=(whole, whole), check_vma=False)
    )


def _scan(
    vectors_nD: jax.Array, queries_QD: jax.Array, first: jax.Array, count: jax.Array, kept: int, approximate: bool
) -> tuple[jax.Array, jax.Array]:
    """The best of one device's vectors, by scores that may be rounded: float32 and int32 [Q, K]."""
    block = vectors_nD.shape[0] // _blocks(vectors_nD.shape[0])
    vectors_BCD = vectors_nD.reshape(-1, block, vectors_nD.shape[1])
    starts_B = first + block * jnp.arange(len(vectors_BCD), dtype=jnp.int32)
    asked_QD = queries_QD.astype(vectors_nD.dtype)
    few = min(kept, block)

    def step(so_far: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        vectors_CD, start = block
        scores_QC = jnp.einsum(
            "qd,cd->qc",
            *(asked_QD, vectors_CD),
            precision=jax.lax.Precision.HIGHEST if vectors_CD.dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )
        columns_C = start + jnp.arange(scores_QC.shape[1], dtype=jnp.int32)
        scores_QC = jnp.where(columns_C < count, scores_QC, -jnp.inf)
        if approximate:
            scores_QK, places_QK = jax.lax.approx_max_k(scores_QC, few, recall_target=APPROXIMATE)
        else:
            scores_QK, places_QK = largest(scores_QC, few)
        # Equal scores keep the order of their columns, hence the results so far stand first.
        scores_QK = jnp.concatenate([so_far[0], scores_QK], axis=1)
        indices_QK = jnp.concatenate([so_far[1], start + places_QK.astype(jnp.int32)], axis=1)
        scores_QK, picked_QK = jax.lax.top_k(scores_QK, kept)
        return (scores_QK, jnp.take_along_axis(indices_QK, picked_QK, axis=1)), None

    nothing = jnp.full((len(queries_QD), kept), -jnp.inf), jnp.full((len(queries_QD), kept), MISSING, jnp.int32)
    return jax.lax.scan(step, nothing, (vectors_BCD, starts_B))[0]


def _rescore(vectors_nD: jax.Array, queries_QD: jax.Array, places_QK: jax.Array) -> jax.Array:
    """float32 products with the candidates that are among this device's vectors, 0 for the others; [Q, K]."""

    def one(asked: tuple[jax.Array, jax.Array]) -> jax.Array:
        query_D, places_K = asked
        found_KD = vectors_nD[jnp.clip(places_K, 0, vectors_nD.shape[0] - 1)]
        inside_K = (places_K >= 0) & (places_K < vectors_nD.shape[0])
        return jnp.where(inside_K, jnp.sum(found_KD * query_D, axis=1), 0.0)

    return jax.lax.map(one, (queries_QD, places_QK), batch_size=min(RESCORED, len(queries_QD)))


@lru_cache
def _pick(mesh: Mesh) -> Any:
    """Vectors by their indices on all devices: each gives those that it has, and they are added up."""
    axes = mesh.axis_names

    def local(vectors_nD: jax.Array, indices_Q: jax.Array) -> jax.Array:
        places_Q = indices_Q - jax.lax.axis_index(axes) * vectors_nD.shape[0]
        inside_Q = (places_Q >= 0) & (places_Q < vectors_nD.shape[0])
        return jax.lax.psum(jnp.where(inside_Q[:, None], vectors_nD[places_Q % vectors_nD.shape[0]], 0.0), axes)

    cut, whole = PartitionSpec(axes), PartitionSpec()
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(cut, whole), out_specs=whole, check_vma=False))


def _blocks(rows: int) -> int:
    """Blocks, all of one size, that a device's vectors are scanned in."""
    return -(-rows // BLOCK)


def _padded(rows: int) -> int:
    """The next number of vectors that divides into blocks of a multiple of GROUP."""
    blocks = _blocks(rows)
    return -(-rows // (blocks * GROUP)) * GROUP * blocks
