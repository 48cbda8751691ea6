"""Mixtures hold exactly what was planned, and a batch is a function of its step."""

import numpy as np
import pytest

from sbp_jax.data.mixing import Plan, mix, places, plan_arm, plan_megadoc
from sbp_jax.data.rows import Row

CONTEXT = 4


class Rows:
    """Rows that carry their own index as their document."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        ones = np.ones(CONTEXT, np.int32)
        return Row(np.ones(CONTEXT + 1, np.int32), ones, ones, np.full(CONTEXT, index, np.int64), ones.astype(bool))


def read(plan: Plan, batch_rows: int = 4, seed: int = 0) -> list[tuple[int, int]]:
    streams = {name: Rows(count) for name, count in plan.available.items()}
    batches = mix(streams, plan, batch_rows, seed)
    seen = []
    for step in range(len(batches)):
        batch = batches[step]
        seen += list(zip(batch["stream"].tolist(), batch["documents"][:, 0].tolist(), strict=True))
    return seen


@pytest.mark.parametrize("synthetic", [1, 37, 59, 300, 639])
def test_counts_are_exact_and_synthetic_rows_are_read_at_most_once(synthetic):
    plan = Plan({"real": 640 - synthetic, "synthetic": synthetic}, {"real": 50, "synthetic": synthetic + 3})
    seen = read(plan)
    assert len(seen) == 640
    rows = [row for stream, row in seen if stream == 1]
    assert len(rows) == synthetic == len(set(rows))


def test_each_pass_over_the_real_rows_reads_each_once_in_a_new_order():
    seen = [row for _, row in read(Plan({"real": 40}, {"real": 20}))]
    first, second = seen[:20], seen[20:]
    assert sorted(first) == sorted(second) == list(range(20)) and first != second


def test_streams_are_spread_evenly_over_the_run():
    seen = read(Plan({"real": 480, "synthetic": 160}, {"real": 50, "synthetic": 160}))
    for start in range(0, 640, 64):
        assert sum(stream for stream, _ in seen[start : start + 64]) == 16


def test_real_rows_fill_the_place_of_synthetic_ones_that_are_missing():
    plan = plan_arm(100, CONTEXT, 0.5, Rows(10), Rows(30))
    assert plan.rows == {"real": 70, "synthetic": 30}
    assert plan.epochs == {"real": 7.0, "synthetic": 1.0}
    assert plan_arm(100, CONTEXT, 0.0, Rows(10), None).rows == {"real": 100}


STREAMS = {"real": 50, "synthetic": 170}


@pytest.mark.parametrize(("real", "synthetic"), [(480, 160), (1, 159), (640, 0), (0, 160)])
def test_staged_runs_read_the_rows_of_uniform_ones_with_the_synthetic_ones_first(real, synthetic):
    """Another set of rows would be another mixture, and the order would not be all that differs."""
    rows = {"real": real, "synthetic": synthetic} if synthetic else {"real": real}
    uniform, staged = read(Plan(rows, STREAMS)), read(Plan(rows, STREAMS, order="staged"))
    assert sorted(uniform) == sorted(staged) and len(staged) == real + synthetic
    assert [stream for stream, _ in staged] == [1] * synthetic + [0] * real
    for stream in (0, 1):
        assert [row for of, row in staged if of == stream] == [row for of, row in uniform if of == stream]


@pytest.mark.parametrize("order", ["uniform", "staged"])
def test_places_are_where_the_batches_have_their_rows_and_any_step_can_be_resumed(order):
    """Lineage asks `places`, a resumed run slices `mix`; neither may tell another order than the whole run."""
    plan = Plan({"real": 44, "synthetic": 36}, STREAMS, order=order)
    where = places(plan, seed=3)
    seen = read(plan, seed=3)
    assert [tuple(map(int, where[place])) for place in range(len(where))] == seen
    batches = mix({name: Rows(count) for name, count in STREAMS.items()}, plan, 4, 3)
    for done in (0, 7, 10, 19):
        rest = [row for batch in batches[done:] for row in batch["documents"][:, 0].tolist()]
        assert rest == [row for _, row in seen[4 * done :]]


def test_megadocs_are_cut_where_their_synthetic_targets_make_up_the_share():
    """Their real documents must not count: a share of rows would give the arm half the synthetic text of the others."""
    synthetic_R = np.random.default_rng(0).integers(0, CONTEXT + 1, 300)
    for share in (0.0, 0.1, 0.25, 0.4):
        plan = plan_megadoc(200, CONTEXT, share, Rows(50), synthetic_R)
        taken, wanted = plan.rows.get("megadoc", 0), share * 200 * CONTEXT
        held = int(synthetic_R[:taken].sum())
        assert plan.synthetic.get("megadoc", 0) == held and abs(held - wanted) <= CONTEXT
        assert plan.rows["real"] + taken == 200 == sum(plan.rows.values())
        assert ("megadoc" in plan.rows) == (share > 0)
    plan = plan_megadoc(200, CONTEXT, 0.9, Rows(50), synthetic_R[:20])
    assert plan.rows == {"real": 180, "megadoc": 20} and plan.epochs["megadoc"] == 1.0, "too few: all, and real rows"
    assert plan_megadoc(200, CONTEXT, 0.9, Rows(50), synthetic_R).rows == {"real": 0, "megadoc": 200}
