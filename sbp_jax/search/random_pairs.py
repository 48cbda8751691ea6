"""The control: neighbours that are drawn, not found, as many for each document as its accepted pairs.

Legend: P pairs, D width.
"""

import numpy as np

from sbp_jax.search.ranking import BLOCK

ATTEMPTS = 64  # draws of a pair before it is given up: nearly all documents are then too near


def draw(
    vectors_ND: np.ndarray,
    queries_P: np.ndarray,
    places_P: np.ndarray,
    threshold: float,
    seed: int,
    lengths_N: np.ndarray | None = None,
    room: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """For each pair another document instead of its neighbour.

    Args:
      vectors_ND: all of them, mapped.
      queries_P: int [P], index of each pair's d1, rising.
      places_P: int [P], the place of the pair among those of its d1.
      threshold: similarity from which on two documents are related, and not drawn.
      lengths_N: tokens of each document; None: of no account.
      room: tokens that two documents may have together; others do not fit a row of the synthesizer.

    Returns:
      Indices, int64 [P], -1 where `ATTEMPTS` draws gave none, and true similarities, float32 [P]. A d1 has no d2
      twice. What is drawn follows from the seed, d1 and the place alone.
    """
    drawn_P = np.full(len(queries_P), -1, np.int64)
    similarities_P = np.full(len(queries_P), -np.inf, np.float32)
    for attempt in range(ATTEMPTS):
        open_P = np.flatnonzero(drawn_P < 0)
        if len(open_P) == 0:
            break
        candidates = _hash(seed, queries_P[open_P], places_P[open_P], attempt) % np.uint64(len(vectors_ND))
        drawn_P[open_P] = candidates.astype(np.int64)
        similarities_P[open_P] = _products(vectors_ND, queries_P[open_P], drawn_P[open_P])
        refused_P = (drawn_P == queries_P) | (similarities_P >= np.float32(threshold))
        if lengths_N is not None:
            refused_P |= lengths_N[queries_P] + lengths_N[np.maximum(drawn_P, 0)] > room
        # Of two equal draws for one d1 the later place draws again.
        order = np.lexsort((places_P, drawn_P, queries_P))
        again = (np.diff(queries_P[order]) == 0) & (np.diff(drawn_P[order]) == 0)
        refused_P[order[1:][again]] = True
        drawn_P[refused_P], similarities_P[refused_P] = -1, -np.inf
    return drawn_P, similarities_P


def _products(vectors_ND: np.ndarray, first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
    products_P = np.empty(len(first_P), np.float32)
    step = max(BLOCK // vectors_ND.shape[1], 1)
    for start in range(0, len(first_P), step):
        part = slice(start, start + step)
        products_P[part] = np.einsum("pd,pd->p", vectors_ND[first_P[part]], vectors_ND[second_P[part]])
    return products_P


def _hash(seed: int, queries_P: np.ndarray, places_P: np.ndarray, attempt: int) -> np.ndarray:
    """uint64 [P]: splitmix64 (Steele et al. 2014) of all four, one after another."""
    state_P = np.full(len(queries_P), seed, np.uint64)
    for value in (queries_P, places_P, np.full(len(queries_P), attempt)):
        state_P = (state_P ^ value.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state_P = (state_P ^ (state_P >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state_P = (state_P ^ (state_P >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state_P ^= state_P >> np.uint64(31)
    return state_P
