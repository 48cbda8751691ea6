"""Loss of a model on packed rows, each row once."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sbp_jax.data.rows import Row, RowSource
from sbp_jax.model.parameters import Parameters
from sbp_jax.training.batches import whole_to_device
from sbp_jax.training.step import Setup, evaluation_step


def target_losses(
    setup: Setup, parameters: Parameters, rows: RowSource | Sequence[Row]
) -> Iterator[tuple[Row, np.ndarray]]:
    """Batches of rows with the nats of each target, [B, T] float32, zero where the mask is off."""
    evaluate = evaluation_step(setup)
    batch_rows = setup.optimization.batch_rows // setup.execution.accumulate
    for start in range(0, len(rows), batch_rows):
        chosen = [rows[index] for index in range(start, min(start + batch_rows, len(rows)))]
        batch = Row(*(np.stack(arrays) for arrays in zip(*chosen, strict=True)))
        missing = batch_rows - len(chosen)  # a last batch of another size would compile another program
        padded = Row(*(np.pad(array, ((0, missing), (0, 0))) for array in batch))._asdict()
        padded["stream"] = np.zeros(batch_rows, np.int32)
        nats = evaluate(parameters, whole_to_device(padded, setup.mesh))
        yield batch, np.asarray(nats)[: len(chosen)]


def mean_loss(setup: Setup, parameters: Parameters, rows: RowSource, each: Callable[[], None] = lambda: None) -> float:
    """Nats per target over all rows; `each` is called after every batch."""
    nats, targets = 0.0, 0
    for batch, batch_nats in target_losses(setup, parameters, rows):
        nats += float(batch_nats.sum(dtype=np.float64))
        targets += int(batch.mask.sum())
        each()
    return nats / targets
