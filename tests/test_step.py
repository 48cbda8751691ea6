"""One training step: the same numbers on every mesh, in pieces, with every remat policy; dropout; spikes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbp_jax.config import Execution, MeshShape, Model, Optimization
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.training import step as stepping
from sbp_jax.training.batches import whole_to_device
from sbp_jax.training.step import Setup, new_state, train_step

ROWS, CONTEXT, VOCABULARY = 8, 32, 100
MODEL = Model(width=16, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=32)
OPTIMIZATION = Optimization(context=CONTEXT, batch_rows=ROWS, peak_lr=1e-2, warmup=0.01, z_loss=1e-3)
FACTORS = [(d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0]
FEW = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]  # the others take their time


def make_batch(seed=0):
    """Rows of several documents, a part of whose targets bear no loss: pieces of it have unequal weights."""
    random = np.random.default_rng(seed)
    segments = np.sort(random.integers(1, 4, (ROWS, CONTEXT)), axis=1).astype(np.int32)
    starts = np.concatenate([np.ones((ROWS, 1), bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    places = np.arange(CONTEXT, dtype=np.int32)
    return {
        "tokens": random.integers(0, VOCABULARY, (ROWS, CONTEXT + 1)).astype(np.int32),
        "segments": segments,
        "positions": (places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)).astype(np.int32),
        "mask": random.random((ROWS, CONTEXT)) < np.linspace(0.1, 1, ROWS)[:, None],
        "stream": (np.arange(ROWS) % 2).astype(np.int32),
    }


def run(mesh=(8, 1, 1), devices=None, model=MODEL, optimization=OPTIMIZATION, batches=None, **execution):
    """Metrics of some steps, and the last state."""
    placed = build_mesh(MeshShape(*mesh), devices)
    setup = Setup(model, VOCABULARY, optimization, 100, 2, placed, Execution(**execution))
    state, step, metrics = new_state(setup, 0), train_step(setup), []
    for batch in batches or [make_batch(seed) for seed in range(3)]:
        state, made = step(state, whole_to_device(batch, placed))
        metrics.append(jax.device_get(made))
    return metrics, jax.device_get(state)


def assert_equal(ours, theirs, rtol=2e-5, atol=2e-6):
    """The metrics of every step, and the parameters, which hold all gradients."""
    for one, other in zip(ours[0], theirs[0], strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), one, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours[1].parameters, theirs[1].parameters)


@pytest.fixture(scope="module")
def one_device():
    return run((1, 1, 1), jax.devices()[:1])


@pytest.mark.parametrize(
    "mesh", [mesh if mesh in FEW else pytest.param(mesh, marks=pytest.mark.slow) for mesh in FACTORS]
)
def test_every_factorisation_of_eight_devices_gives_the_numbers_of_one(one_device, mesh):
    assert_equal(run(mesh), one_device, atol=5e-5)  # Adam's first steps are signs, which a rounding near zero turns


@pytest.mark.parametrize(("pieces", "mesh"), [(2, (1, 2, 1)), pytest.param(4, (2, 1, 1), marks=pytest.mark.slow)])
def test_gradients_of_pieces_add_up_to_those_of_the_batch(one_device, pieces, mesh):
    """Pieces have unequal numbers of targets, so that a mean of their means would be wrong."""
    assert_equal(run(mesh, jax.devices()[:2], accumulate=pieces), one_device, atol=5e-5)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_memory_and_no_number(one_device, remat):
    assert_equal(run((1, 1, 1), jax.devices()[:1], remat=remat), one_device)


def test_remat_keeps_less_for_the_backward_pass():
    """Guards against a policy that never reaches the layers."""
    wide, long = replace(MODEL, layers=8, ffn=256), replace(OPTIMIZATION, context=256)
    sizes = {}
    for remat in ("none", "dots", "full"):
        mesh = build_mesh(MeshShape(), jax.devices()[:1])
        setup = Setup(wide, VOCABULARY, long, 100, 2, mesh, Execution(remat=remat))
        arguments = stepping.abstract_state(setup), stepping.abstract_batch(setup)
        sizes[remat] = train_step(setup).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    assert sizes["full"] < sizes["dots"] < sizes["none"]


@pytest.mark.slow
def test_what_is_dropped_depends_neither_on_the_mesh_nor_on_the_pieces():
    dropping = replace(OPTIMIZATION, dropout=0.3)
    whole = run((1, 1, 1), jax.devices()[:1], optimization=dropping)
    assert_equal(run((2, 2, 2), optimization=dropping, accumulate=2), whole, atol=5e-5)
    without = run((1, 1, 1), jax.devices()[:1])
    assert abs(whole[0][0].nats - without[0][0].nats) > 1e-3
    again = run((1, 1, 1), jax.devices()[:1], optimization=dropping, batches=[make_batch(0)] * 2)
    assert abs(again[0][0].nats - again[0][1].nats) > 1e-3


def test_dropout_keeps_the_mean_and_drops_its_share():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4))
    dropped = np.asarray(stepping.Dropout(0.25, keys)(jnp.ones((4, 64, 64)), 3))
    assert abs((dropped == 0).mean() - 0.25) < 0.02 and abs(dropped.mean() - 1) < 0.03
    assert not np.array_equal(dropped[0], dropped[1])


def test_master_weights_moments_and_loss_stay_float32_in_bfloat16():
    metrics, state = run((2, 2, 2), model=replace(MODEL, dtype="bfloat16"))
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")} and metrics[0].nats.dtype == np.float32
    full, _ = run((2, 2, 2))
    np.testing.assert_allclose(metrics[0].nats, full[0].nats, rtol=2e-3)
    mesh = build_mesh(MeshShape())
    setup = Setup(replace(MODEL, dtype="bfloat16"), VOCABULARY, OPTIMIZATION, 9, 2, mesh, Execution())
    lowered = train_step(setup).lower(stepping.abstract_state(setup), stepping.abstract_batch(setup)).as_text()
    products = [line for line in lowered.splitlines() if "stablehlo.dot_general" in line]
    in_float32 = [line for line in products if line.split(" : ")[-1].count("bf16") < 2]
    assert len(products) > 20 and len(in_float32) <= 2, "all but the gradients of attention scores read bfloat16"


def test_targets_and_rows_are_counted_by_stream():
    batch = make_batch()
    metrics, _ = run(batches=[batch])
    expected = [batch["mask"][batch["stream"] == stream].sum() for stream in (0, 1)]
    assert metrics[0].targets.tolist() == expected and metrics[0].rows.tolist() == [4, 4]


def test_a_spike_is_left_out_and_a_lasting_rise_is_not(monkeypatch):
    """A batch whose gradient is far above the recent ones changes nothing but the step count."""
    monkeypatch.setattr(stepping, "SPIKE_START", 3)
    # Without loss but on one target the gradient is that of one token: several times the mean's.
    usual, spike = make_batch(), make_batch()
    spike["mask"] = np.zeros_like(spike["mask"])
    spike["mask"][0, 0] = True
    optimization = replace(OPTIMIZATION, peak_lr=1e-5, final_lr=1e-5, skip_spikes=1.5)  # it hardly learns
    train_step.cache_clear()
    metrics, state = run(optimization=optimization, batches=[usual] * 4 + [spike] + [usual])
    assert [bool(step.skipped) for step in metrics] == [False] * 4 + [True, False]
    assert metrics[4].gradient_norm > 1.5 * metrics[3].gradient_norm
    same, _ = run(optimization=optimization, batches=[usual] * 5)
    np.testing.assert_allclose(metrics[5].nats, same[4].nats, rtol=1e-6)
    assert state.step == 6
    lasting, _ = run(optimization=optimization, batches=[usual] * 4 + [spike] * 300)
    assert lasting[4].skipped and not lasting[-1].skipped
    train_step.cache_clear()


def test_an_update_that_is_not_finite_is_left_out():
    poisoned = replace(OPTIMIZATION, peak_lr=1e38, final_lr=1e38)
    metrics, state = run(optimization=poisoned, batches=[make_batch()] * 3)
    assert metrics[-1].skipped and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.optimizer))
