"""Floating-point operations of models and searches, from their shapes and from what they were given.

A product of matrices costs two operations a number that is multiplied. docs/numbers.md gives the formulas in full, and
what is left out. Legend: N vectors, D width, S buckets of a vector.
"""

from collections.abc import Mapping
from typing import Any

from sbp_jax.config import Model
from sbp_jax.model.encoder import Bert
from sbp_jax.search import exact, kmeans, partitioned
from sbp_jax.training.flops import matmul_parameters

UNEVEN = 1.5  # what joining buckets of unlike sizes costs beyond joining even ones
SOAR = 2  # leaves of ScaNN's tree that a vector is in


def embedder(shape: Bert | Model) -> tuple[float, float]:
    """Operations of a document's forward pass: for each of its tokens, and for the square of their number.

    A decoder is causal, so half of the square is idle and not counted; neither has logits.
    """
    if isinstance(shape, Bert):
        layer = 2 * (4 * shape.width**2 + 2 * shape.width * shape.ffn)
        return float(shape.layers * layer), float(4 * shape.layers * shape.width)
    return float(2 * matmul_parameters(shape, 0)), float(2 * shape.layers * shape.heads * shape.head_dim)


def generation(model: Model, vocabulary: int, prompts: int, new: int, squares: int) -> float:
    """Operations of reading prompts and writing behind them, every position once.

    Args:
      prompts: tokens that were read.
      new: tokens that were written, each of which takes logits.
      squares: sum over the documents of the square of tokens read and written; causal attention is half of it.
    """
    body, attention = embedder(model)
    return body * (prompts + new) + 2.0 * model.width * vocabulary * new + attention * squares


def exact_search(n: int, width: int, top_k: int, devices: int = 1) -> float:
    """Every vector against every other, and the candidates of each anew, on every device."""
    return 2.0 * n * n * width + 2.0 * n * (top_k + 1 + exact.SPARE) * width * devices


def bucketed_search(n: int, width: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """Training the centroids, assigning every vector to its buckets, and joining each bucket with itself.

    Args:
      settings: those of `search.bucketed.Settings`.
    """
    buckets, spill = settings["buckets"], settings["spill"]
    return {
        "trained": 2.0 * kmeans.ROUNDS * settings["sample"] * buckets * width,
        "assigned": 2.0 * n * buckets * width,
        "joined": UNEVEN * 2.0 * (spill * n) ** 2 / buckets * width,
    }


def scann_search(n: int, width: int, settings: Mapping[str, Any]) -> float:
    """For each query the leaves, one look-up for two dimensions of each vector in those searched, and the best anew.

    Args:
      settings: those of `search.scann_search.Settings`, of one partition, and `partitions`.
    """
    parts = settings["partitions"]
    asked = n * (min(partitioned.ROUTED, parts) if parts > 1 else 1)  # at most: of near leaves, many have one owner
    searched = SOAR * n / parts * settings["leaves_to_search"] / settings["leaves"]
    anew = 2 * width * (settings["leaves"] + settings["reorder"])
    return asked * (anew + searched * width / settings["dimensions_per_block"])


def search(stats: Mapping[str, Any], width: int, rows: int) -> float:
    """Operations of the artifact of stage `neighbors`, by formula: what the settings make of so many vectors.

    Args:
      stats: of its manifest.
      width: of the vectors.
      rows: neighbours that it holds; the control draws each of them, and takes one product.
    """
    backend, settings = stats["backend"], stats.get("settings", {})
    n = stats.get("queries", 0)
    if backend == "random":
        return 2.0 * width * rows
    if backend == "exact":
        return exact_search(n, width, settings["top_k"])
    if backend == "bucketed":
        return sum(bucketed_search(n, width, settings).values())
    return scann_search(n, width, settings)
