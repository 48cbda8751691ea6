"""Sampling: the distribution, the nucleus, the keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbp_jax.generation.sampling import row_keys, sample

VOCABULARY = 300  # not a multiple of the draw's block


def _logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32) * 2


def _limits(rows: int, temperature: float, top_p: float = 1.0, top_k: int = 0) -> tuple[jax.Array, ...]:
    return jnp.full(rows, temperature), jnp.full(rows, top_p), jnp.full(rows, top_k)


def _draws(
    logits: np.ndarray, valid: np.ndarray, temperature: float, top_p: float, draws: int = 60_000, top_k: int = 0
) -> np.ndarray:
    origins = np.zeros((draws, 3), np.uint32)
    origins[:, 0] = np.arange(draws)
    rows, limits = jnp.broadcast_to(logits, (draws, VOCABULARY)), _limits(draws, temperature, top_p, top_k)
    draw = jax.jit(lambda: sample(rows, row_keys(3, jnp.asarray(origins)), jnp.asarray(valid), *limits)[0])
    return np.asarray(draw())


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """The set by its definition, with a sort."""
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    inside = np.zeros(len(probabilities), bool)
    inside[order[before < top_p]] = True
    return inside


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.0, 0.9, 0), (1.3, 0.5, 0), (1.0, 0.05, 0), (1.0, 1.0, 12), (1.0, 0.7, 40)],
)
def test_frequencies_are_those_of_the_renormalised_nucleus(temperature: float, top_p: float, top_k: int) -> None:
    """Guards against a nucleus of another size, a biased rejection, a temperature applied twice or not at all."""
    logits, valid = _logits(0), np.ones(VOCABULARY, bool)
    valid[[5, 17, 290]] = False
    scaled = np.where(valid, logits.astype(np.float64) / temperature, -np.inf)
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    inside = _nucleus(probabilities, top_p)
    if top_k:
        inside &= probabilities >= np.sort(probabilities)[-top_k]
    expected = np.where(inside, probabilities, 0) / probabilities[inside].sum()

    counts = np.bincount(_draws(logits, valid, temperature, top_p, top_k=top_k), minlength=VOCABULARY)
    assert not np.any(counts[~inside | ~valid])
    enough = expected * counts.sum() >= 5
    chi_square = np.sum((counts - expected * counts.sum())[enough] ** 2 / (expected * counts.sum())[enough])
    freedom = max(int(enough.sum()) - 1, 1)
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_nucleus_holds_exactly_the_tokens_of_the_definition() -> None:
    """Guards against an off-by-one at the threshold: the token that crosses top_p belongs to the nucleus."""
    logits, valid = np.full(VOCABULARY, -30, np.float32), np.ones(VOCABULARY, bool)
    logits[:4] = np.log([0.4, 0.3, 0.2, 0.1])
    assert set(_draws(logits, valid, 1.0, 0.69, 2000)) == {0, 1}
    assert set(_draws(logits, valid, 1.0, 0.71, 2000)) == {0, 1, 2}


def test_ties_at_the_threshold_are_all_kept() -> None:
    """Guards against an order of tokens deciding which of equals may be drawn."""
    logits = np.full(VOCABULARY, -30, np.float32)
    logits[[3, 130, 299]] = 0
    assert set(_draws(logits, np.ones(VOCABULARY, bool), 1.0, 0.4, 2000)) == {3, 130, 299}


def test_temperature_zero_takes_the_most_probable_valid_token_and_reports_its_log_probability() -> None:
    logits, valid = np.stack([_logits(1), _logits(2)]), np.ones(VOCABULARY, bool)
    valid[logits[0].argmax()] = False
    keys = row_keys(0, jnp.zeros((2, 3), jnp.uint32))
    tokens, logprobs, finite = sample(jnp.asarray(logits), keys, jnp.asarray(valid), *_limits(2, 0.0, 0.9))
    masked = np.where(valid, logits, -np.inf)
    np.testing.assert_array_equal(tokens, masked.argmax(-1))
    np.testing.assert_allclose(logprobs, masked.max(-1) - np.log(np.exp(masked).sum(-1)), rtol=1e-5)
    assert np.all(finite)


def test_logits_that_are_no_numbers_are_reported_and_end_the_search() -> None:
    """Guards against a rejection that never accepts: a NaN compares as false with everything."""
    logits = np.stack([_logits(1)] * 3)
    logits[1, 7], logits[2, 7] = np.nan, np.inf
    keys = row_keys(0, jnp.zeros((3, 3), jnp.uint32))
    _, _, finite = jax.jit(
        lambda: sample(jnp.asarray(logits), keys, jnp.ones(VOCABULARY, bool), *_limits(3, 1.0, 0.9))
    )()
    np.testing.assert_array_equal(finite, [True, False, False])


def test_keys_depend_on_every_counter_and_not_on_the_batch() -> None:
    origins = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], np.uint32)
    keys = jax.random.key_data(row_keys(0, jnp.asarray(origins)))
    assert len({tuple(key) for key in keys.tolist()}) == 4
    np.testing.assert_array_equal(jax.random.key_data(row_keys(0, jnp.asarray(origins[2:3])))[0], keys[2])
    np.testing.assert_array_equal(keys[1], keys[4])
    assert not np.array_equal(jax.random.key_data(row_keys(1, jnp.asarray(origins))), keys)


def test_each_row_has_its_own_limits_and_none_of_them_reaches_another() -> None:
    """Guards against limits of one row used for all, and a greedy row that draws because its neighbour does."""
    logits, valid = np.stack([_logits(1)] * 4), np.ones(VOCABULARY, bool)
    keys = row_keys(0, jnp.asarray(np.arange(12).reshape(4, 3), jnp.uint32))
    limits = jnp.array([0.0, 1.0, 0.5, 2.0]), jnp.array([1.0, 0.9, 1.0, 0.5]), jnp.array([0, 0, 3, 7])
    together = sample(jnp.asarray(logits), keys, jnp.asarray(valid), *limits)[0]
    for row in range(4):
        alone = sample(
            jnp.asarray(logits[row : row + 1]),
            keys[row : row + 1],
            jnp.asarray(valid),
            *(x[row : row + 1] for x in limits),
        )
        assert alone[0][0] == together[row]
    assert together[0] == logits[0].argmax()
