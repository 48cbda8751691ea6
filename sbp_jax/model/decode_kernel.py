"""Attention of one new token to a cache in pages, as a Triton kernel: each row reads the pages that it holds, once.

Legend: B slots, N pages, C positions of a page or of a tile, Z pages that a slot can hold, K key-value heads, G query
heads per key-value head, R = G rounded up to rows of a tile, H head dimension, S parts of the positions that are looked
at side by side.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from sbp_jax.config import Model
from sbp_jax.model.cached_attention import MASKED, Held, Pages, State
from sbp_jax.parallel.sharding import in_shards

TILE = 64  # positions that meet the queries at a time
LEAST_ROWS = 16  # of a product on tensor cores
PROGRAMS = 512  # that keep a GPU busy


def runs(config: Model, platform: str) -> bool:
    """Whether the kernel can be used: an NVIDIA GPU, bfloat16, heads of a power of two."""
    size = config.head_dim
    return platform == "gpu" and config.dtype == "bfloat16" and 16 <= size <= 256 and size & (size - 1) == 0


def triton(query_BKGTH: Array, pages: Pages, held: Held, interpret: bool = False) -> State:
    """As `cached_attention.xla`."""
    queries_BKGH = query_BKGTH[:, :, :, 0]
    by_row, by_page, shape = (None, "kv_heads"), (None, "kv_heads", None, None), queries_BKGH.shape
    sharded = in_shards(
        partial(_one_shard, interpret=interpret),
        ((*by_row, None, None), by_page, by_page, (None, None), (None,)),
        ((*by_row, None), (*by_row, None), (*by_row, None, None)),
        (shape[:-1], shape[:-1], shape),
    )
    greatest_BKG, sums_BKG, attended_BKGH = sharded(queries_BKGH, *pages, held.table_BZ, held.lengths_B)
    return greatest_BKG[..., None], sums_BKG[..., None], attended_BKGH[:, :, :, None]


def _one_shard(
    queries_BKGH: Array, keys_NKHC: Array, values_NKCH: Array, table_BZ: Array, lengths_B: Array, interpret: bool
) -> State:
    rows, heads, groups, size = queries_BKGH.shape
    pages, positions = keys_NKHC.shape[0], keys_NKHC.shape[-1]
    padded = max(LEAST_ROWS, 1 << (groups - 1).bit_length())
    queries_BKRH = jnp.pad(queries_BKGH, ((0, 0), (0, 0), (0, padded - groups), (0, 0)))
    tiles = table_BZ.shape[1] * (positions // TILE)
    parts = max(1, min(tiles, PROGRAMS // (rows * heads)))

    def by_part(*tail: int) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
        zeros = (0,) * len(tail)
        spec = pl.BlockSpec((None, None, None, *tail), lambda b, k, s: (b, k, s, *zeros))
        return spec, jax.ShapeDtypeStruct((rows, heads, parts, *tail), jnp.float32)

    outputs = (by_part(padded), by_part(padded), by_part(padded, size))
    greatest_BKSR, sums_BKSR, attended_BKSRH = pl.pallas_call(
        partial(_kernel, tiles=-(-tiles // parts), per_page=positions // TILE),
        grid=(rows, heads, parts),
        in_specs=[
            pl.BlockSpec((None,), lambda b, k, s: (b,)),
            pl.BlockSpec((None, table_BZ.shape[1]), lambda b, k, s: (b, 0)),
            pl.BlockSpec((None, None, padded, size), lambda b, k, s: (b, k, 0, 0)),
            pl.BlockSpec((pages, None, size, positions), lambda b, k, s: (0, k, 0, 0)),
            pl.BlockSpec((pages, None, positions, size), lambda b, k, s: (0, k, 0, 0)),
        ],
        out_specs=[spec for spec, _ in outputs],
        out_shape=[shape for _, shape in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
    )(lengths_B, table_BZ, queries_BKRH, keys_NKHC, values_NKCH)
    if parts == 1:
        return greatest_BKSR[:, :, 0, :groups], sums_BKSR[:, :, 0, :groups], attended_BKSRH[:, :, 0, :groups]
    greatest_BKR = jnp.max(greatest_BKSR, axis=2)
    scale_BKSR = jnp.exp(greatest_BKSR - greatest_BKR[:, :, None])
    sums_BKR = jnp.sum(sums_BKSR * scale_BKSR, axis=2)
    attended_BKRH = jnp.sum(attended_BKSRH * scale_BKSR[..., None], axis=2)
    return greatest_BKR[:, :, :groups], sums_BKR[:, :, :groups], attended_BKRH[:, :, :groups]


def _kernel(
    length_ref: Any,
    table_ref: Any,
    query_ref: Any,
    keys_ref: Any,
    values_ref: Any,
    greatest_ref: Any,
    sums_ref: Any,
    attended_ref: Any,
    *,
    tiles: int,
    per_page: int,
) -> None:
    """One row, one key-value head, one part of the positions."""
    length = length_ref[...]
    query_RH = query_ref[...]
    first = pl.program_id(2) * tiles
    end = jnp.minimum(first + tiles, pl.cdiv(length, TILE))

    def look(tile: Any, state: State) -> State:
        greatest_R, sums_R, attended_RH = state
        page, columns = table_ref[tile // per_page], pl.ds(tile % per_page * TILE, TILE)
        keys_HC, values_CH = keys_ref[page, :, columns], values_ref[page, columns, :]
        scores_RC = plgpu.dot(query_RH, keys_HC)
        mask_C = tile * TILE + jnp.arange(TILE) < length
        scores_RC = jnp.where(mask_C[None], scores_RC, MASKED)
        new_R = jnp.maximum(greatest_R, jnp.max(scores_RC, axis=1))
        weights_RC = jnp.exp(scores_RC - new_R[:, None])
        scale_R = jnp.exp(greatest_R - new_R)
        added_RH = plgpu.dot(weights_RC.astype(values_CH.dtype), values_CH)
        sums_R = sums_R * scale_R + jnp.sum(weights_RC, axis=1)
        return new_R, sums_R, attended_RH * scale_R[:, None] + added_RH

    rows, size = query_RH.shape
    start = (jnp.full(rows, MASKED, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros((rows, size), jnp.float32))
    greatest_ref[...], sums_ref[...], attended_ref[...] = jax.lax.fori_loop(first, end, look, start)
