"""What every search does with its candidates: pick the greatest scores, order them, merge them, score them again.

Legend: N vectors, D width, Q queries, K candidates of each, C columns, G groups of columns.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Float, Int

FOUND = pa.schema([("query", pa.int64()), ("neighbor", pa.int64()), ("similarity", pa.float32())])  # of neighbours
MISSING = -1  # where a search found too few; its similarity is minus infinity
BLOCK = 1 << 20  # numbers that a thread gathers at a time
GROUP = 8  # columns of which the greatest stands for all


def largest(scores_QC: Float[Array, "Q C"], k: int) -> tuple[Float[Array, "Q K"], Int[Array, "Q K"]]:
    """The k greatest scores of each row and their columns, int32; among equals the first columns.

    `lax.top_k` is slow for wide rows on a CPU. The k greatest lie in the k groups with the greatest members, which are
    few enough to look at: taking each group's greatest is cheap.
    """
    queries, columns = scores_QC.shape
    groups = columns // GROUP
    if columns % GROUP or groups < GROUP * k:
        return jax.lax.top_k(scores_QC, k)
    _, picked_QK = jax.lax.top_k(scores_QC.reshape(queries, groups, GROUP).max(axis=2), k)
    # In rising order, so that equal scores stand in the order of their columns.
    picked_QK = jnp.sort(picked_QK, axis=1)
    members_QK = (GROUP * picked_QK[:, :, None] + jnp.arange(GROUP)).reshape(queries, GROUP * k)
    best_QK, places_QK = jax.lax.top_k(jnp.take_along_axis(scores_QC, members_QK, axis=1), k)
    return best_QK, jnp.take_along_axis(members_QK, places_QK, axis=1).astype(jnp.int32)


def ordered(
    indices_QK: np.ndarray, similarities_QK: np.ndarray, top_k: int, queries_Q: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best `top_k` candidates by falling similarity and, among equals, rising index.

    What was found twice counts once, with its greater similarity. The query, where `queries_Q` says who asks, is
    dropped by its index, wherever it stands: exact duplicates tie with it.

    Returns:
      int64 and float32 [Q, top_k], or fewer columns where there were fewer candidates.
    """
    indices_QK = indices_QK.astype(np.int64)
    if queries_Q is not None:
        indices_QK[indices_QK == queries_Q[:, None]] = MISSING
    # Whole numbers of 64 bits sort many times as fast as pairs do.
    falling_QK = np.where(indices_QK == MISSING, np.int64(2**31), _falling(similarities_QK).astype(np.int64))
    by_index_QK = np.sort(indices_QK << 32 | falling_QK + 2**31, axis=1)
    indices_QK, falling_QK = by_index_QK >> 32, (by_index_QK & 0xFFFFFFFF) - 2**31
    again_QK = np.zeros(indices_QK.shape, bool)
    again_QK[:, 1:] = indices_QK[:, 1:] == indices_QK[:, :-1]
    again_QK |= indices_QK == MISSING
    by_rank_QK = np.where(again_QK, np.iinfo(np.int64).max, falling_QK << 32 | indices_QK)
    by_rank_QK = np.sort(by_rank_QK, axis=1)[:, :top_k]
    missing_QK = by_rank_QK == np.iinfo(np.int64).max
    similarities_QK = _from_falling((by_rank_QK >> 32).astype(np.int32))
    similarities_QK[missing_QK] = -np.inf
    return np.where(missing_QK, MISSING, by_rank_QK & 0xFFFFFFFF), similarities_QK


def finish(
    vectors_ND: np.ndarray,
    queries_Q: np.ndarray,
    candidates_QK: np.ndarray,
    top_k: int,
    queries_QD: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The best `top_k` of more candidates, scored anew, without the query.

    Scores of ScaNN differ in the last bits from call to call, and a pair at the threshold would come and go.

    Args:
      queries_QD: what the queries' vectors are, where not all queries are among the vectors (`queries_Q` is -1 then).
    """
    similarities_QK = np.empty(candidates_QK.shape, np.float32)
    step = max(BLOCK // max(candidates_QK.shape[1] * vectors_ND.shape[1], 1), 1)

    def some(start: int) -> None:
        part = slice(start, start + step)
        found_QKD = vectors_ND[candidates_QK[part]]
        asked_QD = vectors_ND[queries_Q[part]] if queries_QD is None else queries_QD[part]
        np.einsum("qd,qkd->qk", asked_QD, found_QKD, out=similarities_QK[part])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(some, range(0, len(queries_Q), step)))
    return ordered(candidates_QK, similarities_QK, top_k, queries_Q)


def _falling(similarities: np.ndarray) -> np.ndarray:
    """int32 that fall as float32 rise."""
    bits = np.ascontiguousarray(similarities, np.float32).view(np.int32)
    return ~(bits ^ (bits >> 31 & 0x7FFFFFFF))


def _from_falling(falling: np.ndarray) -> np.ndarray:
    rising = ~falling
    return (rising ^ (rising >> 31 & 0x7FFFFFFF)).view(np.float32)
