"""Loss of a model on packed rows, each row once.

Legend: B rows of a batch, T positions of a row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from sbp_jax.data.rows import Row, RowSource
from sbp_jax.model.parameters import Parameters
from sbp_jax.training.batches import whole_to_device
from sbp_jax.training.step import Setup, evaluation_step


def target_losses(
    setup: Setup,
    parameters: Parameters,
    rows: RowSource | Sequence[Row],
    needed: Callable[[Row], bool] = lambda batch: True,
) -> Iterator[tuple[Row, np.ndarray]]:
    """Batches of rows with the nats of each target, [B, T] float32, zero where the mask is off.

    The device never waits: a batch is read by a thread while the one before it is computed, and the nats of a batch are
    fetched when the next one has been dispatched.

    Args:
      needed: says which batches are to be computed; the others are left out.
    """
    evaluate = evaluation_step(setup)
    computing: tuple[Row, jax.Array] | None = None
    for batch in _ahead(filter(needed, _batches(rows, setup.optimization.batch_rows // setup.execution.accumulate))):
        nats_BT = evaluate(parameters, whole_to_device(_padded(batch, setup), setup.mesh))
        if computing is not None:
            yield computing[0], np.asarray(computing[1])[: len(computing[0].tokens)]
        computing = batch, nats_BT
    if computing is not None:
        yield computing[0], np.asarray(computing[1])[: len(computing[0].tokens)]


def mean_loss(
    setup: Setup,
    parameters: Parameters,
    rows: RowSource | Sequence[Row],
    each: Callable[[], None] = lambda: None,
) -> float:
    """Nats per target over all rows; `each` is called after every batch."""
    nats, targets = 0.0, 0
    for batch, batch_nats in target_losses(setup, parameters, rows):
        nats += float(batch_nats.sum(dtype=np.float64))
        targets += int(batch.mask.sum())
        each()
    return nats / targets


def text_losses(
    setup: Setup, parameters: Parameters, texts: Mapping[str, Sequence[Row]], each: Callable[[], None]
) -> dict[str, float]:
    """`mean_loss` of each set of rows."""
    return {name: mean_loss(setup, parameters, rows, each) for name, rows in texts.items()}


def spread(rows: RowSource, count: int) -> list[Row]:
    """So many of the rows, evenly spread, or all where there are fewer."""
    return [rows[index] for index in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]


def _batches(rows: RowSource | Sequence[Row], size: int) -> Iterator[Row]:
    for start in range(0, len(rows), size):
        chosen = [rows[index] for index in range(start, min(start + size, len(rows)))]
        yield Row(*(np.stack(arrays) for arrays in zip(*chosen, strict=True)))


def _padded(batch: Row, setup: Setup) -> dict[str, Any]:
    """The batch at its full size: a last one of another size would compile another program."""
    rows = setup.optimization.batch_rows // setup.execution.accumulate
    missing = rows - len(batch.tokens)
    padded = {name: np.pad(array, ((0, missing), (0, 0))) for name, array in batch._asdict().items()}
    return padded | {"stream": np.zeros(rows, np.int32)}


def _ahead(batches: Iterator[Row]) -> Iterator[Row]:
    """The same, each read by a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(next, batches, None)
            yield batch
