"""Optimizers by name, their masks, and learning rates by step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sbp_jax.config import Model, Optimization
from sbp_jax.errors import SbpError
from sbp_jax.model.decoder import Decoder
from sbp_jax.training.optimizer import optimizer, schedule

MODEL = Model(width=16, layers=3, heads=4, kv_heads=2, head_dim=8, ffn=32, tied_embeddings=False)
NO_CLIP = Optimization(clip=1e9, weight_decay=0.1)


@pytest.fixture(scope="module")
def parameters():
    return nnx.to_pure_dict(nnx.state(Decoder(MODEL, 128, nnx.Rngs(0))))


@pytest.fixture(scope="module")
def gradients(parameters):
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), parameters)


def update(optimization, parameters, gradients):
    transform = optimizer(optimization)
    return transform.update(gradients, transform.init(parameters), parameters)[0]


def test_adamw_is_optax_adamw(parameters, gradients):
    ours = update(NO_CLIP, parameters, gradients)
    plain = optax.adamw(1.0, b1=0.9, b2=0.95, weight_decay=0.1)
    theirs = plain.update(gradients, plain.init(parameters), parameters)[0]
    for name in ("query", "down"):
        np.testing.assert_allclose(ours["layers"][name], theirs["layers"][name], atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "sgd"])
def test_weight_decay_shrinks_matrices_and_leaves_norms(parameters, gradients, name):
    """Stacked norms are two-dimensional, which a mask by dimensions would take for matrices."""
    decaying, not_decaying = (
        update(replace(NO_CLIP, optimizer=name, weight_decay=decay), parameters, gradients) for decay in (0.1, 0.0)
    )
    difference = jax.tree.map(lambda a, b: a - b, decaying, not_decaying)
    flat = jax.tree_util.tree_flatten_with_path(difference)[0]
    for path, change in flat:
        source = parameters
        for key in path:
            source = source[key.key]
        norm = path[-1].key.endswith("norm")
        np.testing.assert_allclose(change, jnp.zeros_like(source) if norm else -0.1 * source, atol=1e-6)


def test_muon_turns_each_layers_matrix_and_leaves_the_tables_to_adam(parameters, gradients):
    """Guards against optax's guess, which gives Muon to the embedding and Adam to the stacked layers."""
    plain = replace(NO_CLIP, weight_decay=0.0)
    muon = update(replace(plain, optimizer="muon"), parameters, gradients)
    nesterov = optax.adamw(1.0, b1=0.9, b2=0.95, weight_decay=0.0, nesterov=True)  # as optax's Muon has it
    adam = nesterov.update(gradients, nesterov.init(parameters), parameters)[0]
    for name in ("embedding", "unembedding", "final_norm"):
        np.testing.assert_allclose(muon[name], adam[name], atol=1e-5)
    inputs = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1}
    for name, dimensions in inputs.items():
        for layer in np.asarray(muon["layers"][name]):
            matrix = layer.reshape(int(np.prod(layer.shape[:dimensions])), -1)
            singular = np.linalg.svd(matrix, compute_uv=False)
            assert singular.max() / singular.min() < 2.5, f"{name} is not close to orthogonal"
            size = 0.2 * np.sqrt(max(matrix.shape))
            assert 0.6 * size < singular.mean() < 1.3 * size
    np.testing.assert_allclose(muon["layers"]["query_norm"], adam["layers"]["query_norm"], atol=1e-5)


def test_clipping_bounds_the_global_norm(parameters, gradients):
    clipped = replace(NO_CLIP, optimizer="sgd", clip=0.5, weight_decay=0.0)
    np.testing.assert_allclose(optax.tree.norm(update(clipped, parameters, gradients)), 0.5, rtol=1e-5)


def test_cosine_rises_to_the_peak_and_falls_to_the_final_rate():
    rate = schedule(Optimization(peak_lr=1e-2, final_lr=5e-5, warmup=0.05), 1000)
    assert rate(0) == 0
    np.testing.assert_allclose([rate(25), rate(50), rate(525), rate(1000)], [5e-3, 1e-2, 5.025e-3, 5e-5], rtol=1e-5)


def test_warmup_stable_decay_has_a_plateau():
    rate = schedule(Optimization(peak_lr=1e-2, final_lr=1e-4, warmup=0.1, schedule="wsd", decay=0.2), 1000)
    steps = [0, 50, 100, 500, 800, 900, 1000]
    np.testing.assert_allclose([rate(step) for step in steps], [0, 5e-3, 1e-2, 1e-2, 1e-2, 5.05e-3, 1e-4], rtol=1e-5)


@pytest.mark.parametrize("name", ["adammw", "chain", "clip_by_global_norm", "adafactor", "fromage", "scale_by_rprop"])
def test_a_name_that_is_no_optimizer_is_an_error(name):
    with pytest.raises(SbpError, match=f"optimizer={name}"):
        optimizer(Optimization(optimizer=name))
