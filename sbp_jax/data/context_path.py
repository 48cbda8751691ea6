"""The order of in-context pretraining: a path through the graph of neighbours (Shi et al., arXiv 2310.10638).

From a document the path goes on to the nearest of its neighbours that it has not been to. Where it has been to all of
them, another path starts at the document which the fewest others have for a neighbour, for it is the hardest to come
by on the way.

Legend: N = documents, E = edges.
"""

import numpy as np

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.text.shingles import mixed


def path(ordinals_N: np.ndarray, neighbors: Artifact) -> np.ndarray:
    """The documents in the order of the path, each once; ties go by the hash that shuffles other streams.

    Memory holds 4 bytes for each edge and some 60 for each document.

    Args:
      ordinals_N: int64, ascending.
      neighbors: ordered by `query` and falling similarity; edges to other documents are left out.
    """
    starts, edges = _graph(ordinals_N, neighbors)
    degrees_N = np.bincount(edges, minlength=len(ordinals_N))
    beginnings = np.lexsort((mixed(ordinals_N.astype(np.uint64)), degrees_N))
    seen_N = np.zeros(len(ordinals_N), np.bool_)
    order_N = np.empty(len(ordinals_N), np.int64)
    length = 0
    for place in beginnings:
        while not seen_N[place]:
            seen_N[place] = True
            order_N[length] = place
            length += 1
            near = edges[starts[place] : starts[place + 1]]
            left = near[~seen_N[near]]
            if len(left):
                place = left[0]
    return ordinals_N[order_N]


def _graph(ordinals_N: np.ndarray, neighbors: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """Where the neighbours of each document begin, and the places of all neighbours, nearest first, int32 [E]."""
    counts_N, edges, length = np.zeros(len(ordinals_N), np.int64), np.empty(neighbors.rows, np.int32), 0
    for table in parquet.tables(neighbors, ["query", "neighbor"]):
        queries, others = (_places(ordinals_N, table[name].to_numpy()) for name in ("query", "neighbor"))
        known = (queries >= 0) & (others >= 0)
        counts_N += np.bincount(queries[known], minlength=len(ordinals_N))
        found = others[known]
        edges[length : length + len(found)] = found
        length += len(found)
    return np.concatenate(([0], np.cumsum(counts_N))), edges[:length]


def _places(ordinals_N: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place of each ordinal, -1 for those that are not among them."""
    places = np.minimum(np.searchsorted(ordinals_N, wanted), len(ordinals_N) - 1)
    return np.where(ordinals_N[places] == wanted, places, -1)
