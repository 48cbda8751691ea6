"""Packed documents never see one another, whatever computes the attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbp_jax.config import MeshShape, Model
from sbp_jax.errors import SbpError
from sbp_jax.model import attention
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.parallel.sharding import activations

ROWS, LENGTH, SIZE = 2, 256, 64
SEGMENTS = np.stack([np.repeat([1, 2, 3, 0], [100, 30, 100, 26]), np.repeat([1, 2], [129, 127])])
MODEL = Model(heads=4, kv_heads=2, head_dim=SIZE)
BACKENDS = {
    "by block": attention._by_block,
    "all heads": attention._all_heads,
    "splash": partial(attention._splash, interpret=True),
}


def operands(heads=4, kv_heads=2, rows=ROWS):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, LENGTH, count, SIZE) for count in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def reference(query, key, value, segments):
    """In float64, document by document, from nothing but numpy."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    groups = query.shape[2] // key.shape[2]
    result = np.zeros_like(query)
    for row, head in np.ndindex(query.shape[0], query.shape[2]):
        for segment in np.unique(segments[row]):
            place = segments[row] == segment
            q, k, v = query[row, place, head], key[row, place, head // groups], value[row, place, head // groups]
            scores = np.where(np.tri(len(q), dtype=bool), q @ k.T / np.sqrt(SIZE), -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            result[row, place, head] = weights / weights.sum(axis=1, keepdims=True) @ v
    return result


@pytest.mark.parametrize("name", BACKENDS)
def test_attention_is_that_of_each_document_alone(name):
    inputs = operands()
    np.testing.assert_allclose(
        BACKENDS[name](*inputs, jnp.asarray(SEGMENTS)),
        reference(*inputs, SEGMENTS),
        atol=1e-4 if name == "splash" else 2e-6,
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_no_gradient_flows_from_one_document_to_another(name):
    """The leak that a mask alone in the forward pass would leave: all of the first document's inputs, and only they."""
    weight = jnp.asarray(SEGMENTS == 1)[:, :, None, None]
    gradients = jax.grad(lambda x: jnp.sum(BACKENDS[name](*x, jnp.asarray(SEGMENTS)) ** 2 * weight))(operands())
    for gradient in gradients:
        reached = np.abs(np.asarray(gradient)).max(axis=(2, 3)) > 0
        # The last query and keys of a document matter to it; a first query sees itself alone and learns nothing.
        assert not reached[SEGMENTS != 1].any() and reached[SEGMENTS == 1].mean() > 0.95


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_are_those_of_plain_attention(name):
    inputs, segments = operands(), jnp.asarray(SEGMENTS)

    def total(attend):
        return jax.grad(lambda x: jnp.sum(jnp.sin(attend(*x, segments))))(inputs)

    for ours, theirs in zip(total(BACKENDS[name]), total(attention._all_heads), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3 if name == "splash" else 5e-5)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 4), (8, 1, 1)])
def test_splash_in_shards_is_splash_whole(shape):
    """With four tensor shards and two key-value heads the keys have to be repeated."""
    inputs, segments = operands(rows=8), jnp.asarray(np.resize(SEGMENTS, (8, LENGTH)))
    with activations(build_mesh(MeshShape(*shape))):
        sharded = jax.jit(BACKENDS["splash"])(*inputs, segments)
    np.testing.assert_allclose(sharded, BACKENDS["all heads"](*inputs, segments), atol=1e-4)


def test_the_backend_follows_the_device_and_the_shapes():
    bf16 = Model(head_dim=64, dtype="bfloat16")
    chosen = {
        ("auto", "cpu", MODEL, 256): attention.xla,
        ("auto", "gpu", MODEL, 256): attention.xla,  # cuDNN has no float32
        ("auto", "gpu", bf16, 256): attention._cudnn,
        ("auto", "tpu", bf16, 96): attention.xla,
        ("xla", "tpu", bf16, 256): attention.xla,
    }
    assert {case: attention.choose(*case) for case in chosen} == chosen
    assert attention.choose("auto", "tpu", bf16, 256) is attention._splash
    refused = (("cudnn", "cpu", 256), ("splash", "gpu", 256), ("splash", "cpu", 256), ("splash", "tpu", 96))
    for asked, platform, context in refused:
        with pytest.raises(SbpError, match=f"execution.attention={asked} does not run here"):
            attention.choose(asked, platform, bf16, context)
