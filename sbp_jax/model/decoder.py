"""The decoder: Qwen3-dense, layers scanned over stacked weights.

Legend: B batch, T query positions, S key positions, D width, N query heads, K key-value heads, H head dimension,
F feed-forward width, V vocabulary, L layers, G query heads per key-value head, Z cache blocks of C positions each.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sbp_jax.config import Model
from sbp_jax.model import attention
from sbp_jax.model.cached_attention import MASKED, absorb, attention_start, by_group
from sbp_jax.parallel.sharding import constrain

VOCABULARY_MULTIPLE = 128


def padded_vocabulary(size: int) -> int:
    """Rows of the embedding table: the vocabulary rounded up, so that it divides over a mesh axis."""
    return math.ceil(size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def mask_padding(logits_V: Float[Array, "*B V"], vocabulary: int) -> Float[Array, "*B V"]:
    """Logits with those of the rows that pad the table made impossible."""
    if logits_V.shape[-1] == vocabulary:
        return logits_V
    return jnp.where(jnp.arange(logits_V.shape[-1]) < vocabulary, logits_V, MASKED)


def _weight(rngs: nnx.Rngs, dimensions: tuple[str, ...], shape: tuple[int, ...]) -> nnx.Param:
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32), dimensions=dimensions)


def _scale(dimensions: tuple[str, ...], shape: tuple[int, ...]) -> nnx.Param:
    return nnx.Param(jnp.ones(shape, jnp.float32), dimensions=dimensions)


class Cache(NamedTuple):
    """Keys and values of tokens read before, in blocks of positions: block z holds positions zC to zC + C - 1.

    Attributes:
      keys: [L, Z, B, K, H, C], transposed as the product with the queries wants them.
      values: [L, Z, B, K, C, H].
    """

    keys: Array
    values: Array


def empty_cache(config: Model, rows: int, blocks: int, length: int) -> Cache:
    """A cache of zeros: `blocks` blocks of `length` positions for each row."""
    shape = (config.layers, blocks, rows, config.kv_heads)
    return Cache(
        jnp.zeros((*shape, config.head_dim, length), config.dtype),
        jnp.zeros((*shape, length, config.head_dim), config.dtype),
    )


class Layers(nnx.Module):
    """All decoder layers, their weights stacked along a leading axis; inside the scan, one layer."""

    def __init__(self, config: Model, rngs: nnx.Rngs):
        layers, width, ffn, head = config.layers, config.width, config.ffn, config.head_dim
        self.attention_norm = _scale(("layers", "embed"), (layers, width))
        self.query = _weight(rngs, ("layers", "embed", "heads", "head_dim"), (layers, width, config.heads, head))
        self.key = _weight(rngs, ("layers", "embed", "kv_heads", "head_dim"), (layers, width, config.kv_heads, head))
        self.value = _weight(rngs, ("layers", "embed", "kv_heads", "head_dim"), (layers, width, config.kv_heads, head))
        self.query_norm = _scale(("layers", "head_dim"), (layers, head)) if config.qk_norm else None
        self.key_norm = _scale(("layers", "head_dim"), (layers, head)) if config.qk_norm else None
        self.output = _weight(rngs, ("layers", "heads", "head_dim", "embed"), (layers, config.heads, head, width))
        self.ffn_norm = _scale(("layers", "embed"), (layers, width))
        self.gate = _weight(rngs, ("layers", "embed", "ffn"), (layers, width, ffn))
        self.up = _weight(rngs, ("layers", "embed", "ffn"), (layers, width, ffn))
        self.down = _weight(rngs, ("layers", "ffn", "embed"), (layers, ffn, width))


class Decoder(nnx.Module):
    """A language model: tokens in, next-token logits out (SBP section 4: Llama-3 with QK-norm)."""

    def __init__(self, config: Model, vocabulary: int, rngs: nnx.Rngs):
        self.config, self.vocabulary = config, vocabulary
        rows = padded_vocabulary(vocabulary)
        self.embedding = _weight(rngs, ("vocabulary", "embed"), (rows, config.width))
        self.layers = Layers(config, rngs)
        self.final_norm = _scale(("embed",), (config.width,))
        self.unembedding = (
            None if config.tied_embeddings else _weight(rngs, ("vocabulary", "embed"), (rows, config.width))
        )

    def __call__(
        self, tokens_BT: Int[Array, "B T"], segments_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"]
    ) -> Float[Array, "B T V"]:
        """Logits in float32; a position attends to itself and what precedes it in its own segment."""
        return self.logits(self.hidden(tokens_BT, segments_BT, positions_BT))

    def hidden(
        self,
        tokens_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        attend: attention.Attention = attention.xla,
        remat: str = "none",
        dropout: "Dropout | None" = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states before the final norm.

        Args:
          attend: the attention backend.
          remat: what the backward pass computes again: "none", "full" or "dots".
          dropout: None while nothing is learned.
        """

        def body(x_BTD: Array, scanned: tuple[Layers, Array]) -> tuple[Array, None]:
            layer, number = scanned
            query, key, value = _project(self.config, layer, x_BTD, positions_BT)
            return _finish(self.config, layer, x_BTD, attend(query, key, value, segments_BT), dropout, number), None

        if remat != "none":
            body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)  # a scan has no common subexpressions
        scanned = (self.layers, jnp.arange(self.config.layers))
        return jax.lax.scan(body, self._embed(tokens_BT), scanned)[0]

    def extend(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        past: Cache,
        lengths_B: Int[Array, "B"],
        blocks: Int[Array, ""] | int,
        recent: Cache,
        index: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Reads T more tokens of each sequence, after those of `past` and then of `recent`.

        Rows of `recent` advance together, so a new token is one slice of it, where rows of `past` end at different
        places and writing them costs a scatter: the caller moves `recent` to `past` now and then. What a row computes
        does not depend on the other rows, nor on how many blocks they make it look at.

        Args:
          tokens_BT: the tokens.
          positions_BT: place of each token in its sequence.
          past: what was read before; not changed.
          lengths_B: positions of `past` that each row holds.
          blocks: leading blocks of `past` to attend to; they hold at least the greatest length.
          recent: one block of the tokens since; these T are stored at its columns `index` to `index + T - 1`.
          index: columns of `recent` in use.

        Returns:
          The hidden states before the final norm, and `recent` with the new keys and values.
        """
        block = past.keys.shape[-1]
        columns = jnp.arange(recent.keys.shape[-1])
        recent_mask_TC = columns <= index + jnp.arange(tokens_BT.shape[1])[:, None]

        def body(carry: tuple[Array, Cache], scanned: tuple[Layers, Array]) -> tuple[tuple[Array, Cache], None]:
            x_BTD, recent = carry
            layer, number = scanned
            query_BTNH, key_BTKH, value_BTKH = _project(self.config, layer, x_BTD, positions_BT)
            key_BKHT, value_BKTH = key_BTKH.transpose(0, 2, 3, 1), value_BTKH.transpose(0, 2, 1, 3)
            keys = jax.lax.dynamic_update_slice(recent.keys, key_BKHT[None, None], (number, 0, 0, 0, 0, index))
            values = jax.lax.dynamic_update_slice(recent.values, value_BKTH[None, None], (number, 0, 0, 0, index, 0))

            def look(z: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                mask_BC = z * block + jnp.arange(block) < lengths_B[:, None]
                return absorb(state, query_BKGTH, past.keys[number, z], past.values[number, z], mask_BC[:, None])

            query_BKGTH = by_group(query_BTNH, self.config.kv_heads)
            state = jax.lax.fori_loop(0, blocks, look, attention_start(query_BKGTH))
            _, sums, attended = absorb(state, query_BKGTH, keys[number, 0], values[number, 0], recent_mask_TC)
            attended_BKGTH = (attended / sums[..., None]).astype(x_BTD.dtype)
            attended_BTNH = attended_BKGTH.transpose(0, 3, 1, 2, 4).reshape(query_BTNH.shape)
            return (_finish(self.config, layer, x_BTD, attended_BTNH), Cache(keys, values)), None

        scanned = (self.layers, jnp.arange(self.config.layers))
        (x_BTD, recent), _ = jax.lax.scan(body, (self._embed(tokens_BT), recent), scanned)
        return x_BTD, recent

    def _embed(self, tokens_BT: Array) -> Array:
        x_BTD = self.embedding[...][tokens_BT].astype(self.config.dtype)
        return constrain(x_BTD, "batch", None, None)

    def logits(self, x_BTD: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Next-token logits in float32 of hidden states, such as `hidden` and `extend` return."""
        normed_BTD, table_VD = self.unembed(x_BTD)
        logits_BTV = jnp.einsum("...d,vd->...v", normed_BTD, table_VD, preferred_element_type=jnp.float32)
        return mask_padding(logits_BTV, self.vocabulary)

    def unembed(self, x_BTD: Float[Array, "*B D"]) -> tuple[Float[Array, "*B D"], Float[Array, "V D"]]:
        """The two factors of the logits: normalised hidden states and the unembedding."""
        x_BTD = _rms_norm(x_BTD, self.final_norm[...], self.config.norm_epsilon)
        return x_BTD, (self.embedding if self.unembedding is None else self.unembedding)[...].astype(x_BTD.dtype)


class Dropout(NamedTuple):
    """Dropout of what each layer adds to the residual stream.

    Attributes:
      rate: fraction that is dropped.
      keys_B: a random key for each row, so that what is dropped depends neither on the mesh nor on how a batch is cut.
    """

    rate: float
    keys_B: Array

    def __call__(self, x_BTD: Array, place: Array | int) -> Array:
        """Drops parts of `x_BTD`; `place` numbers the places of the model where that happens."""
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, place)
        keep = partial(jax.random.bernoulli, p=1 - self.rate, shape=x_BTD.shape[1:])
        return jnp.where(jax.vmap(keep)(keys_B), x_BTD / (1 - self.rate), 0).astype(x_BTD.dtype)


REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(attention.SAVED),
    ),
}


def _project(config: Model, layer: Any, x_BTD: Array, positions_BT: Array) -> tuple[Array, Array, Array]:
    """Queries, keys and values of a layer, normalised and rotated."""
    normed_BTD = _rms_norm(x_BTD, layer.attention_norm[...], config.norm_epsilon)
    dtype = x_BTD.dtype
    query_BTNH = _product(normed_BTD, layer.query[...].astype(dtype))
    key_BTKH = _product(normed_BTD, layer.key[...].astype(dtype))
    value_BTKH = _product(normed_BTD, layer.value[...].astype(dtype))
    if config.qk_norm:
        query_BTNH = _rms_norm(query_BTNH, layer.query_norm[...], config.norm_epsilon)
        key_BTKH = _rms_norm(key_BTKH, layer.key_norm[...], config.norm_epsilon)
    frequencies_h = _frequencies(config)
    return _rotate(query_BTNH, positions_BT, frequencies_h), _rotate(key_BTKH, positions_BT, frequencies_h), value_BTKH


def _finish(
    config: Model,
    layer: Any,
    x_BTD: Array,
    attended_BTNH: Array,
    dropout: Dropout | None = None,
    number: Array | int = 0,
) -> Array:
    """The rest of a layer after attention: output projection, feed-forward, residuals."""
    dtype = x_BTD.dtype
    added_BTD = _product(attended_BTNH, layer.output[...].astype(dtype), 2)
    x_BTD = x_BTD + (dropout(added_BTD, 2 * number) if dropout else added_BTD)
    normed_BTD = _rms_norm(x_BTD, layer.ffn_norm[...], config.norm_epsilon)
    gate_BTF = jax.nn.silu(_product(normed_BTD, layer.gate[...].astype(dtype)))
    up_BTF = _product(normed_BTD, layer.up[...].astype(dtype))
    added_BTD = _product(gate_BTF * up_BTF, layer.down[...].astype(dtype))
    x_BTD = x_BTD + (dropout(added_BTD, 2 * number + 1) if dropout else added_BTD)
    return constrain(x_BTD, "batch", None, None)


def _product(x: Array, weight: Array, contracted: int = 1) -> Array:
    """The product over the last `contracted` dimensions of x and the first ones of the weight, as one of two matrices.

    Written for B, T and heads apart, its gradient makes XLA transpose activations on a CPU, a quarter of a step.
    """
    rows, outputs = x.shape[: x.ndim - contracted], weight.shape[contracted:]
    inputs = math.prod(weight.shape[:contracted])
    return (x.reshape(-1, inputs) @ weight.reshape(inputs, -1)).reshape(*rows, *outputs)


def _rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (normed * scale).astype(x.dtype)


def _frequencies(config: Model) -> Array:
    """Radians a position by which each pair of a head turns, slowed down as Llama 3.1 does where the config says so."""
    half = config.head_dim // 2
    frequencies_h = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies_h
    turns_h = scaling.context * frequencies_h / (2 * math.pi)
    kept_h = (turns_h - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    kept_h = jnp.clip(kept_h, 0.0, 1.0)
    return frequencies_h * (kept_h + (1 - kept_h) / scaling.factor)


def _rotate(x_BTNH: Array, positions_BT: Array, frequencies_h: Array) -> Array:
    """Rotary position embedding on the two halves of each head, as Llama and Qwen checkpoints store them."""
    angles_BT1h = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies_h
    sin, cos = jnp.sin(angles_BT1h), jnp.cos(angles_BT1h)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)
