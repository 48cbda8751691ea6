"""Grouped-query attention to a cache, block by block, with the softmax in float32.

Legend: B batch, T query positions, N query heads, K key-value heads, G query heads per key-value head,
H head dimension, C positions of a cache block.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool

MASKED = -1e30  # a score that no real one comes near; finite, so that differences of two are numbers


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
