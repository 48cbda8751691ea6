"""Grouped-query attention to keys and values that were kept, a page at a time, with the softmax in float32.

Legend: B slots, T query positions, N pages, C positions of a page, Z pages that a slot can hold, K key-value heads,
G query heads per key-value head, H head dimension.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

State = tuple[Array, Array, Array]  # greatest score, sum and weighted values so far
FREE = 1 << 30  # first position of a page that no slot holds, past all lengths

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


class Pages(NamedTuple):
    """Keys and values of a layer.

    Attributes:
      keys: [N, K, H, C], transposed as the product with the queries wants them.
      values: [N, K, C, H].
    """

    keys: Array
    values: Array


class Held(NamedTuple):
    """What each slot holds.

    Attributes:
      table_BZ: the pages of a slot in their order; N for none.
      lengths_B: positions that count.
      owners_N: the slot of each page.
      starts_N: the position of a page's first key in the slot's sequence; FREE: nobody's page.
    """

    table_BZ: Array
    lengths_B: Array
    owners_N: Array
    starts_N: Array


Attend = Callable[[Array, Pages, Held], State]


def held(table_BZ: Array, lengths_B: Array, pages: int, positions: int) -> Held:
    """Args: table and lengths as in `Held`; N; C."""
    slots_BZ = jnp.broadcast_to(jnp.arange(table_BZ.shape[0])[:, None], table_BZ.shape)
    starts_BZ = jnp.broadcast_to(jnp.arange(table_BZ.shape[1]) * positions, table_BZ.shape)
    owners_N = jnp.zeros(pages, jnp.int32).at[table_BZ].set(slots_BZ, mode="drop")
    starts_N = jnp.full(pages, FREE, jnp.int32).at[table_BZ].set(starts_BZ, mode="drop")
    return Held(table_BZ, lengths_B, owners_N, starts_N)


def xla(query_BKGTH: Array, pages: Pages, held: Held) -> State:
    """Attention of each row to what it holds of a layer's cache, as plain array operations, for T = 1.

    Every page meets the query of its slot, also one that nobody holds: to cut those in use out of the array costs more.
    Then each slot puts together what its pages found.
    """
    count, positions = pages.keys.shape[0], pages.keys.shape[-1]
    query_BKGH = query_BKGTH[:, :, :, 0]
    mask_NC = held.starts_N[:, None] + jnp.arange(positions) < held.lengths_B[held.owners_N][:, None]
    scores_NKGC = jnp.einsum(
        "nkgh,nkhc->nkgc", query_BKGH[held.owners_N], pages.keys, preferred_element_type=jnp.float32
    )
    scores_NKGC = jnp.where(mask_NC[:, None, None], scores_NKGC, MASKED)
    greatest_NKG = jnp.max(scores_NKGC, axis=-1)
    weights_NKGC = jnp.exp(scores_NKGC - greatest_NKG[..., None])
    sums_NKG = jnp.sum(weights_NKGC, axis=-1)
    attended_NKGH = jnp.einsum(
        "nkgc,nkch->nkgh", weights_NKGC.astype(pages.values.dtype), pages.values, preferred_element_type=jnp.float32
    )
    has_BZ = held.table_BZ < count
    greatest_BZKG = jnp.where(has_BZ[..., None, None], greatest_NKG.at[held.table_BZ].get(mode="clip"), MASKED)
    greatest_BKG = jnp.max(greatest_BZKG, axis=1)
    scale_BZKG = jnp.where(has_BZ[..., None, None], jnp.exp(greatest_BZKG - greatest_BKG[:, None]), 0.0)
    sums_BKG = jnp.sum(sums_NKG.at[held.table_BZ].get(mode="clip") * scale_BZKG, axis=1)

    def add(z: Array, attended_BKGH: Array) -> Array:
        own_B = jax.lax.dynamic_index_in_dim(held.table_BZ, z, axis=1, keepdims=False)
        scale_BKG = jax.lax.dynamic_index_in_dim(scale_BZKG, z, axis=1, keepdims=False)
        return attended_BKGH + attended_NKGH.at[own_B].get(mode="clip") * scale_BKG[..., None]

    attended_BKGH = jax.lax.fori_loop(
        0, has_BZ.shape[1], add, jnp.zeros_like(query_BKGH, jnp.float32), unroll=min(16, has_BZ.shape[1])
    )
    return greatest_BKG[..., None], sums_BKG[..., None], attended_BKGH[..., None, :]
