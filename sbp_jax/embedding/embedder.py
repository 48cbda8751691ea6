"""Texts to unit vectors: tokenised, sorted into batches of like lengths, computed on all devices of a host.

Legend: B batch, T positions, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from sbp_jax.config import Model
from sbp_jax.model.encoder import Bert
from sbp_jax.parallel.sharding import activations

LENGTHS = (*range(32, 257, 32), 320, 384, 448, 512)  # padded lengths; each costs one compilation, about a second
WINDOW = 2048  # documents that are sorted by length together
_SMALLEST = 1e-12  # norm of a vector that is none


@dataclass(frozen=True)
class Embedder:
    """A model on a mesh that gives each text a unit vector: parameters on every device, batches split over all devices.

    Attributes:
      width: numbers of a vector.
      mesh: of this host's devices.
      shape: of the model.
    """

    width: int
    mesh: Mesh
    shape: Bert | Model
    _tokenize: Callable[[Sequence[str]], list[Sequence[int]]]  # token ids of each text, never none
    _embed: Callable[[Any, Array, Array], Array]  # parameters, tokens [B, T], lengths [B] to unit vectors [B, D]
    _parameters: Any

    def embed(
        self, texts: Sequence[str], batch: int, advance: Callable[[int], None] = lambda documents: None
    ) -> Float[np.ndarray, "N D"]:
        """Embeds texts; one does not depend on the others beyond rounding.

        Args:
          texts: N documents.
          batch: documents computed at a time, rounded up to a multiple of the devices.
          advance: told how many documents have become ready.

        Returns:
          float32, rows of unit length.
        """
        windows = (texts[start : start + WINDOW] for start in range(0, len(texts), WINDOW))
        return np.concatenate([np.empty((0, self.width), np.float32), *self.stream(windows, batch, advance)])

    def stream(
        self,
        windows: Iterable[Sequence[str]],
        batch: int,
        advance: Callable[[int], None] = lambda documents: None,
        lengths: Callable[[list[int]], None] = lambda lengths: None,
    ) -> Iterator[Float[np.ndarray, "N D"]]:
        """The vectors of one window of texts after another; the devices compute one while the host reads the next.

        Args:
          lengths: told the tokens of each text of a window, once it is tokenised.
        """
        waiting: tuple[list[list[int]], list[Array]] | None = None
        for texts in windows:
            started = self._start(texts, batch, lengths)
            if waiting is not None:
                yield self._gather(*waiting, advance)
            waiting = started
        if waiting is not None:
            yield self._gather(*waiting, advance)

    def _start(
        self, texts: Sequence[str], batch: int, lengths: Callable[[list[int]], None]
    ) -> tuple[list[list[int]], list[Array]]:
        """Sets the devices to work: which documents are in each batch, and what comes of it."""
        ids = self._tokenize(texts)
        lengths([len(row) for row in ids])
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))  # like lengths together: little padding
        batch = -(-batch // self.mesh.size) * self.mesh.size
        groups = [order[start : start + batch] for start in range(0, len(order), batch)]
        return groups, [self._dispatch([ids[place] for place in group], batch) for group in groups]

    def _gather(
        self, groups: list[list[int]], results: list[Array], advance: Callable[[int], None]
    ) -> Float[np.ndarray, "N D"]:
        vectors_ND = np.empty((sum(map(len, groups)), self.width), np.float32)
        for group, result_BD in zip(groups, results, strict=True):
            vectors_ND[group] = np.asarray(result_BD)[: len(group)]
            advance(len(group))
        return vectors_ND

    def _dispatch(self, ids: list[Sequence[int]], batch: int) -> Array:
        padded = padded_length(max(len(row) for row in ids))
        tokens_BT = np.zeros((batch, padded), np.int32)
        for place, row in enumerate(ids):
            tokens_BT[place, : len(row)] = row
        lengths_B = np.array([len(row) for row in ids] + [0] * (batch - len(ids)), np.int32)
        rows = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        with activations(self.mesh):
            return self._embed(self._parameters, jax.device_put(tokens_BT, rows), jax.device_put(lengths_B, rows))


def padded_length(length: int) -> int:
    """The least length there is a program for: of `LENGTHS`, then of those doubled again and again."""
    scale = 1
    while length > LENGTHS[-1] * scale:
        scale *= 2
    return next(padded * scale for padded in LENGTHS if padded * scale >= length)


def mean(x_BTD: Float[Array, "B T D"], mask_BT: Array) -> Float[Array, "B D"]:
    """The mean over the positions of the mask, in float32; zeros where there is none."""
    sum_BD = jnp.einsum("btd,bt->bd", x_BTD, mask_BT.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
    return sum_BD / jnp.maximum(jnp.sum(mask_BT, axis=1), 1)[:, None]


def last(x_BTD: Float[Array, "B T D"], lengths_B: Int[Array, "B"]) -> Float[Array, "B D"]:
    """The last position of each row."""
    last_B11 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
    return jnp.take_along_axis(x_BTD, last_B11, axis=1)[:, 0]


def unit(x_BD: Float[Array, "B D"], dimensions: int) -> Float[Array, "B D"]:
    """The first dimensions, scaled to unit length (Kusupati et al. 2022, "Matryoshka Representation Learning")."""
    x_BD = x_BD[:, :dimensions].astype(jnp.float32)
    return x_BD / jnp.maximum(jnp.linalg.norm(x_BD, axis=-1, keepdims=True), _SMALLEST)
