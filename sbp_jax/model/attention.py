"""Causal grouped-query attention within the documents of packed rows, one function with three backends.

Every backend takes segment ids: a position attends to itself and to what precedes it in its own segment.

Legend: B rows, T positions, N query heads, K key-value heads, H head dimension, C query and S key positions of a block.
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
from sbp_jax.parallel.sharding import axis_size, in_shards

Attention = Callable[[Array, Array, Array, Array], Array]
SAVED = "attention"  # name of the result that the remat policy `dots` keeps
MASKED = -1e30  # finite, so that a row of padding gives numbers
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
        "splash": platform in ("tpu", "cpu") and context % splash.NUM_LANES == 0,
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
    if asked == "splash":  # on a CPU Pallas is interpreted, which is slow and good for tests
        return partial(_splash, interpret=platform == "cpu")
    return _cudnn if asked == "cudnn" else xla


def xla(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """Attention as plain array operations."""
    attended = jax.lax.platform_dependent(
        query_BTNH, key_BTKH, value_BTKH, segments_BT, cpu=_by_head_and_block, default=_all_heads
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


def _by_head_and_block(query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, segments_BT: Array) -> Array:
    """One head and one block of queries at a time, for a CPU: all scores together do not fit its cache.

    A block of queries meets the keys up to its end alone, and its scores are computed again for the gradient.
    """
    length, heads, size = query_BTNH.shape[1:]
    keys_KBTH, values_KBTH = jnp.moveaxis(key_BTKH, 2, 0), jnp.moveaxis(value_BTKH, 2, 0)

    @partial(jax.checkpoint, static_argnums=(3, 4))
    def block(query_BTH: Array, key_BTH: Array, value_BTH: Array, start: int, end: int) -> Array:
        scores_BCS = jnp.einsum(
            "bch,bsh->bcs", query_BTH[:, start:end], key_BTH[:, :end], preferred_element_type=jnp.float32
        )
        causal_CS = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        mask_BCS = causal_CS & (segments_BT[:, start:end, None] == segments_BT[:, None, :end])
        weights_BCS = jax.nn.softmax(jnp.where(mask_BCS, scores_BCS, MASKED), axis=-1).astype(query_BTH.dtype)
        return jnp.einsum("bcs,bsh->bch", weights_BCS, value_BTH[:, :end])

    def one(head: tuple[Array, Array]) -> Array:
        number, query_BTH = head
        group = number // (heads // len(keys_KBTH))
        blocks = [(start, min(start + CPU_BLOCK, length)) for start in range(0, length, CPU_BLOCK)]
        scaled_BTH = query_BTH * size**-0.5
        parts = [block(scaled_BTH, keys_KBTH[group], values_KBTH[group], start, end) for start, end in blocks]
        return jnp.concatenate(parts, axis=1)

    return jnp.moveaxis(jax.lax.map(one, (jnp.arange(heads), jnp.moveaxis(query_BTNH, 2, 0))), 0, 2)


def _splash(query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, segments_BT: Array, *, interpret: bool) -> Array:
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
