"""What every search does with its results: drop the query itself, and order ties.

Legend: Q queries, K results of each.
"""

import numpy as np

MISSING = -1  # where a search found fewer than K; its similarity is minus infinity


def finish(
    indices_QK: np.ndarray, similarities_QK: np.ndarray, queries_Q: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `top_k` of top_k + 1 results that may hold the query itself.

    The query is dropped by its index, wherever it stands: exact duplicates tie with it. Where it is absent, the last
    result goes.

    Returns:
      int64 and float32 [Q, top_k], by falling similarity and, among equals, rising index.
    """
    indices_QK = indices_QK.astype(np.int64)
    similarities_QK = np.where(indices_QK == MISSING, -np.inf, similarities_QK).astype(np.float32)
    is_self_QK = indices_QK == queries_Q[:, None]
    similarities_QK[is_self_QK] = -np.inf
    indices_QK[is_self_QK] = MISSING
    order_QK = np.lexsort((indices_QK, -similarities_QK), axis=-1)[:, :top_k]
    return np.take_along_axis(indices_QK, order_QK, axis=1), np.take_along_axis(similarities_QK, order_QK, axis=1)
