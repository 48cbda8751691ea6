"""The decoder: packed documents never see one another, and checkpoints come back as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax import nnx

from sbp_jax.config import Model
from sbp_jax.model import huggingface, parameters
from sbp_jax.model.decoder import Decoder
from sbp_jax.model.tensor_layout import LAYER

MODEL = Model(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
VOCABULARY = 256


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(MODEL, VOCABULARY, nnx.Rngs(0))


def logits(decoder, tokens, segments=None, positions=None):
    tokens = jnp.asarray(tokens)[None]
    segments = jnp.ones_like(tokens) if segments is None else jnp.asarray(segments)[None]
    positions = jnp.arange(tokens.shape[1])[None] if positions is None else jnp.asarray(positions)[None]
    return np.asarray(decoder(tokens, segments, positions))[0]


def test_packed_documents_have_the_logits_they_have_alone(decoder):
    first, second = np.arange(1, 10), np.arange(50, 70)
    packed = logits(
        decoder,
        np.concatenate([first, second]),
        np.repeat([1, 2], [len(first), len(second)]),
        np.concatenate([np.arange(len(first)), np.arange(len(second))]),
    )
    np.testing.assert_allclose(packed[: len(first)], logits(decoder, first), atol=1e-5)
    np.testing.assert_allclose(packed[len(first) :], logits(decoder, second), atol=1e-5)


def test_a_position_does_not_see_what_follows(decoder):
    tokens = np.arange(1, 20)
    changed = tokens.copy()
    changed[10:] += 100
    before, after = logits(decoder, tokens), logits(decoder, changed)
    np.testing.assert_allclose(before[:10], after[:10], atol=1e-6)
    assert np.abs(before[10:] - after[10:]).max() > 1e-3


def reference(tensors: dict[str, np.ndarray], config: Model, tokens: np.ndarray) -> np.ndarray:
    """Logits of a Qwen3 checkpoint in float64, layer by layer, from nothing but numpy."""
    count, size, heads, groups = len(tokens), config.head_dim, config.heads, config.heads // config.kv_heads

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon) * tensors[f"{name}.weight"]

    def rotate(x):
        angles = np.arange(count)[:, None] * config.rope_base ** (-np.arange(0, size, 2) / size)
        turned = (x[..., : size // 2] + 1j * x[..., size // 2 :]) * np.exp(1j * angles)[:, None]
        return np.concatenate([turned.real, turned.imag], axis=-1)

    x = tensors["model.embed_tokens.weight"][tokens].astype(np.float64)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        linear = {name: tensors[f"{prefix}{name}.weight"].T for name, inputs in LAYER.values() if inputs}
        normed = norm(x, f"{prefix}input_layernorm")
        query, key, value = (normed @ linear[f"self_attn.{name}_proj"] for name in "qkv")
        query = rotate(norm(query.reshape(count, heads, size), f"{prefix}self_attn.q_norm"))
        key = rotate(norm(key.reshape(count, -1, size), f"{prefix}self_attn.k_norm")).repeat(groups, axis=1)
        value = value.reshape(count, -1, size).repeat(groups, axis=1)
        scores = np.einsum("thd,shd->hts", query, key) / np.sqrt(size)
        weights = np.exp(np.where(np.tri(count, dtype=bool), scores, -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shd->thd", weights, value).reshape(count, -1) @ linear["self_attn.o_proj"]
        normed = norm(x, f"{prefix}post_attention_layernorm")
        gate = normed @ linear["mlp.gate_proj"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ linear["mlp.up_proj"])) @ linear["mlp.down_proj"]
    table = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return norm(x, "model.norm") @ table.T


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_qwen3_written_out(tied, tmp_path):
    """Guards RoPE, QK-norm, grouping, feed-forward and the order of the layers: weights and norms are random."""
    config = Model(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, tied_embeddings=tied)
    random = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.state(Decoder(config, VOCABULARY, nnx.Rngs(0))))
    weights = jax.tree.map(lambda leaf: random.normal(leaf.mean(), 0.2, leaf.shape).astype(np.float32), shapes)
    tokens = np.arange(1, 20)
    ours = logits(parameters.bind(config, VOCABULARY, weights), tokens)
    huggingface.save(epath.Path(tmp_path), weights, config, VOCABULARY, 64, 0)
    theirs = reference(safetensors.numpy.load_file(tmp_path / "model.safetensors"), config, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
