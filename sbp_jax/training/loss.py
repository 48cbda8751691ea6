"""Cross-entropy without the logits of a whole batch: a chunk of positions at a time.

A training step needs the loss and its gradient, and every target's cotangent is known beforehand: its weight. So the
gradient is computed in the same pass as the loss, while the chunk's probabilities are at hand; the backward pass has
nothing left to do but a multiplication (as Liger kernels do, Hsu et al. 2024).

Legend: B rows, T positions, D width, V vocabulary, S shards of the rows, P rows of a shard, C positions of a chunk,
N chunks.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sbp_jax.model.decoder import mask_padding
from sbp_jax.parallel.sharding import axis_size, constrain

CHUNK_TOKENS = 1024  # targets of a shard whose logits exist at the same time


def target_nats(
    hidden_BTD: Float[Array, "B T D"], table_VD: Float[Array, "V D"], targets_BT: Int[Array, "B T"], vocabulary: int
) -> Float[Array, "B T"]:
    """Negative log-likelihood of each target in nats, in float32.

    Args:
      hidden_BTD: final hidden states, normalised.
      table_VD: the unembedding.
      targets_BT: ids of the tokens to predict.
      vocabulary: rows of the table that are tokens; those after them are padding and have no probability.
    """

    def chunk(_: None, inputs: tuple[Array, Array]) -> tuple[None, Array]:
        hidden_SPCD, targets_SPC = inputs
        logits_SPCV, normalizer_SPC = _logits(hidden_SPCD, table_VD, vocabulary)
        return None, normalizer_SPC - _at(logits_SPCV, targets_SPC)

    _, nats_NSPC = jax.lax.scan(chunk, None, (_to_chunks(hidden_BTD), _to_chunks(targets_BT)))
    return _from_chunks(nats_NSPC, targets_BT.shape)


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
    dtype = hidden_BTD.dtype

    def chunk(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        loss, by_table_SVD = carry
        hidden_SPCD, targets_SPC, weights_SPC = inputs
        logits_SPCV, normalizer_SPC = _logits(hidden_SPCD, table_VD, vocabulary)
        nats_SPC = normalizer_SPC - _at(logits_SPCV, targets_SPC)
        loss += jnp.sum(weights_SPC * (nats_SPC + z_loss * jnp.square(normalizer_SPC)))
        scale_SPC = weights_SPC * (1 + 2 * z_loss * normalizer_SPC)
        by_logits_SPCV = jnp.exp(logits_SPCV - normalizer_SPC[..., None]) * scale_SPC[..., None]
        hits_SPCV = targets_SPC[..., None] == jnp.arange(logits_SPCV.shape[-1])
        by_logits_SPCV = jnp.where(hits_SPCV, by_logits_SPCV - weights_SPC[..., None], by_logits_SPCV).astype(dtype)
        by_hidden_SPCD = jnp.einsum("spcv,vd->spcd", by_logits_SPCV, table_VD)
        # Summed shard by shard, so that shards exchange the sum once and not once for each chunk.
        by_table_SVD += jnp.einsum("spcv,spcd->svd", by_logits_SPCV, hidden_SPCD, preferred_element_type=jnp.float32)
        return (loss, constrain(by_table_SVD, "batch", "vocabulary", None)), (nats_SPC, by_hidden_SPCD)

    inputs = _to_chunks(hidden_BTD), _to_chunks(targets_BT), _to_chunks(weights_BT)
    shards = inputs[0].shape[1]
    by_table_SVD = constrain(jnp.zeros((shards, *table_VD.shape), jnp.float32), "batch", "vocabulary", None)
    start = jnp.zeros((), jnp.float32), by_table_SVD
    (loss, by_table_SVD), (nats_NSPC, by_hidden_NSPCD) = jax.lax.scan(chunk, start, inputs)
    by_table_VD = constrain(jnp.sum(by_table_SVD, axis=0), "vocabulary", "embed").astype(table_VD.dtype)
    gradients = _from_chunks(by_hidden_NSPCD, hidden_BTD.shape), by_table_VD
    return (loss, _from_chunks(nats_NSPC, targets_BT.shape)), gradients


def _backward(
    vocabulary: int, z_loss: float, gradients: tuple[Array, Array], cotangents: tuple[Array, Any]
) -> tuple[Any, ...]:
    by_hidden_BTD, by_table_VD = gradients
    scale = cotangents[0]
    return by_hidden_BTD * scale.astype(by_hidden_BTD.dtype), by_table_VD * scale.astype(by_table_VD.dtype), None, None


weighted_loss.defvjp(_forward, _backward)


def _logits(hidden_SPCD: Array, table_VD: Array, vocabulary: int) -> tuple[Array, Array]:
    """Logits of a chunk and the logarithm of their softmax's denominator."""
    logits_SPCV = jnp.einsum("spcd,vd->spcv", hidden_SPCD, table_VD, preferred_element_type=jnp.float32)
    logits_SPCV = mask_padding(constrain(logits_SPCV, "batch", None, None, "vocabulary"), vocabulary)
    return logits_SPCV, jax.nn.logsumexp(logits_SPCV, axis=-1)


def _at(logits_SPCV: Array, targets_SPC: Array) -> Array:
    """The logit of each target; a sum over a one-hot mask, which a sharded vocabulary needs no gather for."""
    hits_SPCV = targets_SPC[..., None] == jnp.arange(logits_SPCV.shape[-1])
    return jnp.sum(jnp.where(hits_SPCV, logits_SPCV, 0.0), axis=-1)


def _to_chunks(x_BT: Array) -> Array:
    """[B, T, ...] as [N, S, P, C, ...]: each shard's rows stay where they are."""
    rows, length = x_BT.shape[:2]
    shards = axis_size("batch")
    if rows % shards:
        shards = 1
    wanted = max(1, CHUNK_TOKENS // (rows // shards))
    size = next(size for size in range(min(wanted, length), 0, -1) if length % size == 0)
    x = x_BT.reshape(shards, rows // shards, length // size, size, *x_BT.shape[2:])
    return constrain(jnp.moveaxis(x, 2, 0), None, "batch", *[None] * (x.ndim - 2))


def _from_chunks(x_NSPC: Array, shape: tuple[int, ...]) -> Array:
    return constrain(jnp.moveaxis(x_NSPC, 0, 2).reshape(shape), "batch", *[None] * (len(shape) - 1))
