"""Vectors whose directions are all equally common: what every document shares is taken out (Su et al. 2021).

The hidden states of a language model lie in a narrow cone: all similarities are high, and a few directions decide
them. Legend: N vectors, D width.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FLOOR = 1e-4  # of the mean variance: the least share of it in a direction, where all vectors are nearly the same


@dataclass(frozen=True)
class Whitening:
    """An affine map, then unit length.

    Attributes:
      mean_D: taken off.
      matrix_DD: symmetric; divides each principal direction by its standard deviation.
    """

    mean_D: np.ndarray
    matrix_DD: np.ndarray

    @classmethod
    def fit(cls, vectors_ND: Float[np.ndarray, "N D"]) -> "Whitening":
        """The map after which the variance is the same in all directions, as far as the sample can tell directions."""
        mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
        centred_ND = vectors_ND - mean_D
        variances_D, directions_DD = np.linalg.eigh(centred_ND.T @ centred_ND / len(vectors_ND))
        variances_D = np.maximum(variances_D, 0)
        middle = max(variances_D.mean(), np.finfo(np.float32).tiny)
        shrinkage = max(_shrinkage(centred_ND, variances_D), FLOOR)
        variances_D = (1 - shrinkage) * variances_D + shrinkage * middle
        # Turned back: similarities are the same, and rounding of the sample cannot turn them another way elsewhere.
        return cls(mean_D, (directions_DD / np.sqrt(variances_D)) @ directions_DD.T)

    def __call__(self, vectors_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        """float32, rows of unit length; a vector that equals the mean has no direction and gets the first one."""
        mapped_ND = (vectors_ND - self.mean_D) @ self.matrix_DD
        lengths_N1 = np.linalg.norm(mapped_ND, axis=1, keepdims=True)
        none_N = lengths_N1[:, 0] == 0
        mapped_ND[none_N], lengths_N1[none_N] = np.eye(1, mapped_ND.shape[1]), 1
        return (mapped_ND / lengths_N1).astype(np.float32)


def _shrinkage(centred_ND: Float[np.ndarray, "N D"], variances_D: Float[np.ndarray, "D"]) -> float:
    """How much of a covariance is to be put on the diagonal, evenly (Ledoit and Wolf 2004): most where N is below D.

    The least variances of a sample are far below the true ones, and whitening divides by them.
    """
    squares = np.square(variances_D).sum()
    spread = squares - np.square(variances_D.sum()) / len(variances_D)  # of the variances, around their mean
    luck = (np.square(np.square(centred_ND).sum(axis=1)).mean() - squares) / len(centred_ND)
    return float(min(max(luck, 0) / spread, 1)) if spread > 0 else 1.0
