"""How many of the true neighbours a search found: sampled queries against the exact scan."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jax.sharding import Mesh

from sbp_jax.search import exact
from sbp_jax.search.vectors import Stored

ROUNDING = 1e-5  # by which the same product may differ between two ways of computing it
AT = (1, 10)  # and k
THRESHOLDS = tuple(place / 100 for place in range(100))


def audit(stored: Stored, tables: Iterable[pa.Table], top_k: int, audited: int, mesh: Mesh) -> dict[str, Any]:
    """Recall of what was written, for queries spread evenly over the documents; memory holds only theirs.

    A neighbour counts at k when it is as near as the true k-th: which of several that tie is chosen is no error.

    Args:
      tables: `query`, `neighbor` and `similarity` as the stage writes them.

    Returns:
      recall_at_1, recall_at_10 and recall_at_k; and recall_above: by threshold, from "0.00" to "0.99", the share of the
      pairs that it would admit among the true top_k, as far as there are any.
    """
    sample = np.unique(np.linspace(0, len(stored) - 1, min(audited, len(stored))).astype(np.int64))
    _, true_QK = exact.scan(stored.rows, len(stored), sample, stored.take(sample), top_k, mesh)
    found_QK = _found(tables, stored.ordinals[sample], true_QK.shape[1])
    stats: dict[str, Any] = {"audited_queries": len(sample)}
    for name, k in [*((str(k), k) for k in AT), ("k", true_QK.shape[1])]:
        k = min(k, true_QK.shape[1])
        hits = found_QK[:, :k] >= true_QK[:, k - 1 : k] - ROUNDING
        stats[f"recall_at_{name}"] = round(float(np.count_nonzero(hits) / hits.size), 6)
    above = {f"{value:.2f}": _above(found_QK, true_QK, value) for value in THRESHOLDS}
    stats["recall_above"] = {value: share for value, share in above.items() if share is not None}
    return stats


def _found(tables: Iterable[pa.Table], asked: np.ndarray, top_k: int) -> np.ndarray:
    """The written similarities of the asked ordinals, float32 [Q, top_k], minus infinity where there are fewer."""
    found_QK = np.full((len(asked), top_k), -np.inf, np.float32)
    for table in tables:
        query, similarity = table["query"].to_numpy(), table["similarity"].to_numpy()
        starts, stops = (np.searchsorted(query, asked, side=side) for side in _SIDES)
        for row in np.flatnonzero(stops > starts):
            values = similarity[starts[row] : stops[row]][:top_k]
            found_QK[row, : len(values)] = values
    return found_QK


_SIDES: Sequence[Any] = ("left", "right")


def _above(found_QK: np.ndarray, true_QK: np.ndarray, threshold: float) -> float | None:
    true_Q = np.count_nonzero(true_QK >= np.float32(threshold), axis=1)
    found_Q = np.count_nonzero(found_QK >= np.float32(threshold) - ROUNDING, axis=1)
    return round(float(np.minimum(found_Q, true_Q).sum() / true_Q.sum()), 6) if true_Q.sum() else None
