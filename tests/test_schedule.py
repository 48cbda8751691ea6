"""The schedule of seeds: each once in a pass, no document asked for twice, the same from any number on."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sbp_jax.data.schedule import Schedule

SEEDS = np.array([3, 8, 9, 20, 21, 40, 77])


@pytest.mark.parametrize("samples", [1, 3])
def test_every_pass_has_each_seed_once_and_no_document_is_asked_for_twice(samples):
    """A seed drawn with replacement gives some documents twice the weight, and a sample number twice the same text."""
    size = len(SEEDS) * samples
    passes = np.array([Schedule(SEEDS, samples, 5).request(number) for number in range(4 * size)]).reshape(4, size, 2)
    for turn, requests in enumerate(passes):
        blocks = requests.reshape(len(SEEDS), samples, 2)
        assert np.array_equal(np.sort(blocks[:, 0, 0]), SEEDS)
        assert (blocks[:, :, 0] == blocks[:, :1, 0]).all()
        assert (blocks[:, :, 1] == turn * samples + np.arange(samples)).all()
    assert len({tuple(request) for request in passes.reshape(-1, 2).tolist()}) == 4 * size
    orders = passes[:, ::samples, 0]
    assert len({tuple(order) for order in orders.tolist()}) == 4


def test_a_request_is_a_function_of_its_number():
    """A run that goes on in the middle, or asks for its shards in another order, must ask for the same documents."""
    schedule = Schedule(SEEDS, 2, 0)
    whole = [schedule.request(number) for number in range(60)]
    for start in (0, 13, 14, 59):
        assert [Schedule(SEEDS, 2, 0).request(number) for number in range(start, 60)] == whole[start:]
    shuffled = np.random.default_rng(0).permutation(60).tolist()
    assert [schedule.request(number) for number in shuffled] == [whole[number] for number in shuffled]
    assert [Schedule(SEEDS, 2, 1).request(number) for number in range(60)] != whole


def test_the_order_of_a_pass_is_drawn_once():
    """At sixty million seeds a draw takes seconds: one for each request would never end."""
    seeds = np.arange(1000)
    schedule = Schedule(seeds, 1, 0)
    first = schedule.request(len(seeds))
    assert first == (int(np.random.default_rng([0, 1]).permutation(seeds)[0]), 1)
    before, after = schedule._order(1), schedule._order(2)
    assert schedule.request(len(seeds)) == first and schedule._order(1) is before and schedule._order(2) is after


def test_threads_may_ask_on_both_sides_of_the_end_of_a_pass():
    """Copies of a model ask side by side: one must not take away the order in which another looks up its seed."""
    seeds = np.arange(3)
    schedule, expected = Schedule(seeds, 1, 0), [Schedule(seeds, 1, 0).request(number) for number in range(600)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(schedule.request, [*range(600)] * 20)) == expected * 20


def test_a_schedule_of_nothing_is_a_fault():
    with pytest.raises(ValueError, match="0 seeds"):
        Schedule(SEEDS[:0], 1, 0)
