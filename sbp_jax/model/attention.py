"""Grouped-query attention, with the softmax in float32: whole for training, block by block for generation.

Legend: B batch, T query positions, S key positions, N query heads, K key-value heads, G query heads per key-value head,
H head dimension, C positions of a cache block.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30  # a score that no real one comes near; finite, so that differences of two are numbers


def attend(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Attention of every query to the keys that its mask allows."""
    return jax.lax.platform_dependent(query_BTNH, key_BSKH, value_BSKH, mask_BTS, cpu=_head_by_head, default=_fused)


def _fused(query_BTNH: Array, key_BSKH: Array, value_BSKH: Array, mask_BTS: Array) -> Array:
    return jax.nn.dot_product_attention(query_BTNH, key_BSKH, value_BSKH, mask=mask_BTS[:, None], implementation="xla")


def _head_by_head(query_BTNH: Array, key_BSKH: Array, value_BSKH: Array, mask_BTS: Array) -> Array:
    """One head at a time, scores computed again for the gradient: those of all heads do not fit a CPU's cache."""
    heads, kv_heads, size = query_BTNH.shape[2], key_BSKH.shape[2], query_BTNH.shape[3]
    keys_KBSH, values_KBSH = jnp.moveaxis(key_BSKH, 2, 0), jnp.moveaxis(value_BSKH, 2, 0)

    @jax.checkpoint
    def one(head: tuple[Array, Array]) -> Array:
        number, query_BTH = head
        group = number // (heads // kv_heads)
        scores_BTS = jnp.einsum(
            "bth,bsh->bts", query_BTH * size**-0.5, keys_KBSH[group], preferred_element_type=jnp.float32
        )
        weights_BTS = jax.nn.softmax(jnp.where(mask_BTS, scores_BTS, MASKED), axis=-1).astype(query_BTH.dtype)
        return jnp.einsum("bts,bsh->bth", weights_BTS, values_KBSH[group])

    return jnp.moveaxis(jax.lax.map(one, (jnp.arange(heads), jnp.moveaxis(query_BTNH, 2, 0))), 0, 2)


def by_group(query_BTNH: Array, kv_heads: int) -> Array:
    """Queries scaled and grouped by the key-value head they share: [B, K, G, T, H]."""
    rows, length, heads, size = query_BTNH.shape
    scaled = query_BTNH * size**-0.5
    return scaled.reshape(rows, length, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)


def attention_start(query_BKGTH: Array) -> tuple[Array, Array, Array]:
    shape = query_BKGTH.shape[:-1]
    return (
        jnp.full(shape, MASKED, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(query_BKGTH.shape, jnp.float32),
    )


def absorb(
    state: tuple[Array, Array, Array],
    query_BKGTH: Array,
    key_BKHC: Array,
    value_BKCH: Array,
    mask: Bool[Array, "*B T C"],
) -> tuple[Array, Array, Array]:
    """Attention to one more block (Milakov and Gimelshein 2018): greatest score, sum and weighted values so far.

    A row whose mask is all false keeps its state to the bit once it has seen any token: that is what makes its result
    independent of the other rows.
    """
    greatest, sums, attended = state
    scores = jnp.einsum("bkgth,bkhc->bkgtc", query_BKGTH, key_BKHC, preferred_element_type=jnp.float32)
    mask = mask[:, None, None] if mask.ndim == 3 else mask
    scores = jnp.where(mask, scores, MASKED)
    new_greatest = jnp.maximum(greatest, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - new_greatest[..., None])
    scale = jnp.exp(greatest - new_greatest)
    added = jnp.einsum(
        "bkgtc,bkch->bkgth", weights.astype(value_BKCH.dtype), value_BKCH, preferred_element_type=jnp.float32
    )
    return new_greatest, sums * scale + jnp.sum(weights, axis=-1), attended * scale[..., None] + added
