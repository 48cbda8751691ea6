"""Mixing streams of packed rows at exact rates, so that the batch of any step is a function of the step alone.

Rows all bear the same number of target positions, so rates in rows are rates in tokens. A row of megadocs holds both
synthetic and real targets; the synthetic ones count for the rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np

from sbp_jax.data.rows import Row, RowSource

Batch = dict[str, np.ndarray]  # a Row's arrays with a leading batch dimension, and "stream" [B]


@dataclass(frozen=True)
class Plan:
    """How many rows of each stream a run reads.

    Attributes:
      rows: rows to read, by stream; a stream with fewer is repeated.
      available: rows that the stream has.
      row_tokens: target positions of a row where all rows bear as many, otherwise None.
      order: uniform, each stream spread evenly over the run, or staged: the last stream first, the first one last.
      synthetic: of a stream that holds both, how many of the planned targets are synthetic.
    """

    rows: Mapping[str, int]
    available: Mapping[str, int]
    row_tokens: int | None = None
    order: str = "uniform"
    synthetic: Mapping[str, int] = field(default_factory=dict)

    @property
    def epochs(self) -> dict[str, float]:
        return {name: rows / self.available[name] for name, rows in self.rows.items()}


def plan_arm(
    total_rows: int,
    context: int,
    synthetic_share: float,
    real: RowSource,
    synthetic: RowSource | None,
    order: str = "uniform",
) -> Plan:
    """Rows of the real and the synthetic stream for an arm (SBP, step 3).

    Synthetic rows are read at most once: where there are fewer than the share asks for, real rows fill the rest.
    """
    wanted = round(total_rows * synthetic_share)
    taken = min(wanted, len(synthetic)) if synthetic is not None else 0
    rows, available = {"real": total_rows - taken}, {"real": len(real)}
    if synthetic is not None and taken:
        rows["synthetic"], available["synthetic"] = taken, len(synthetic)
    return Plan(rows, available, context, order)


def plan_megadoc(
    total_rows: int,
    context: int,
    synthetic_share: float,
    real: RowSource,
    synthetic_R: np.ndarray,
    order: str = "uniform",
) -> Plan:
    """Rows of the real stream and of that of megadocs, which is cut behind the row that makes up the share.

    Of the first rows of the megadocs as many are read, each once, as bring the synthetic targets nearest to the share
    of all targets of the run. Where all together have fewer, real rows fill the rest.

    Args:
      synthetic_R: synthetic targets of each full row of the megadocs, in order.
    """
    held = np.concatenate(([0], np.cumsum(synthetic_R[:total_rows], dtype=np.int64)))
    taken = int(np.argmin(np.abs(held - synthetic_share * total_rows * context)))
    rows, available = {"real": total_rows - taken}, {"real": len(real)}
    if taken:
        rows["megadoc"] = available["megadoc"] = taken
    return Plan(rows, available, context, order, {"megadoc": int(held[taken])} if taken else {})


def mix(
    streams: Mapping[str, RowSource], plan: Plan, batch_rows: int, seed: int, part: Sequence[int] | None = None
) -> grain.MapDataset:
    """Batches that hold exactly `plan.rows` of each stream over the run, in the order of the plan.

    Each stream is shuffled anew for each pass over it. The index of a row's stream in `plan.rows` is in "stream".

    Args:
      part: the rows of every batch to read, such as those of one host; None: all.
    """
    sources = {name: grain.MapDataset.source(streams[name]) for name in plan.rows}
    mixed = _mixed(sources, plan, seed, _labeller)
    if part is not None:
        mixed = grain.MapDataset.select_from_datasets([mixed], _Part(len(mixed) // batch_rows, batch_rows, part))
    return mixed.batch(batch_rows if part is None else len(part), drop_remainder=True)


def places(plan: Plan, seed: int) -> grain.MapDataset:
    """Which row stands at each place of a run that `mix` orders: index of its stream in `plan.rows`, row of the stream.

    Row r of the batch of step s, counted from 1, stands at place (s - 1) * batch_rows + r.
    """

    def name(index: int) -> Any:
        return lambda row: (index, row)

    return _mixed({name: grain.MapDataset.range(plan.available[name]) for name in plan.rows}, plan, seed, name)


def _mixed(sources: Mapping[str, grain.MapDataset], plan: Plan, seed: int, labeller: Any) -> grain.MapDataset:
    """The rows of a run in order, each as `labeller` of its stream's index makes it."""
    mixed: grain.MapDataset | None = None
    for index, (name, rows) in enumerate(plan.rows.items()):
        shuffled = sources[name].shuffle(seed=seed + index).repeat()
        labelled = shuffled[:rows].map(labeller(index))
        if mixed is None:
            mixed = labelled
        else:
            order = _Staged if plan.order == "staged" else _Interleave
            mixed = grain.MapDataset.select_from_datasets([mixed, labelled], order(len(mixed), rows))
    assert mixed is not None
    return mixed


class _Interleave:
    """A Grain selection map of two data sets, each element once, the second spread evenly among the first.

    `MapDataset.mix` rounds its proportions and loses the last few elements; here the counts are exact.
    """

    def __init__(self, first: int, second: int):
        self._second, self._total = second, first + second

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> tuple[int, int]:
        before = index * self._second // self._total
        after = (index + 1) * self._second // self._total
        return (1, before) if after > before else (0, index - before)


class _Staged:
    """A Grain selection map of two data sets, the second before the first."""

    def __init__(self, first: int, second: int):
        self._second, self._total = second, first + second

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> tuple[int, int]:
        return (1, index) if index < self._second else (0, index - self._second)


class _Part:
    """A Grain selection map of some rows of every batch."""

    def __init__(self, batches: int, batch_rows: int, part: Sequence[int]):
        self._batches, self._batch_rows, self._part = batches, batch_rows, part

    def __len__(self) -> int:
        return self._batches * len(self._part)

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, place = divmod(index, len(self._part))
        return 0, batch * self._batch_rows + self._part[place]


def _labeller(index: int) -> Any:
    def label(row: Row) -> Batch:
        return row._asdict() | {"stream": np.int32(index)}

    return label
