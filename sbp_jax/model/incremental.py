"""The decoder with the keys and values of what it has read kept: prompts by blocks, then token by token.

Keys and values lie in pages (Kwon et al. 2023): a page holds those of one sequence at C positions, and a table says
which pages a slot holds. Layers are compiled one after the other, each with arrays of its own: what is cut out of a
stack would be a copy. What a row computes does not depend on the other rows, nor on which pages it was given.

Legend: B slots, N pages, C positions of a page, Z pages that a slot can hold, M blocks of prompts with P tokens each,
D width, K key-value heads, G query heads per key-value head, H head dimension, T columns of the recent tokens.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sbp_jax.config import Model
from sbp_jax.model.cached_attention import Attend, Held, Pages, absorb, attention_start, by_group
from sbp_jax.model.decoder import embed, finish, logits, project, rms_norm
from sbp_jax.model.parameters import Parameters

Caches = tuple[Pages, ...]  # one for each layer


def empty_caches(config: Model, pages: int, positions: int) -> Caches:
    """For each layer so many pages of zeros; also `positions` recent tokens of so many slots."""
    shape = (pages, config.kv_heads)

    def one() -> Pages:
        keys = jnp.zeros((*shape, config.head_dim, positions), config.dtype)
        return Pages(keys, jnp.zeros((*shape, positions, config.head_dim), config.dtype))

    return tuple(one() for _ in range(config.layers))


def by_layer(parameters: Parameters) -> Parameters:
    """Parameters whose layers are a tuple instead of a stack; takes arrays of host or devices, and abstract ones."""
    stack = parameters["layers"]
    count = jax.tree.leaves(stack)[0].shape[0]
    return parameters | {
        "layers": tuple(jax.tree.map(lambda leaf, n=n: _of_layer(leaf, n), stack) for n in range(count))
    }


def _of_layer(leaf: Any, number: int) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf[number]
    placed = leaf.sharding
    placed = jax.sharding.NamedSharding(placed.mesh, jax.sharding.PartitionSpec(*placed.spec[1:]))
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=placed)


def read(
    config: Model,
    parameters: Parameters,
    caches: Caches,
    tokens_MP: Int[Array, "M P"],
    tables_MZ: Int[Array, "M Z"],
    starts_M: Int[Array, "M"],
) -> Caches:
    """Reads blocks of prompts into the cache, several of one prompt or of different ones.

    All blocks write their keys and values before any attends, so that a block sees those of its prompt before it. The
    products run over all tokens at once, without a row for what is not there; attention runs block by block.

    Args:
      parameters: by layer.
      tokens_MP: tokens, what pads a prompt's last block included; P divides C.
      tables_MZ: the pages of each block's slot; N for none: a block of a slot without pages is dropped.
      starts_M: position of each block's first token, a multiple of P.
    """
    pages, positions = caches[0].keys.shape[0], caches[0].keys.shape[-1]
    positions_MP = starts_M[:, None] + jnp.arange(tokens_MP.shape[1])
    own_M = jnp.take_along_axis(tables_MZ, starts_M[:, None] // positions, axis=1)[:, 0]
    looked_at = jnp.max(jnp.where(own_M < pages, starts_M, 0)) // positions + 1
    x_MPD = embed(config, parameters["embedding"], tokens_MP)
    filled = []
    for number, (weights, cache) in enumerate(zip(parameters["layers"], caches, strict=True)):
        layer = SimpleNamespace(**weights)
        query_MPNH, key_MPKH, value_MPKH = project(config, layer, x_MPD, positions_MP)
        cache = _write(cache, key_MPKH, value_MPKH, own_M, starts_M % positions)
        filled.append(cache)
        if number < config.layers - 1:  # of the last layer nothing is wanted but keys and values
            attended_MPNH = _attend_blocks(config, query_MPNH, cache, tables_MZ, positions_MP, looked_at)
            x_MPD = finish(config, layer, x_MPD, attended_MPNH)
    return tuple(filled)


def extend(
    config: Model,
    parameters: Parameters,
    tokens_B: Int[Array, "B"],
    positions_B: Int[Array, "B"],
    past: Caches,
    held: Held,
    recent: Caches,
    index: Int[Array, ""] | int,
    attend: Attend,
) -> tuple[Float[Array, "B D"], Caches]:
    """Reads one more token of each sequence, after those of `past` and then of `recent`.

    Rows of `recent` advance together, so a new token is one slice of it, where rows of `past` end at different
    places and writing them costs a scatter: `settle` moves `recent` to `past` now and then.

    Args:
      positions_B: place of each token in its sequence.
      past: what was read before; not changed.
      held: what each row holds of it.
      recent: the tokens since, a page of T for each row; this one is stored at its column `index`.
      index: columns of `recent` in use.

    Returns:
      The hidden states before the final norm, and `recent` with the new keys and values.
    """
    x_B1D = embed(config, parameters["embedding"], tokens_B[:, None])
    mask_B1T = (jnp.arange(recent[0].keys.shape[-1]) <= index)[None, None]
    updated = []
    for weights, old, new in zip(parameters["layers"], past, recent, strict=True):
        layer = SimpleNamespace(**weights)
        query_B1NH, key_B1KH, value_B1KH = project(config, layer, x_B1D, positions_B[:, None])
        new = Pages(
            jax.lax.dynamic_update_slice_in_dim(new.keys, key_B1KH.transpose(0, 2, 3, 1), index, axis=3),
            jax.lax.dynamic_update_slice_in_dim(new.values, value_B1KH.transpose(0, 2, 1, 3), index, axis=2),
        )
        query_BKG1H = by_group(query_B1NH, config.kv_heads)
        _, sums, attended = absorb(attend(query_BKG1H, old, held), query_BKG1H, *new, mask_B1T)
        attended_BKG1H = (attended / sums[..., None]).astype(x_B1D.dtype)
        attended_B1NH = attended_BKG1H.transpose(0, 3, 1, 2, 4).reshape(query_B1NH.shape)
        x_B1D = finish(config, layer, x_B1D, attended_B1NH)
        updated.append(new)
    return x_B1D[:, 0], tuple(updated)


def next_logits(config: Model, vocabulary: int, parameters: Parameters, x_BD: Float[Array, "B D"]) -> Array:
    """Next-token logits in float32 [B, V] of what `extend` returns."""
    table_VD = parameters["embedding"] if config.tied_embeddings else parameters["unembedding"]
    normed_BD = rms_norm(x_BD, parameters["final_norm"], config.norm_epsilon)
    return logits(vocabulary, normed_BD, table_VD.astype(x_BD.dtype))


def settle(past: Caches, recent: Caches, held: Held, counts_B: Int[Array, "B"]) -> Caches:
    """Moves the first columns of `recent` behind the positions that each row holds, as many as it has."""
    pages, positions = past[0].keys.shape[0], past[0].keys.shape[-1]
    columns_T = jnp.arange(recent[0].keys.shape[-1])
    places_BT = held.lengths_B[:, None] + columns_T
    own_BT = jnp.take_along_axis(held.table_BZ, places_BT // positions, axis=1, mode="clip")
    own_BT = jnp.where(columns_T < counts_B[:, None], own_BT, pages)  # out of bounds: dropped
    within_BT = places_BT % positions
    moved = []
    for old, new in zip(past, recent, strict=True):
        keys = old.keys.at[own_BT, :, :, within_BT].set(new.keys.transpose(0, 3, 1, 2), mode="drop")
        values = old.values.at[own_BT, :, within_BT].set(new.values.transpose(0, 2, 1, 3), mode="drop")
        moved.append(Pages(keys, values))
    return tuple(moved)


def settle_by_page(past: Caches, recent: Caches, held: Held, counts_B: Int[Array, "B"]) -> Caches:
    """As `settle`, to the bit, by whole pages: to put columns into the midst of pages a TPU copies all of a cache."""
    pages, positions = past[0].keys.shape[0], past[0].keys.shape[-1]
    columns_T = jnp.arange(recent[0].keys.shape[-1])
    counted_BT = columns_T < counts_B[:, None]
    for page in range(1 + (len(columns_T) + positions - 2) // positions):  # that so many tokens may lie in
        columns_BC = page * positions + jnp.arange(positions) - (held.lengths_B % positions)[:, None]
        from_BTC = (columns_BC[:, None] == columns_T[:, None]) & counted_BT[..., None]
        new_BC = jnp.any(from_BTC, axis=1)
        numbers_B = held.lengths_B // positions + page
        own_B = jnp.take_along_axis(held.table_BZ, numbers_B[:, None], axis=1, mode="clip")[:, 0]
        own_B = jnp.where(jnp.any(new_BC, axis=1), own_B, pages)  # out of bounds: dropped

        def spread(products: str, part: Array, counted: Array, from_BTC: Array = from_BTC) -> Array:
            part = jnp.where(counted, part, 0)  # what does not count may be no number
            return jnp.einsum(products, part, from_BTC.astype(part.dtype), precision="highest")  # one term a sum

        moved = []
        for old, new in zip(past, recent, strict=True):
            keys = spread("bkht,btc->bkhc", new.keys, counted_BT[:, None, None])
            values = spread("bkth,btc->bkch", new.values, counted_BT[:, None, :, None])
            keys = jnp.where(new_BC[:, None, None], keys, old.keys.at[own_B].get(mode="clip"))
            values = jnp.where(new_BC[:, None, :, None], values, old.values.at[own_B].get(mode="clip"))
            moved.append(
                Pages(old.keys.at[own_B].set(keys, mode="drop"), old.values.at[own_B].set(values, mode="drop"))
            )
        past = tuple(moved)
    return past


def _write(cache: Pages, key_MPKH: Array, value_MPKH: Array, own_M: Array, within_M: Array) -> Pages:
    """Puts blocks of prompts into their pages; those whose page is out of bounds are dropped."""
    places_M2 = jnp.stack([own_M, within_M], axis=1)

    def scatter(whole: Array, part: Array, axis: int) -> Array:
        dimensions = jax.lax.ScatterDimensionNumbers(
            update_window_dims=(1, 2, 3), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, axis)
        )
        return jax.lax.scatter(whole, places_M2, part, dimensions, mode=jax.lax.GatherScatterMode.FILL_OR_DROP)

    return Pages(
        scatter(cache.keys, key_MPKH.transpose(0, 2, 3, 1), 3),
        scatter(cache.values, value_MPKH.transpose(0, 2, 1, 3), 2),
    )


def _attend_blocks(
    config: Model, query_MPNH: Array, cache: Pages, tables_MZ: Array, positions_MP: Array, looked_at: Array
) -> Array:
    """Attention of blocks of prompts to all that their slots hold up to each position."""
    positions = cache.keys.shape[-1]
    query_MKGPH = by_group(query_MPNH, config.kv_heads)

    def look(z: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mask_MPC = z * positions + jnp.arange(positions) <= positions_MP[:, :, None]
        own_M = jax.lax.dynamic_index_in_dim(tables_MZ, z, axis=1, keepdims=False)
        keys, values = (part.at[own_M].get(mode="clip") for part in cache)
        return absorb(state, query_MKGPH, keys, values, mask_MPC)

    state = jax.lax.fori_loop(0, looked_at, look, attention_start(query_MKGPH))
    attended_MKGPH = (state[2] / state[1][..., None]).astype(query_MPNH.dtype)
    return attended_MKGPH.transpose(0, 3, 1, 2, 4).reshape(query_MPNH.shape)
