"""Cross-entropy without the logits of a whole batch: a chunk of targets at a time, on each device.

A training step needs the loss and its gradient, and every target's cotangent is known beforehand: its weight. So the
gradient is computed in the same pass as the loss, while the chunk's probabilities are at hand; the backward pass has
nothing left to do but a multiplication (as Liger kernels do, Hsu et al. 2024).

Devices exchange what they must once: the table is gathered before the first chunk, its gradient is summed after the
last. Left to the compiler, both happened for every chunk.

Legend: B rows, T positions, D width, V vocabulary, C targets of a chunk, N chunks; on one device, R = N C targets and U
rows of the table.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sbp_jax.model.cached_attention import MASKED
from sbp_jax.parallel.sharding import cut_along, in_shards

CHUNK_TOKENS = 512  # targets of a device whose logits exist at the same time


def target_nats(
    hidden_BTD: Float[Array, "B T D"], table_VD: Float[Array, "V D"], targets_BT: Int[Array, "B T"], vocabulary: int
) -> Float[Array, "B T"]:
    """Negative log-likelihood of each target in nats, in float32; arguments as of `target_scores`."""
    return target_scores(hidden_BTD, table_VD, targets_BT, vocabulary)[0]


def target_scores(
    hidden_BTD: Float[Array, "B T D"], table_VD: Float[Array, "V D"], targets_BT: Int[Array, "B T"], vocabulary: int
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Negative log-likelihood of each target in nats, in float32, and whether no token is more probable.

    Args:
      hidden_BTD: final hidden states, normalised.
      table_VD: the unembedding.
      targets_BT: ids of the tokens to predict.
      vocabulary: rows of the table that are tokens; those after them are padding and have no probability.
    """
    shards = _shards(hidden_BTD, table_VD, vocabulary)

    def local(hidden_bTD: Array, table_ud: Array, targets_bT: Array) -> tuple[Array, Array]:
        table_UD = shards.gather(table_ud)

        def chunk(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            logits_CU, exponentials_CU, _, normalizer_C = shards.softmax(inputs[0], table_UD)
            best_C = shards.at(exponentials_CU, inputs[1]) == 1.0  # the greatest logit is subtracted from all
            return normalizer_C - shards.at(logits_CU, inputs[1]), best_C

        nats_NC, best_NC = jax.lax.map(chunk, (_to_chunks(hidden_bTD), _to_chunks(targets_bT)))
        return nats_NC.reshape(targets_bT.shape), best_NC.reshape(targets_bT.shape)

    rows, shape = shards.rows[:2], targets_BT.shape
    sharded = in_shards(local, (shards.rows, shards.table, rows), (rows, rows), (shape, shape))
    nats_BT, best_BT = sharded(hidden_BTD, table_VD, targets_BT)
    return nats_BT, best_BT


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def weighted_loss(
    hidden_BTD: Float[Array, "B T D"],
    table_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    weights_BT: Float[Array, "B T"],
    vocabulary: int,
    z_loss: float,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """The sum of weight * (nats + z_loss * log(Z)^2) over all targets, and each target's nats.

    Z is the denominator of the softmax; keeping its logarithm near 0 keeps logits from drifting (Chowdhery et al. 2022,
    section 5). Only the first result can be differentiated, by `hidden_BTD` and `table_VD`.
    """
    return _forward(hidden_BTD, table_VD, targets_BT, weights_BT, vocabulary, z_loss)[0]


def _forward(
    hidden_BTD: Array, table_VD: Array, targets_BT: Array, weights_BT: Array, vocabulary: int, z_loss: float
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The results of `weighted_loss`, and the gradients of its first by hidden states and table."""
    dtype, shards = hidden_BTD.dtype, _shards(hidden_BTD, table_VD, vocabulary)

    def local(
        hidden_bTD: Array, table_ud: Array, targets_bT: Array, weights_bT: Array
    ) -> tuple[Array, Array, Array, Array]:
        table_UD = shards.gather(table_ud)

        def chunk(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Any]:
            loss, by_table_UD = carry
            hidden_CD, targets_C, weights_C = inputs
            logits_CU, exponentials_CU, sums_C, normalizer_C = shards.softmax(hidden_CD, table_UD)
            nats_C = normalizer_C - shards.at(logits_CU, targets_C)
            loss += jnp.sum(weights_C * (nats_C + z_loss * jnp.square(normalizer_C)))
            scale_C = weights_C * (1 + 2 * z_loss * normalizer_C)
            by_logits_CU = exponentials_CU * (scale_C / sums_C)[:, None]
            hits_CU = shards.hits(targets_C, len(table_UD))
            by_logits_CU = jnp.where(hits_CU, by_logits_CU - weights_C[:, None], by_logits_CU).astype(dtype)
            by_table_UD += jnp.einsum("cu,cd->ud", by_logits_CU, hidden_CD, preferred_element_type=jnp.float32)
            by_hidden_CD = shards.sum_over_vocabulary(jnp.einsum("cu,ud->cd", by_logits_CU, table_UD))
            return (loss, by_table_UD), (nats_C, by_hidden_CD)

        start = jnp.zeros((), jnp.float32), jnp.zeros(table_UD.shape, jnp.float32)
        chunks = _to_chunks(hidden_bTD), _to_chunks(targets_bT), _to_chunks(weights_bT)
        (loss, by_table_UD), (nats_NC, by_hidden_NCD) = jax.lax.scan(chunk, start, chunks)
        # Where pieces are added up in a loop, libtpu 0.0.42 tries to move this sum out of it and fails on the cast.
        by_table_ud = jax.lax.optimization_barrier(shards.scatter(by_table_UD).astype(table_ud.dtype))
        nats_bT, by_hidden_bTD = nats_NC.reshape(targets_bT.shape), by_hidden_NCD.reshape(hidden_bTD.shape)
        return shards.sum_over_rows(loss), nats_bT, by_hidden_bTD, by_table_ud

    rows, table = shards.rows, shards.table
    results = ((), rows[:2], rows, table)
    sizes = ((), targets_BT.shape, hidden_BTD.shape, table_VD.shape)
    sharded = in_shards(local, (rows, table, rows[:2], rows[:2]), results, sizes)
    loss, nats_BT, by_hidden_BTD, by_table_VD = sharded(hidden_BTD, table_VD, targets_BT, weights_BT)
    return (loss, nats_BT), (by_hidden_BTD, by_table_VD)


def _backward(
    vocabulary: int, z_loss: float, gradients: tuple[Array, Array], cotangents: tuple[Array, Any]
) -> tuple[Any, ...]:
    by_hidden_BTD, by_table_VD = gradients
    scale = cotangents[0]
    return by_hidden_BTD * scale.astype(by_hidden_BTD.dtype), by_table_VD * scale.astype(by_table_VD.dtype), None, None


weighted_loss.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Shards:
    """How hidden states and table are cut along the mesh, and what devices exchange because of it.

    Attributes:
      rows, table: names of the dimensions of the hidden states and of the table.
      by_rows, by_width, by_tokens: mesh axes that rows, width and vocabulary are cut along.
    """

    vocabulary: int
    rows: tuple[str | None, ...]
    table: tuple[str | None, ...]
    by_rows: tuple[str, ...]
    by_width: tuple[str, ...]
    by_tokens: tuple[str, ...]

    def gather(self, table_ud: Array) -> Array:
        """All columns of this device's rows of the table."""
        return jax.lax.all_gather(table_ud, self.by_width, axis=1, tiled=True) if self.by_width else table_ud

    def scatter(self, by_table_UD: Array) -> Array:
        """The gradient of the table summed over all rows of the batch, of it this device's columns."""
        others = tuple(axis for axis in self.by_rows if axis not in self.by_width)
        if self.by_width:
            by_table_UD = jax.lax.psum_scatter(by_table_UD, self.by_width, scatter_dimension=1, tiled=True)
        return _sum(by_table_UD, others)

    def softmax(self, hidden_CD: Array, table_UD: Array) -> tuple[Array, Array, Array, Array]:
        """Logits of this device's part of the vocabulary, their exponentials scaled by the greatest of the whole, the
        sum of those over the whole, and the logarithm of the softmax's denominator.
        """
        logits_CU = jnp.einsum("cd,ud->cu", hidden_CD, table_UD, preferred_element_type=jnp.float32)
        logits_CU = jnp.where(self._tokens(len(table_UD)) < self.vocabulary, logits_CU, MASKED)
        greatest_C = jnp.max(logits_CU, axis=1)
        greatest_C = jax.lax.pmax(greatest_C, self.by_tokens) if self.by_tokens else greatest_C
        exponentials_CU = jnp.exp(logits_CU - greatest_C[:, None])
        sums_C = self.sum_over_vocabulary(jnp.sum(exponentials_CU, axis=1))
        return logits_CU, exponentials_CU, sums_C, greatest_C + jnp.log(sums_C)

    def hits(self, targets_C: Array, size: int) -> Array:
        """Where in this device's part of the vocabulary each target is."""
        return targets_C[:, None] == self._tokens(size)

    def at(self, logits_CU: Array, targets_C: Array) -> Array:
        """The logit of each target."""
        found_CU = jnp.where(self.hits(targets_C, logits_CU.shape[1]), logits_CU, 0.0)
        return self.sum_over_vocabulary(jnp.sum(found_CU, axis=1))

    def sum_over_vocabulary(self, x: Array) -> Array:
        return _sum(x, self.by_tokens)

    def sum_over_rows(self, x: Array) -> Array:
        return _sum(x, self.by_rows)

    def _tokens(self, size: int) -> Array:
        """The token of each of this device's rows of the table."""
        first = jax.lax.axis_index(self.by_tokens) * size if self.by_tokens else 0
        return first + jnp.arange(size)


def _shards(hidden_BTD: Array, table_VD: Array, vocabulary: int) -> _Shards:
    rows = cut_along("batch", len(hidden_BTD))
    if rows is None:  # rows that do not divide over the devices: each of them computes all
        return _Shards(vocabulary, (None, None, None), (None, None), (), (), ())
    width, tokens = cut_along("embed", table_VD.shape[1]), cut_along("vocabulary", table_VD.shape[0])
    return _Shards(vocabulary, ("batch", None, None), ("vocabulary", "embed"), rows, width or (), tokens or ())


def _sum(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.psum(x, axes) if axes else x


def _to_chunks(x_bT: Array) -> Array:
    """[rows of a device, T, ...] as [N, C, ...]."""
    targets = x_bT.shape[0] * x_bT.shape[1]
    size = next(size for size in range(min(CHUNK_TOKENS, targets), 0, -1) if targets % size == 0)
    return x_bT.reshape(-1, size, *x_bT.shape[2:])
