"""Mixtures hold exactly what was planned, and a batch is a function of its step."""

import numpy as np
import pytest

from sbp_jax.data.mixing import Plan, mix, plan_arm
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
