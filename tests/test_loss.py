"""The chunked vocabulary loss equals the plain one, in value and gradient, on every mesh, and stores no logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbp_jax.config import MeshShape
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.parallel.sharding import activations
from sbp_jax.training import loss

ROWS, LENGTH, WIDTH, PADDED, VOCABULARY, Z_LOSS = 8, 48, 16, 128, 100, 0.01


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (ROWS, LENGTH, WIDTH))
    table = jax.random.normal(keys[1], (PADDED, WIDTH))
    targets = jax.random.randint(keys[2], (ROWS, LENGTH), 0, VOCABULARY)
    weights = jax.random.uniform(keys[3], (ROWS, LENGTH)) * (jax.random.uniform(keys[0], (ROWS, LENGTH)) < 0.7)
    return hidden, table, targets, weights


def plain(hidden, table, targets, weights):
    logits = jnp.einsum("btd,vd->btv", hidden, table)[..., :VOCABULARY]
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    nats = normalizer - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (nats + Z_LOSS * normalizer**2)), nats


def chunked(hidden, table, targets, weights):
    return loss.weighted_loss(hidden, table, targets, weights, VOCABULARY, Z_LOSS)


@pytest.mark.parametrize("chunk", [1, 24, 10_000])
def test_loss_and_gradients_are_those_of_whole_logits(inputs, monkeypatch, chunk):
    monkeypatch.setattr(loss, "CHUNK_TOKENS", chunk)
    scaled = [lambda *x, f=f: (3.0 * f(*x)[0], f(*x)[1]) for f in (plain, chunked)]
    ours, theirs = (jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(*inputs) for f in scaled)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, theirs)
    np.testing.assert_allclose(loss.target_nats(*inputs[:3], VOCABULARY), theirs[0][1], rtol=2e-5)
    by_table = theirs[1][1]
    assert np.abs(by_table[:VOCABULARY]).min(axis=1).max() > 0 and not by_table[VOCABULARY:].any(), (
        "padding learns nothing"
    )


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 2, 4)])
@pytest.mark.parametrize("rows", [ROWS, 3])
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(inputs, monkeypatch, shape, rows):
    """Three rows divide over few of these meshes; then each device computes all of them."""
    inputs = (inputs[0][:rows], inputs[1], *(x[:rows] for x in inputs[2:]))
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 16)
    mesh = build_mesh(MeshShape(*shape))
    differentiated = jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True)
    with activations(mesh):
        sharded = jax.jit(differentiated)(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), sharded, differentiated(*inputs))


def loops(jaxpr) -> list[str]:
    """The bodies of all loops, at any depth."""
    found = []
    for equation in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        inner = [value for value in inner if hasattr(value, "eqns")]
        found += [str(value) for value in inner] if equation.primitive.name == "scan" else sum(map(loops, inner), [])
    return found


def test_devices_exchange_the_table_once_and_not_for_every_chunk(inputs, monkeypatch):
    """Guards what sharding by hand is for: no gather of the table and no sum of its gradient inside the loop."""
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 6)
    with activations(build_mesh(MeshShape(data=2, fsdp=4, tensor=1))):
        traced = jax.make_jaxpr(jax.grad(lambda *x: chunked(*x)[0], argnums=(0, 1)))(*inputs)
    bodies = loops(traced.jaxpr)
    for collective in ("all_gather", "reduce_scatter"):
        assert str(traced).count(f"{collective}[") == 1
        assert bodies and not any(collective in body for body in bodies)


def test_no_array_has_the_logits_of_all_positions(inputs, monkeypatch):
    """Guards against a chunk that the compiler, or a careless edit, puts back together."""
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 16)
    compiled = {}
    for name, function in (("plain", plain), ("chunked", chunked)):
        lowered = jax.jit(jax.grad(function, argnums=(0, 1), has_aux=True)).lower(*inputs)
        shapes = re.findall(r"f32\[([\d,]+)\]", lowered.compile().as_text())
        sizes = [np.prod([int(size) for size in shape.split(",")]) for shape in shapes]
        compiled[name] = max(sizes)
    assert compiled["plain"] >= ROWS * LENGTH * VOCABULARY
    assert compiled["chunked"] < ROWS * LENGTH * VOCABULARY / 2
