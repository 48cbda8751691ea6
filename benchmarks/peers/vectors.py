"""Unit vectors that are clustered as documents are, and how well a search found their neighbours.

Topics hold clusters, clusters hold documents. Sizes of clusters follow a power law, from one document to thousands, so
most clusters are small; a fifth of the documents belong to a topic but to no cluster. What sets a document apart within
its cluster has a spectrum that falls as 1/sqrt(rank), as that of text embeddings does: some tens of dimensions matter.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

TOPICS, LONERS, EXPONENT = 200, 0.2, 1.6  # share of documents in no cluster; of the power law of cluster sizes
SPREAD = (0.7, 0.75, 0.25, 0.8)  # of topics, of clusters in a topic, of documents in a cluster: least and greatest
AUDITED = 1000  # queries whose true neighbours are found by a full sort
BLOCK = 20_000


def clustered(n: int, width: int, seed: int = 0) -> np.ndarray:
    """float32 [n, width]."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(width, width)))
    scales_D = 1 / np.sqrt(np.arange(1, width + 1))
    basis_DD = (scales_D / np.linalg.norm(scales_D))[:, None] * rotation

    def around(count: int) -> np.ndarray:
        """Vectors of about unit length with the falling spectrum."""
        return (rng.normal(size=(count, width)) @ basis_DD).astype(np.float32)

    sizes = np.minimum(np.ceil(rng.pareto(EXPONENT - 1, size=n) + 1e-9), 5000).astype(np.int64)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), n) + 1]
    clusters = len(sizes)
    centers = SPREAD[0] * around(TOPICS)[rng.integers(0, TOPICS, clusters)] + SPREAD[1] * around(clusters)
    tightness = rng.uniform(SPREAD[2], SPREAD[3], clusters).astype(np.float32)
    members = np.repeat(np.arange(clusters), sizes)[:n]
    rng.shuffle(members)
    topics = SPREAD[0] * around(TOPICS)
    vectors = np.empty((n, width), np.float32)
    for start in range(0, n, BLOCK):
        own = members[start : start + BLOCK]
        vectors[start : start + BLOCK] = centers[own] + tightness[own, None] * around(len(own))
        alone = start + np.flatnonzero(rng.random(len(own)) < LONERS)
        vectors[alone] = topics[rng.integers(0, TOPICS, len(alone))] + around(len(alone))
    mean = vectors[:BLOCK].mean(axis=0)
    vectors += 0.5 * np.linalg.norm(vectors[0]) * rotation[0].astype(np.float32) - mean
    for start in range(0, n, BLOCK):
        part = vectors[start : start + BLOCK]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def truth(vectors_ND: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries [Q], spread evenly, and the similarity of the last of their 1, ..., top_k nearest others [Q, top_k]."""
    queries_Q = np.unique(np.linspace(0, len(vectors_ND) - 1, AUDITED).astype(np.int64))
    best_QK = np.full((len(queries_Q), top_k), -np.inf, np.float32)
    for start in range(0, len(vectors_ND), BLOCK):
        scores_QC = vectors_ND[queries_Q] @ vectors_ND[start : start + BLOCK].T
        inside = np.flatnonzero((queries_Q >= start) & (queries_Q < start + BLOCK))
        scores_QC[inside, queries_Q[inside] - start] = -np.inf
        both = np.concatenate([best_QK, scores_QC], axis=1)
        best_QK = -np.sort(-np.partition(both, both.shape[1] - top_k, axis=1)[:, -top_k:], axis=1)
    return queries_Q, best_QK


def recall(vectors_ND: np.ndarray, queries_Q: np.ndarray, best_QK: np.ndarray, found_QK: np.ndarray, k: int) -> float:
    """Share of the true k nearest that are found; one that is as near as the last of them counts."""
    found = np.where(found_QK[:, :k] < 0, queries_Q[:, None], found_QK[:, :k])
    scores = np.einsum("qd,qkd->qk", vectors_ND[queries_Q], vectors_ND[found])
    hit = (scores >= best_QK[:, k - 1 : k] - 1e-5) & (found != queries_Q[:, None])
    return float(np.count_nonzero(hit) / hit.size)


def truth_file(file: Path) -> Path:
    return file.with_suffix(".truth.npz")


def recalls(
    file: Path, found_NK: np.ndarray | None, search: Callable[[np.ndarray], np.ndarray] | None = None
) -> dict[str, float]:
    """Recall at 10 and 50 of what was found for all vectors, or of what `search` finds for the audited ones."""
    vectors_ND, true = np.load(file, mmap_mode="r"), np.load(truth_file(file))
    queries_Q, best_QK = true["queries_Q"], true["best_QK"]
    if search is not None:
        found_QK = search(queries_Q)
    else:
        assert found_NK is not None
        found_QK = found_NK[queries_Q]
    return {f"recall@{k}": recall(vectors_ND, queries_Q, best_QK, found_QK, k) for k in (10, 50)}
