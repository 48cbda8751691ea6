"""What every search does with its candidates: drop the query itself, score the rest reproducibly, order ties.

Legend: N vectors, D width, Q queries, K candidates of each.
"""

import numpy as np

MISSING = -1  # where a search found too few; its similarity is minus infinity
BLOCK = 1 << 24  # numbers gathered at a time


def finish(
    vectors_ND: np.ndarray, queries_Q: np.ndarray, candidates_QK: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `top_k` of more candidates, among which the query may be.

    The query is dropped by its index, wherever it stands: exact duplicates tie with it. Similarities are computed anew
    in float64: those of ScaNN differ in the last bits from call to call, and a pair at the threshold would come and go.

    Returns:
      int64 and float32 [Q, top_k], by falling similarity and, among equals, rising index.
    """
    candidates_QK = np.where(candidates_QK == queries_Q[:, None], MISSING, candidates_QK).astype(np.int64)
    similarities_QK = np.empty(candidates_QK.shape, np.float32)
    step = max(BLOCK // max(candidates_QK.shape[1] * vectors_ND.shape[1], 1), 1)
    for start in range(0, len(queries_Q), step):
        part = slice(start, start + step)
        asked_QD = vectors_ND[queries_Q[part]].astype(np.float64)
        found_QKD = vectors_ND[candidates_QK[part]].astype(np.float64)
        similarities_QK[part] = np.einsum("qd,qkd->qk", asked_QD, found_QKD)
    similarities_QK[candidates_QK == MISSING] = -np.inf
    order_QK = np.lexsort((candidates_QK, -similarities_QK), axis=-1)[:, :top_k]
    return np.take_along_axis(candidates_QK, order_QK, axis=1), np.take_along_axis(similarities_QK, order_QK, axis=1)
