"""The arithmetic of a calibration: buckets, settings, speed."""

import math

import numpy as np
import pytest

from sbp_jax.calibration import held_out
from sbp_jax.calibration.calibrate import Asked, settings
from sbp_jax.calibration.texts import distinct
from sbp_jax.calibration.writing import steady
from sbp_jax.config import Synthesis


def test_buckets_are_sums_of_their_groups() -> None:
    """Guards means of means, a similarity at the border of two buckets, and an interval of groups of one seed."""
    similarity = np.array([0.7, 0.749, 0.75, 0.9, 0.95], np.float32)
    groups = held_out.Groups(np.array([1, 1, 2, 3, 3]), np.arange(5), similarity, [], [], 9)
    nats = {held_out.OWN: np.array([1.0, 2, 3, 4, 5]), held_out.OTHER: np.array([2.0, 5, 7, 1, 5])}
    told = held_out.compared(groups, nats, np.array([1.0, 9, 2, 3, 4]))
    assert [(part["from"], part["groups"], part["seeds"]) for part in told["buckets"]] == [
        *((0.7, 2, 1), (0.75, 1, 1), (0.9, 1, 1), (0.95, 1, 1))
    ]
    first = told["buckets"][0]
    assert first["bits_per_token"] == {"d2_given_d1": 0.3 / math.log(2), "d2_given_random": 0.7 / math.log(2)}
    assert first["saved"] == {"d2_given_random": [pytest.approx(0.4 / math.log(2)), None, None]}
    assert told["all"]["saved"]["d2_given_random"][0] == pytest.approx(5 / 19 / math.log(2))


def test_greedy_settings_have_no_nucleus_and_the_own_one_is_among_them() -> None:
    def found(synthesis: Synthesis) -> list[tuple[float, float]]:
        asked = Asked(1, 1, (1.0, 0.0), (1.0, 0.5))
        return [(sampling.temperature, sampling.top_p) for sampling in settings(synthesis, asked)]

    assert found(Synthesis(temperature=0.7, top_p=0.9)) == [(0, 1), (0.7, 0.9), (1, 0.5), (1, 1)]
    assert found(Synthesis(temperature=0, top_p=0.9)) == [(0, 0.9), (1, 0.5), (1, 1)]
    assert found(Synthesis(temperature=1, top_p=0.5)) == [(0, 1), (1, 0.5), (1, 1)]


def test_the_speed_leaves_out_filling_and_running_empty() -> None:
    """Ten documents of 10 tokens in two slots, a second apart; the first takes long, the last one too."""
    ends = [(0.0, 0), (100.0, 10), *((100.0 + second, 10) for second in range(1, 9)), (500.0, 10)]
    speed = steady(ends, 2)
    assert (speed.tokens, speed.seconds, speed.rate) == (60, 6.0, 10.0)
    assert steady([(0.0, 0), (2.0, 10)], 8).rate == 5.0


def test_distinct_grams_do_not_cross_documents() -> None:
    assert distinct(["a b c", "a b", "d"], 2) == pytest.approx(2 / 3)
    assert distinct(["a", ""], 2) is None
