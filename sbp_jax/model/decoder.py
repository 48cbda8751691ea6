"""The decoder: Qwen3-dense, layers scanned over stacked weights.

Legend: B batch, T query positions, S key positions, D width, N query heads, K key-value heads, H head dimension,
F feed-forward width, V vocabulary, L layers.
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
from sbp_jax.model.cached_attention import MASKED
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
            query, key, value = project(self.config, layer, x_BTD, positions_BT)
            return finish(self.config, layer, x_BTD, attend(query, key, value, segments_BT), dropout, number), None

        if remat != "none":
            body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)  # a scan has no common subexpressions
        scanned = (self.layers, jnp.arange(self.config.layers))
        return jax.lax.scan(body, self._embed(tokens_BT), scanned)[0]

    def _embed(self, tokens_BT: Array) -> Array:
        return embed(self.config, self.embedding[...], tokens_BT)

    def logits(self, x_BTD: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Next-token logits in float32 of hidden states, such as `hidden` returns."""
        return logits(self.vocabulary, *self.unembed(x_BTD))

    def unembed(self, x_BTD: Float[Array, "*B D"]) -> tuple[Float[Array, "*B D"], Float[Array, "V D"]]:
        """The two factors of the logits: normalised hidden states and the unembedding."""
        table = self.embedding if self.unembedding is None else self.unembedding
        return rms_norm(x_BTD, self.final_norm[...], self.config.norm_epsilon), table[...].astype(x_BTD.dtype)


def embed(config: Model, table_VD: Float[Array, "V D"], tokens_BT: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """The vectors that the first layer reads."""
    x_BTD = table_VD[tokens_BT].astype(config.dtype)
    return constrain(x_BTD, "batch", *(None,) * (x_BTD.ndim - 1))


def logits(vocabulary: int, normed_BTD: Float[Array, "*B D"], table_VD: Float[Array, "V D"]) -> Float[Array, "*B V"]:
    """Next-token logits in float32, those of rows that pad the table made impossible."""
    logits_BTV = jnp.einsum("...d,vd->...v", normed_BTD, table_VD, preferred_element_type=jnp.float32)
    return mask_padding(logits_BTV, vocabulary)


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


def project(config: Model, layer: Any, x_BTD: Array, positions_BT: Array) -> tuple[Array, Array, Array]:
    """Queries, keys and values of a layer, normalised and rotated."""
    normed_BTD = rms_norm(x_BTD, layer.attention_norm[...], config.norm_epsilon)
    dtype = x_BTD.dtype
    query_BTNH = _product(normed_BTD, layer.query[...].astype(dtype))
    key_BTKH = _product(normed_BTD, layer.key[...].astype(dtype))
    value_BTKH = _product(normed_BTD, layer.value[...].astype(dtype))
    if config.qk_norm:
        query_BTNH = rms_norm(query_BTNH, layer.query_norm[...], config.norm_epsilon)
        key_BTKH = rms_norm(key_BTKH, layer.key_norm[...], config.norm_epsilon)
    frequencies_h = _frequencies(config)
    return _rotate(query_BTNH, positions_BT, frequencies_h), _rotate(key_BTKH, positions_BT, frequencies_h), value_BTKH


def finish(
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
    normed_BTD = rms_norm(x_BTD, layer.ffn_norm[...], config.norm_epsilon)
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


def rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
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
