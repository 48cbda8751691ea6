"""Approximate nearest neighbours by inner product with ScaNN: tree, asymmetric hashing, reordering, SOAR.

Sources: Guo et al. 2020 (anisotropic quantization), Sun et al. 2023 (SOAR).
Legend: N vectors, Q queries, D width, K results.
"""

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sbp_jax.config import Neighbors
from sbp_jax.search.ranking import MISSING, finish
from sbp_jax.search.shuffle import check_stamp

SMALLEST = 512  # with fewer vectors exact search is as fast, and hashing has too little to learn from
SAMPLE, LEAST_SAMPLE = 80, 10_000  # vectors that a leaf is trained on, and all leaves at least: more change little
HASHED, ROUNDS = 10_000, 6  # vectors that hashes are trained on, and rounds of k-means: more change the fourth decimal
SPARE = 8  # candidates more than needed, so that rounding at the last place does not decide who is in


@dataclass(frozen=True)
class Settings:
    """Everything that decides the index and the search, derived or given."""

    top_k: int
    leaves: int
    leaves_to_search: int
    reorder: int
    training_sample: int
    dimensions_per_block: int = 2
    anisotropic_threshold: float = 0.2
    soar_lambda: float = 1.5
    smallest_leaf: int = 10


def settings(n: int, neighbors: Neighbors) -> Settings:
    """Derives what `neighbors` leaves open from the number of vectors.

    The powers are fitted to 10^5 and 10^6 clustered vectors, at a recall at 10 of 0.97 (docs/pairing.md).
    """
    top_k = min(neighbors.top_k, n - 1)
    leaves = min(neighbors.leaves or round(max(math.sqrt(n), n**0.8 / 32)), n)
    leaves_to_search = neighbors.leaves_to_search or max(math.ceil(6.2 * leaves**0.3), 30)
    reorder = max(neighbors.reorder or max(4 * top_k, top_k + 64), top_k + 1)  # the query takes one place
    sample = min(max(SAMPLE * leaves, LEAST_SAMPLE), n)
    return Settings(top_k, leaves, min(leaves_to_search, leaves), min(reorder, n), sample)


def unavailable() -> str | None:
    """Why ScaNN cannot be used here, or None; it has wheels for Linux alone."""
    try:
        import scann  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def build(vectors_ND: np.ndarray, chosen: Settings) -> Any:
    """Builds the index of float32 [N, D] vectors; the same one each time, random initial centres would differ.

    It reorders with bfloat16 copies: `finish` scores what it finds with the vectors themselves.
    """
    from scann import scann_ops_pybind
    from scann.scann_ops.py.scann_builder import ReorderType

    builder = scann_ops_pybind.builder(vectors_ND, chosen.top_k + 1, "dot_product")
    builder = builder.tree(
        num_leaves=chosen.leaves,
        num_leaves_to_search=chosen.leaves_to_search,
        training_sample_size=chosen.training_sample,
        training_iterations=ROUNDS,
        min_partition_size=chosen.smallest_leaf,
        random_init=False,
        soar_lambda=chosen.soar_lambda,
    )
    builder = builder.score_ah(
        chosen.dimensions_per_block,
        anisotropic_quantization_threshold=chosen.anisotropic_threshold,
        training_sample_size=HASHED,
    )
    with _quiet():
        return builder.reorder(chosen.reorder, quantize=ReorderType.BFLOAT16).build()


def opened(vectors_ND: np.ndarray, chosen: Settings, fingerprint: str, folder: Path) -> Any:
    """The index that was saved in a folder, or else a new one, saved there.

    Args:
      fingerprint: of the vectors.

    Raises:
      SbpError: the folder holds an index of other vectors or settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_stamp(folder, {"vectors": fingerprint, "settings": asdict(chosen)})
    saved = folder / "index"
    if saved.exists():
        return load(saved)
    index, growing = build(vectors_ND, chosen), folder / "growing"
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir()
    with _quiet():
        index.serialize(str(growing.absolute()), relative_path=True)
    growing.rename(saved)
    return index


def load(folder: Path) -> Any:
    from scann import scann_ops_pybind

    with _quiet():
        return scann_ops_pybind.load_searcher(str(folder.absolute()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the C++ of ScaNN writes to stderr, which no setting turns off, for the case of an error."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(stderr, kept.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def search(index: Any, vectors_ND: np.ndarray, queries: np.ndarray, chosen: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other vectors of some of the vectors.

    Args:
      index: from `build`.
      vectors_ND: float32 [N, D], the vectors it was built from.
      queries: int [Q], which of them ask.
      chosen: as given to `build`.

    Returns:
      Indices, int64 [Q, top_k], and inner products, float32 [Q, top_k], as from `exact.search`; index -1 where the
      leaves that were searched hold too few.
    """
    return finish(vectors_ND, queries, candidates(index, vectors_ND[queries], chosen), chosen.top_k)


def candidates(index: Any, queries_QD: np.ndarray, chosen: Settings) -> np.ndarray:
    """What the index finds for any query vectors, int64 [Q, K], a few more than `top_k` and in no certain order."""
    wanted = min(chosen.top_k + 1 + SPARE, chosen.reorder)
    indices_QK, similarities_QK = index.search_batched_parallel(
        queries_QD, wanted, chosen.reorder, chosen.leaves_to_search
    )
    # ScaNN fills up a short result with index 0 and a similarity that is not a number.
    return np.where(np.isnan(similarities_QK), MISSING, indices_QK.astype(np.int64))
