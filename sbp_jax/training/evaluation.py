"""Loss of a model on packed rows, each row once."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sbp_jax.config import Model
from sbp_jax.data.rows import Row, RowSource
from sbp_jax.model.parameters import Parameters
from sbp_jax.parallel.sharding import activations
from sbp_jax.training.step import losses, to_device


def target_losses(
    model: Model, vocabulary: int, parameters: Parameters, rows: RowSource, batch_rows: int, mesh: Mesh
) -> Iterator[tuple[Row, np.ndarray]]:
    """Batches of rows with the nats of each target, [B, T] float32, zero where the mask is off."""
    evaluate = _evaluation_step(model, vocabulary, mesh)
    for start in range(0, len(rows), batch_rows):
        chosen = [rows[index] for index in range(start, min(start + batch_rows, len(rows)))]
        batch = Row(*(np.stack(arrays) for arrays in zip(*chosen, strict=True)))
        missing = batch_rows - len(chosen)  # a last batch of another size would compile another program
        padded = Row(*(np.pad(array, ((0, missing), (0, 0))) for array in batch))
        nats = evaluate(parameters, to_device(padded._asdict(), mesh))
        yield batch, np.asarray(nats)[: len(chosen)]


def mean_loss(
    model: Model, vocabulary: int, parameters: Parameters, rows: RowSource, batch_rows: int, mesh: Mesh
) -> float:
    """Nats per target over all rows."""
    nats, targets = 0.0, 0
    for batch, batch_nats in target_losses(model, vocabulary, parameters, rows, batch_rows, mesh):
        nats += float(batch_nats.sum(dtype=np.float64))
        targets += int(batch.mask.sum())
    return nats / targets


@lru_cache(maxsize=8)
def _evaluation_step(model: Model, vocabulary: int, mesh: Mesh) -> Callable[[Parameters, Any], jax.Array]:
    jitted = jax.jit(lambda parameters, batch: losses(model, vocabulary, parameters, batch))

    def run(parameters: Parameters, batch: Any) -> jax.Array:
        with activations(mesh):
            return jitted(parameters, batch)

    return run
