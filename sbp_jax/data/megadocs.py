"""Megadocs: all synthetic documents of a seed, and then the seed (arXiv 2603.18534)."""

import numpy as np

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.data.rows import SYNTHETIC
from sbp_jax.data.stream_order import shuffled


def stitched(synthetic: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """The documents of a stream of megadocs in their order, as rows name them, and which are joined to the one before.

    A seed with accepted synthetic documents makes one megadoc: these in the order of their samples, the seed last.
    Seeds are shuffled as the documents of other streams are. Memory holds a few numbers for each document.

    Args:
      synthetic: the accepted documents, each of which has a seed.

    Returns:
      int64 [D] and bool [D].
    """
    columns = [np.empty((0, 3), np.int64)]
    for table in parquet.tables(synthetic, ["seed", "sample", "ordinal"]):
        columns.append(np.stack([table[name].to_numpy().astype(np.int64) for name in ("seed", "sample", "ordinal")], 1))
    seed_S, sample_S, ordinal_S = np.concatenate(columns).T
    seeds = np.unique(seed_S)
    order = shuffled(seeds)
    rank = np.empty(len(seeds), np.int64)
    rank[np.searchsorted(seeds, order)] = np.arange(len(seeds))
    rank_S = rank[np.searchsorted(seeds, seed_S)]
    last = np.full(len(seeds), np.iinfo(np.int64).max)  # the seed stands behind all samples
    ranks_D = np.concatenate([rank_S, np.arange(len(seeds))])
    places = np.lexsort((np.concatenate([ordinal_S, order]), np.concatenate([sample_S, last]), ranks_D))
    joined_D = np.ones(len(places), np.bool_)
    joined_D[np.flatnonzero(np.diff(ranks_D[places], prepend=-1))] = False
    return np.concatenate([ordinal_S + SYNTHETIC, order])[places], joined_D
