"""From packed rows to sharded arrays: each host reads the rows of its own devices, and no others."""

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from sbp_jax.data.mixing import Batch
from sbp_jax.parallel import hosts
from sbp_jax.training.step import Setup, rows_sharding

FIELDS = ("tokens", "segments", "positions", "mask", "stream")  # what the step reads


def host_rows(batch_rows: int, mesh: Mesh) -> list[int] | None:
    """Rows of every batch that this host's devices hold, ascending; None: all of them."""
    if not hosts.several():
        return None
    indices: Any = rows_sharding((batch_rows,), mesh).addressable_devices_indices_map((batch_rows,))
    return sorted({row for (rows,) in indices.values() for row in range(*rows.indices(batch_rows))})


def divides(setup: Setup) -> bool:
    """Whether devices share the rows of a batch; where their number does not divide, each computes all of them."""
    rows = setup.optimization.batch_rows // setup.execution.accumulate
    return rows % (setup.mesh.shape["data"] * setup.mesh.shape["fsdp"]) == 0


def read_ahead(batches: grain.MapDataset) -> Iterator[Batch]:
    """The batches in order, read by threads before they are asked for."""
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def to_device(batch: Batch, mesh: Mesh, batch_rows: int) -> dict[str, jax.Array]:
    """The arrays that the step reads, spread over the mesh, from this host's rows of the batch."""
    arrays = {name: batch[name] for name in FIELDS}
    placed = {name: rows_sharding((batch_rows, *array.shape[1:]), mesh) for name, array in arrays.items()}
    if not hosts.several():
        return jax.device_put(arrays, placed)
    return {
        name: jax.make_array_from_process_local_data(placed[name], array, (batch_rows, *array.shape[1:]))
        for name, array in arrays.items()
    }


def whole_to_device(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every host has read whole, spread over the mesh."""
    part = host_rows(len(batch["tokens"]), mesh)
    local = batch if part is None else {name: np.asarray(array)[part] for name, array in batch.items()}
    return to_device(local, mesh, len(batch["tokens"]))
