"""What pairs of screened documents have in common: shingles, their own and boilerplate.

Documents are named by their places among all screened ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sbp_jax.data.screened import Shingles
from sbp_jax.text.shared_shingles import shared

AT_ONCE = 1 << 18  # shingles of pairs that are compared at once
WHOLE = 0.8  # containment of all shingles from which on boilerplate counts too: many copies of one text are all of it


@dataclass(frozen=True)
class Overlap:
    """For each of P pairs.

    Attributes:
      containment_P: share of the smaller set of shingles that the other has too. The sets are the documents' own
        shingles; or all of them, where one of the two has none of its own or nearly all are in the other.
      jaccard_P: shared over all of the same sets.
      shared_P: own shingles that both have.
      boilerplate_P: other shingles that both have.
    """

    containment_P: np.ndarray
    jaccard_P: np.ndarray
    shared_P: np.ndarray
    boilerplate_P: np.ndarray


def overlap(shingles: Shingles, own_counts: np.ndarray, d1_P: np.ndarray, d2_P: np.ndarray) -> Overlap:
    """Compares the documents of each pair.

    Args:
      shingles: of all documents.
      own_counts: own shingles of each document.
      d1_P: one document of each pair.
      d2_P: the other.
    """
    counts = np.diff(shingles.offsets)
    has_other = own_counts < counts
    everything_P, own_P = np.zeros(len(d1_P), np.int64), np.zeros(len(d1_P), np.int64)
    for some in batches(counts[d1_P] + counts[d2_P]):
        first, which = np.unique(d1_P[some], return_inverse=True)
        pairs_M, in_d1_M, in_d2_M = shared(shingles.gather(first), which, shingles.gather(d2_P[some]))
        own_M = np.ones(len(pairs_M), bool)
        unsure = np.flatnonzero(has_other[d1_P[some]][pairs_M] | has_other[d2_P[some]][pairs_M])
        own_M[unsure] = shingles.are_own(in_d1_M[unsure]) & shingles.are_own(in_d2_M[unsure])
        everything_P[some] = np.bincount(pairs_M, minlength=len(which))
        own_P[some] = np.bincount(pairs_M[own_M], minlength=len(which))
    own_share_P = own_P / np.maximum(np.minimum(own_counts[d1_P], own_counts[d2_P]), 1)
    whole_share_P = everything_P / np.maximum(np.minimum(counts[d1_P], counts[d2_P]), 1)
    whole_P = (own_counts[d1_P] == 0) | (own_counts[d2_P] == 0) | (whole_share_P > np.maximum(own_share_P, WHOLE))
    sizes = [np.where(whole_P, counts[side], own_counts[side]) for side in (d1_P, d2_P)]
    common_P = np.where(whole_P, everything_P, own_P)
    return Overlap(
        (common_P / np.maximum(np.minimum(*sizes), 1)).astype(np.float32),
        (common_P / np.maximum(sizes[0] + sizes[1] - common_P, 1)).astype(np.float32),
        own_P.astype(np.int32),
        (everything_P - own_P).astype(np.int32),
    )


def batches(sizes: np.ndarray) -> Iterator[slice]:
    """Runs of pairs whose sizes add up to about AT_ONCE."""
    bounds = np.flatnonzero(np.diff(np.cumsum(sizes) // AT_ONCE)) + 1
    for start, end in zip([0, *bounds.tolist()], [*bounds.tolist(), len(sizes)], strict=True):
        yield slice(start, end)
