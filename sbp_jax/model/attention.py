"""Causal grouped-query attention within the documents of packed rows, one function with three backends.

Every backend takes segment ids: a position attends to itself and to what precedes it in its own segment.

Legend: B rows, T positions, N query heads, K key-value heads, G query heads per key-value head, H head dimension,
C query and S key positions of a block, R = G C rows of queries that meet the same keys.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jaxtyping import Array, Float, Int

from sbp_jax.config import Model
from sbp_jax.errors import SbpError
from sbp_jax.model.cached_attention import MASKED
from sbp_jax.parallel.sharding import axis_size, in_shards

Attention = Callable[[Array, Array, Array, Array], Array]
SAVED = "attention"  # name of the result that the remat policy `dots` keeps
SPLASH_BLOCKS = (
    *("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"),
    *("block_kv_dkv_compute", "block_q_dq", "block_kv_dq"),
)
CPU_BLOCK = 128  # query positions whose scores are computed together on a CPU


def choose(asked: str, platform: str, model: Model, context: int) -> Attention:
    """The backend for rows of `context` tokens on a platform: cpu, gpu or tpu.

    Args:
      asked: `execution.attention`; "auto" takes splash on a TPU and cuDNN on a GPU where the shapes allow them.

    Raises:
      SbpError: the backend asked for does not run there.
    """
    fits = {
        "splash": platform == "tpu" and context % splash.NUM_LANES == 0,
        "cudnn": platform == "gpu" and model.dtype == "bfloat16" and model.head_dim % 8 == 0 and model.head_dim <= 128,
        "xla": True,
    }
    if asked == "auto":
        native = {"tpu": "splash", "gpu": "cudnn"}.get(platform, "xla")
        asked = native if fits[native] else "xla"
    if not fits[asked]:
        raise SbpError(
            f"execution.attention={asked} does not run here (platform {platform}, {model.dtype}, head_dim"
            f" {model.head_dim}, context {context}): splash wants a TPU and a context that is a multiple of"
            f" {splash.NUM_LANES}, cudnn an NVIDIA GPU, bfloat16 and heads of at most 128; xla runs everywhere"
        )
    if asked == "splash":
        return _splash
    return _cudnn if asked == "cudnn" else xla


def xla(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """Attention as plain array operations."""
    attended = jax.lax.platform_dependent(
        query_BTNH, key_BTKH, value_BTKH, segments_BT, cpu=_by_block, default=_all_heads
    )
    return checkpoint_name(attended, SAVED)


def _all_heads(query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, segments_BT: Array) -> Array:
    mask_B1TT = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
    return jax.nn.dot_product_attention(
        query_BTNH, key_BTKH, value_BTKH, mask=mask_B1TT, is_causal=True, implementation="xla"
    )


def _cudnn(query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, segments_BT: Array) -> Array:
    """cuDNN's flash attention; segments reach it as a mask, since its own ragged layout is not public in JAX."""
    mask_B1TT = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
    attended = jax.nn.dot_product_attention(
        query_BTNH, key_BTKH, value_BTKH, mask=mask_B1TT, is_causal=True, implementation="cudnn"
    )
    return checkpoint_name(attended, SAVED)


def _by_block(query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, segments_BT: Array) -> Array:
    """A block of queries at a time, for a CPU: each meets the keys up to its end, and no scores are kept."""
    rows, length, heads, size = query_BTNH.shape
    kv_heads = key_BTKH.shape[2]
    grouped = (query_BTNH * size**-0.5).reshape(rows, length, kv_heads, heads // kv_heads, size)
    attended_BKGTH = _attend_by_block(
        grouped.transpose(0, 2, 3, 1, 4), key_BTKH.swapaxes(1, 2), value_BTKH.swapaxes(1, 2), segments_BT
    )
    return attended_BKGTH.transpose(0, 3, 1, 2, 4).reshape(query_BTNH.shape)


@jax.custom_vjp
def _attend_by_block(query_BKGTH: Array, key_BKTH: Array, value_BKTH: Array, segments_BT: Array) -> Array:
    return _blocks_forward(query_BKGTH, key_BKTH, value_BKTH, segments_BT)[0]


def _blocks_forward(query: Array, key: Array, value: Array, segments_BT: Array) -> tuple[Array, tuple[Array, ...]]:
    """The result, and what the gradient needs: the inputs, the result, and the log of each softmax's denominator."""
    attended, normalizers = [], []
    for start, end in _blocks(query.shape[3]):
        scores_BKRS = _block_scores(query, key, segments_BT, start, end)
        greatest_BKR1 = jnp.max(scores_BKRS, axis=-1, keepdims=True)
        weights_BKRS = jnp.exp(scores_BKRS - greatest_BKR1)
        sums_BKR1 = jnp.sum(weights_BKRS, axis=-1, keepdims=True)
        sums_BKRH = jnp.einsum("bkrs,bksh->bkrh", weights_BKRS.astype(value.dtype), value[:, :, :end])
        attended.append(_by_position((sums_BKRH / sums_BKR1).astype(value.dtype), query.shape[2]))
        normalizers.append(_by_position(greatest_BKR1 + jnp.log(sums_BKR1), query.shape[2]))
    result = jnp.concatenate(attended, axis=3)
    return result, (query, key, value, segments_BT, result, jnp.concatenate(normalizers, axis=3))


def _blocks_backward(kept: tuple[Array, ...], by_result: Array) -> tuple[Any, ...]:
    """The gradient, scores computed again (Dao et al. 2022, algorithm 4)."""
    query, key, value, segments_BT, result, normalizers = kept
    dtype, groups = query.dtype, query.shape[2]
    inner = jnp.sum(by_result.astype(jnp.float32) * result, axis=-1, keepdims=True)
    by_query, by_key, by_value = [], jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    for start, end in _blocks(query.shape[3]):
        rows = partial(_by_row, start=start, end=end)
        weights_BKRS = jnp.exp(_block_scores(query, key, segments_BT, start, end) - rows(normalizers))
        by_weights_BKRS = product("bkrh,bksh->bkrs", rows(by_result), value[:, :, :end])
        by_scores_BKRS = (weights_BKRS * (by_weights_BKRS - rows(inner))).astype(dtype)
        by_value_BKSH = product("bkrs,bkrh->bksh", weights_BKRS.astype(dtype), rows(by_result))
        by_key_BKSH = product("bkrs,bkrh->bksh", by_scores_BKRS, rows(query))
        by_value, by_key = by_value.at[:, :, :end].add(by_value_BKSH), by_key.at[:, :, :end].add(by_key_BKSH)
        by_query.append(_by_position(jnp.einsum("bkrs,bksh->bkrh", by_scores_BKRS, key[:, :, :end]), groups))
    return jnp.concatenate(by_query, axis=3), by_key.astype(dtype), by_value.astype(dtype), None


_attend_by_block.defvjp(_blocks_forward, _blocks_backward)


def _block_scores(query: Array, key: Array, segments_BT: Array, start: int, end: int) -> Array:
    """Masked scores of the queries of one block with the keys up to its end, in float32."""
    rows_BKRH = _by_row(query, start, end)
    scores_BKRS = jnp.einsum("bkrh,bksh->bkrs", rows_BKRH, key[:, :, :end], preferred_element_type=jnp.float32)
    causal_CS = jnp.arange(start, end)[:, None] >= jnp.arange(end)
    mask_BCS = causal_CS & (segments_BT[:, start:end, None] == segments_BT[:, None, :end])
    return jnp.where(jnp.tile(mask_BCS, (1, query.shape[2], 1))[:, None], scores_BKRS, MASKED)


def _by_row(x_BKGTH: Array, start: int, end: int) -> Array:
    """A block of positions of all heads of a group as rows of one matrix: [B, K, R, H]."""
    batch, kv_heads, groups, _, size = x_BKGTH.shape
    return x_BKGTH[:, :, :, start:end].reshape(batch, kv_heads, groups * (end - start), size)


def _by_position(x_BKRH: Array, groups: int) -> Array:
    """The inverse: [B, K, G, C, H]."""
    batch, kv_heads, _, size = x_BKRH.shape
    return x_BKRH.reshape(batch, kv_heads, groups, -1, size)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + CPU_BLOCK, length)) for start in range(0, length, CPU_BLOCK)]


def _splash(
    query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, segments_BT: Array, interpret: bool = False
) -> Array:
    """Splash attention, the TPU's flash attention for sparse masks: blocks above the diagonal are never computed."""
    length, heads, size = query_BTNH.shape[1:]
    if key_BTKH.shape[2] % axis_size("kv_heads"):  # each shard of the queries needs the keys of its own heads
        key_BTKH, value_BTKH = (jnp.repeat(array, heads // array.shape[2], axis=2) for array in (key_BTKH, value_BTKH))

    def one_shard(query_BNTH: Array, key_BKTH: Array, value_BKTH: Array, segments_BT: Array) -> tuple[Array]:
        block = next(size for size in (512, 256, 128) if length % size == 0)
        sizes: dict[str, Any] = dict.fromkeys(SPLASH_BLOCKS, block)
        kernel = splash.make_splash_mha(
            splash_mask.MultiHeadMask([splash_mask.CausalMask((length, length))] * query_BNTH.shape[1]),
            block_sizes=splash.BlockSizes(**sizes),
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=SAVED,
            interpret=interpret,
        )
        return (jax.vmap(kernel)(query_BNTH, key_BKTH, value_BKTH, splash.SegmentIds(segments_BT, segments_BT)),)

    query_BNTH, key_BKTH, value_BKTH = (x.swapaxes(1, 2) for x in (query_BTNH * size**-0.5, key_BTKH, value_BTKH))
    by_query, by_key = ("batch", "heads", None, None), ("batch", "kv_heads", None, None)
    sharded = in_shards(one_shard, (by_query, by_key, by_key, ("batch", None)), (by_query,), (query_BNTH.shape,))
    return sharded(query_BNTH, key_BKTH, value_BKTH, segments_BT)[0].swapaxes(1, 2)
