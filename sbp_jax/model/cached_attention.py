"""Grouped-query attention to a cache, block by block, with the softmax in float32.

Legend: B batch, T query positions, N query heads, K key-value heads, G query heads per key-value head,
H head dimension, C positions of a cache block.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

State = tuple[Array, Array, Array]  # greatest score, sum and weighted values so far
Attend = Callable[[Array, Array, Array, Any, Array, Any], State]

MASKED = -1e30  # a score that no real one comes near; finite, so that differences of two are numbers


def by_group(query_BTNH: Array, kv_heads: int) -> Array:
    """Queries scaled and grouped by the key-value head they share: [B, K, G, T, H]."""
    rows, length, heads, size = query_BTNH.shape
    scaled = query_BTNH * size**-0.5
    return scaled.reshape(rows, length, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)


def attention_start(query_BKGTH: Array) -> State:
    shape = query_BKGTH.shape[:-1]
    return (
        jnp.full(shape, MASKED, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(query_BKGTH.shape, jnp.float32),
    )


def absorb(
    state: State,
    query_BKGTH: Array,
    key_BKHC: Array,
    value_BKCH: Array,
    mask: Bool[Array, "*B T C"],
) -> State:
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


def xla(
    query_BKGTH: Array, keys: Array, values: Array, number: Any, lengths_B: Array, blocks: Array | int
) -> State:
    """Attention of each row to what it holds of a layer's cache, as plain array operations.

    Args:
      keys: [L, Z, B, K, H, C].
      values: [L, Z, B, K, C, H].
      number: of the layer among the L.
      lengths_B: positions that each row holds.
      blocks: leading blocks to look at.
    """
    block = keys.shape[-1]

    def look(z: Array, state: State) -> State:
        mask_BC = z * block + jnp.arange(block) < lengths_B[:, None]
        return absorb(state, query_BKGTH, keys[number, z], values[number, z], mask_BC[:, None])

    return jax.lax.fori_loop(0, blocks, look, attention_start(query_BKGTH))
