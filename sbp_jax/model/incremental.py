"""The decoder with the keys and values of what it has read kept: prompts by blocks, then token by token.

Layers come in groups, each of which is stacked: one group of all is compiled as a loop; groups of one layer are
compiled one after the other, and nothing is ever cut out of a stack, which would be a copy where a kernel wants a whole
array. What a row computes does not depend on the other rows.

Legend: B slots, N blocks of prompts with P tokens each, D width, K key-value heads, G query heads per key-value head,
H head dimension, L layers of a group, Z cache blocks with C positions each, T columns of the recent block.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sbp_jax.config import Model
from sbp_jax.model.cached_attention import Attend, absorb, attention_start, by_group
from sbp_jax.model.decoder import embed, finish, logits, project, rms_norm
from sbp_jax.model.parameters import Parameters


class Cache(NamedTuple):
    """Keys and values of a group of layers, in blocks of positions: block z holds positions zC to zC + C - 1.

    Attributes:
      keys: [L, Z, B, K, H, C], transposed as the product with the queries wants them.
      values: [L, Z, B, K, C, H].
    """

    keys: Array
    values: Array


Caches = tuple[Cache, ...]  # one for each group of layers


def empty_caches(config: Model, groups: int, rows: int, blocks: int, length: int) -> Caches:
    """Caches of zeros: `blocks` blocks of `length` positions for each row."""
    shape = (config.layers // groups, blocks, rows, config.kv_heads)
    return tuple(
        Cache(
            jnp.zeros((*shape, config.head_dim, length), config.dtype),
            jnp.zeros((*shape, length, config.head_dim), config.dtype),
        )
        for _ in range(groups)
    )


def grouped(parameters: Parameters, groups: int) -> Parameters:
    """Parameters whose layers are a tuple of stacks instead of one; takes arrays of host or devices, and abstract ones.

    Args:
      groups: 1, or the number of layers.
    """
    if groups == 1:
        return parameters | {"layers": (parameters["layers"],)}

    def part(number: int) -> Any:
        return jax.tree.map(lambda leaf: _slice(leaf, number), parameters["layers"])

    return parameters | {"layers": tuple(part(number) for number in range(groups))}


def _slice(leaf: Any, number: int) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)
    return leaf[number : number + 1]


def read(
    config: Model,
    parameters: Parameters,
    caches: Caches,
    tokens_NP: Int[Array, "N P"],
    slots_N: Int[Array, "N"],
    starts_N: Int[Array, "N"],
) -> Caches:
    """Reads blocks of prompts into the cache, several of one prompt or of different ones.

    All blocks write their keys and values before any attends, so that a block sees those of its prompt before it. The
    products run over all tokens at once, without a row for what is not there; attention runs block by block.

    Args:
      parameters: with layers by group.
      tokens_NP: tokens, what pads a prompt's last block included; P divides C.
      slots_N: the row of the cache that a block belongs to; a block without one is dropped.
      starts_N: position of each block's first token, a multiple of P.
    """
    positions_NP = starts_N[:, None] + jnp.arange(tokens_NP.shape[1])
    looked_at = jnp.max(jnp.where(slots_N < caches[0].keys.shape[2], starts_N, 0)) // caches[0].keys.shape[-1] + 1
    x_NPD = embed(config, parameters["embedding"], tokens_NP)
    filled = []
    for place, (layers, cache) in enumerate(zip(parameters["layers"], caches, strict=True)):

        def write(number: Any, x_NPD: Array, cache: Cache, layers: Any = layers) -> tuple[Any, Array, Cache]:
            layer = _layer(layers, number)
            query_NPNH, key_NPKH, value_NPKH = project(config, layer, x_NPD, positions_NP)
            return layer, query_NPNH, _write(cache, number, key_NPKH, value_NPKH, slots_N, starts_N)

        def body(number: Any, carry: tuple[Array, Cache], write: Callable = write) -> tuple[Array, Cache]:
            x_NPD, cache = carry
            layer, query_NPNH, cache = write(number, x_NPD, cache)
            attended_NPNH = _attend_blocks(config, query_NPNH, cache, number, slots_N, positions_NP, looked_at)
            return finish(config, layer, x_NPD, attended_NPNH), cache

        count = cache.keys.shape[0]
        last = place == len(caches) - 1  # of the last layer nothing is wanted but keys and values
        x_NPD, cache = _loop(count - last, body, (x_NPD, cache))
        if last:
            _, _, cache = write(count - 1, x_NPD, cache)
        filled.append(cache)
    return tuple(filled)


def extend(
    config: Model,
    parameters: Parameters,
    tokens_B: Int[Array, "B"],
    positions_B: Int[Array, "B"],
    past: Caches,
    lengths_B: Int[Array, "B"],
    blocks: Int[Array, ""] | int,
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
      lengths_B: positions of `past` that each row holds.
      blocks: leading blocks of `past` that hold at least the greatest length.
      recent: one block of the tokens since; this one is stored at its column `index`.
      index: columns of `recent` in use.

    Returns:
      The hidden states before the final norm, and `recent` with the new keys and values.
    """
    x_B1D = embed(config, parameters["embedding"], tokens_B[:, None])
    mask_T = jnp.arange(recent[0].keys.shape[-1]) <= index
    updated = []
    for layers, old, new in zip(parameters["layers"], past, recent, strict=True):

        def body(number: Any, carry: tuple[Array, Cache], layers: Any = layers, old: Cache = old) -> tuple[Array, Cache]:
            x_B1D, new = carry
            layer = _layer(layers, number)
            query_B1NH, key_B1KH, value_B1KH = project(config, layer, x_B1D, positions_B[:, None])
            new = Cache(
                _store(new.keys, key_B1KH.transpose(0, 2, 3, 1), (number, 0, 0, 0, 0, index)),
                _store(new.values, value_B1KH.transpose(0, 2, 1, 3), (number, 0, 0, 0, index, 0)),
            )
            query_BKG1H = by_group(query_B1NH, config.kv_heads)
            state = attend(query_BKG1H, old.keys, old.values, number, lengths_B, blocks)
            _, sums, attended = absorb(state, query_BKG1H, new.keys[number, 0], new.values[number, 0], mask_T[None])
            attended_BKG1H = (attended / sums[..., None]).astype(x_B1D.dtype)
            attended_B1NH = attended_BKG1H.transpose(0, 3, 1, 2, 4).reshape(query_B1NH.shape)
            return finish(config, layer, x_B1D, attended_B1NH), new

        x_B1D, new = _loop(new.keys.shape[0], body, (x_B1D, new))
        updated.append(new)
    return x_B1D[:, 0], tuple(updated)


def next_logits(config: Model, vocabulary: int, parameters: Parameters, x_BD: Float[Array, "B D"]) -> Array:
    """Next-token logits in float32 [B, V] of what `extend` returns."""
    table_VD = parameters["embedding"] if config.tied_embeddings else parameters["unembedding"]
    normed_BD = rms_norm(x_BD, parameters["final_norm"], config.norm_epsilon)
    return logits(vocabulary, normed_BD, table_VD.astype(x_BD.dtype))


def settle(past: Caches, recent: Caches, positions_B: Int[Array, "B"], counts_B: Int[Array, "B"]) -> Caches:
    """Moves the first columns of `recent` behind the positions of `past` that each row holds, as many as it has."""
    block, steps = past[0].keys.shape[-1], recent[0].keys.shape[-1]
    rows, columns_T = len(positions_B), jnp.arange(steps)
    places_BT = positions_B[:, None] + columns_T
    rows_BT = jnp.where(columns_T < counts_B[:, None], jnp.arange(rows)[:, None], rows)  # out of bounds: dropped
    where = (slice(None), places_BT // block, rows_BT, slice(None))
    moved = []
    for old, new in zip(past, recent, strict=True):
        keys_BTLKH, values_BTLKH = new.keys[:, 0].transpose(1, 4, 0, 2, 3), new.values[:, 0].transpose(1, 3, 0, 2, 4)
        keys = old.keys.at[(*where, slice(None), places_BT % block)].set(keys_BTLKH, mode="drop")
        values = old.values.at[(*where, places_BT % block)].set(values_BTLKH, mode="drop")
        moved.append(Cache(keys, values))
    return tuple(moved)


def _loop(count: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    if count == 1:
        return body(0, carry)
    return jax.lax.fori_loop(0, count, body, carry)


def _layer(layers: Any, number: Any) -> SimpleNamespace:
    return SimpleNamespace(**jax.tree.map(lambda leaf: leaf[number], layers))


def _store(whole: Array, part: Array, start: tuple) -> Array:
    return jax.lax.dynamic_update_slice(whole, part[None, None], start)


def _write(
    cache: Cache, number: Any, key_NPKH: Array, value_NPKH: Array, slots_N: Array, starts_N: Array
) -> Cache:
    """Puts blocks of prompts to their places; those whose slot is out of bounds are dropped."""
    block = cache.keys.shape[-1]
    places_N4 = jnp.stack([jnp.full_like(slots_N, number), starts_N // block, slots_N, starts_N % block], axis=1)

    def scatter(whole: Array, part: Array, axis: int) -> Array:
        dimensions = jax.lax.ScatterDimensionNumbers(
            update_window_dims=(1, 2, 3),
            inserted_window_dims=(0, 1, 2),
            scatter_dims_to_operand_dims=(0, 1, 2, axis),
        )
        return jax.lax.scatter(
            whole, places_N4, part, dimensions, mode=jax.lax.GatherScatterMode.FILL_OR_DROP
        )

    return Cache(
        scatter(cache.keys, key_NPKH.transpose(0, 2, 3, 1), 5),
        scatter(cache.values, value_NPKH.transpose(0, 2, 1, 3), 4),
    )


def _attend_blocks(
    config: Model,
    query_NPNH: Array,
    cache: Cache,
    number: Any,
    slots_N: Array,
    positions_NP: Array,
    looked_at: Array,
) -> Array:
    """Attention of blocks of prompts to all that their slots hold up to each position."""
    block = cache.keys.shape[-1]
    query_NKGPH = by_group(query_NPNH, config.kv_heads)

    def look(z: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mask_NPC = z * block + np.arange(block) <= positions_NP[:, :, None]
        keys, values = (part.at[number, z, slots_N].get(mode="clip") for part in cache)
        return absorb(state, query_NKGPH, keys, values, mask_NPC)

    state = jax.lax.fori_loop(0, looked_at, look, attention_start(query_NKGPH))
    attended_NKGPH = (state[2] / state[1][..., None]).astype(query_NPNH.dtype)
    return attended_NKGPH.transpose(0, 3, 1, 2, 4).reshape(query_NPNH.shape)
