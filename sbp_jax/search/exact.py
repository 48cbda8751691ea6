"""Exact nearest neighbours by inner product: a blocked matrix product with a running top-k.

Legend: N vectors, Q queries, C vectors of one block, D width, K results.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from sbp_jax.search.ranking import MISSING, finish

QUERIES = 1024  # queries scored at a time
BLOCK = 8192  # vectors that they are scored against at a time


def search(vectors_ND: np.ndarray, queries: np.ndarray, top_k: int, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other vectors of some of the vectors.

    Args:
      vectors_ND: float32 [N, D].
      queries: int [Q], which of them ask.
      top_k: neighbours of each; N - 1 where there are no more.
      mesh: devices that the queries are split over.

    Returns:
      Indices, int64 [Q, k], and inner products, float32 [Q, k]; by falling product, ties by rising index.
    """
    top_k = max(min(top_k, len(vectors_ND) - 1), 0)
    rows = -(-min(QUERIES, max(len(queries), 1)) // mesh.size) * mesh.size
    block = min(BLOCK, len(vectors_ND))
    split, whole = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), NamedSharding(mesh, PartitionSpec())
    found_indices, found_similarities = [np.empty((0, top_k), np.int64)], [np.empty((0, top_k), np.float32)]
    for start in range(0, len(queries), rows):
        asked = queries[start : start + rows]
        padded_QD = np.pad(vectors_ND[asked], ((0, rows - len(asked)), (0, 0)))
        queries_QD = jax.device_put(padded_QD, split)
        indices = jax.device_put(np.full((rows, top_k + 1), MISSING, np.int32), split)
        similarities = jax.device_put(np.full((rows, top_k + 1), -np.inf, np.float32), split)
        for first in range(0, len(vectors_ND), block):
            # The last block is moved back to full size; what it repeats is masked.
            place = min(first, len(vectors_ND) - block)
            vectors_CD = jax.device_put(vectors_ND[place : place + block], whole)
            indices, similarities = _merge(indices, similarities, queries_QD, vectors_CD, place, first)
        result = finish(vectors_ND, asked, np.asarray(indices)[: len(asked)], top_k)
        found_indices.append(result[0])
        found_similarities.append(result[1])
    return np.concatenate(found_indices), np.concatenate(found_similarities)


@partial(jax.jit, donate_argnums=(0, 1))
def _merge(
    indices_QK: Int[Array, "Q K"],
    similarities_QK: Float[Array, "Q K"],
    queries_QD: Float[Array, "Q D"],
    vectors_CD: Float[Array, "C D"],
    place: Int[Array, ""],
    first: Int[Array, ""],
) -> tuple[Array, Array]:
    """The best K so far after one more block, which starts at `place` and counts from `first` on."""
    scores_QC = jnp.einsum("qd,cd->qc", queries_QD, vectors_CD, precision=jax.lax.Precision.HIGHEST)
    columns_C = place + jnp.arange(vectors_CD.shape[0], dtype=jnp.int32)
    scores_QC = jnp.where(columns_C >= first, scores_QC, -jnp.inf)
    # Equal scores keep the order of their columns, hence the results so far stand first.
    all_scores = jnp.concatenate([similarities_QK, scores_QC], axis=1)
    best_QK, picked_QK = jax.lax.top_k(all_scores, similarities_QK.shape[1])
    all_indices = jnp.concatenate([indices_QK, jnp.broadcast_to(columns_C, scores_QC.shape)], axis=1)
    return jnp.take_along_axis(all_indices, picked_QK, axis=1), best_QK
