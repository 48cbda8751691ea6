"""Held-out loss of one arm, document by document."""

import math
from contextlib import closing

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Model, Training
from sbp_jax.data.rows import RowSource
from sbp_jax.model import huggingface
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.training import export
from sbp_jax.training.evaluation import target_losses
from sbp_jax.training.interruption import Watchdog
from sbp_jax.training.step import Setup

VERSION = 2


def run(
    output: Output, *, trained: Artifact, test: Artifact, model: Model, training: Training, execution: Execution
) -> Artifact:
    """Scores the final model on the test rows: a Parquet row per document, totals in the manifest.

    The end of each document is predicted too and counted: nats per token over tokens and ends, bits per byte over
    the bytes of the text.
    """
    mesh = build_mesh(execution.mesh)
    folder = trained.folder(export.FINAL)
    vocabulary = huggingface.inspect(folder).vocabulary
    parameters = huggingface.load(folder, model, vocabulary, mesh)
    setup = Setup(model, vocabulary, training, 0, 1, mesh, execution)
    ordinals, nats = [], []
    with closing(Watchdog(output.path, execution.stall_seconds)) as watchdog:
        for batch, batch_nats in target_losses(setup, parameters, RowSource(test)):
            ordinals.append(batch.documents[batch.mask])
            nats.append(batch_nats[batch.mask])
            watchdog.alive()
    documents, index = np.unique(np.concatenate(ordinals), return_inverse=True)
    document_nats = np.bincount(index, np.concatenate(nats).astype(np.float64))
    targets = np.bincount(index)

    def write(writing: Writing) -> None:
        parquet.write(writing, pa.table({"ordinal": documents, "nats": document_nats, "targets": targets}))

    output.shard(0, ".parquet", write)
    total = float(document_nats.sum())
    stats = {
        "documents": len(documents),
        "targets": int(targets.sum()),
        "bytes": test.stats["bytes"],
        "nats_per_token": total / int(targets.sum()),
        "bits_per_byte": total / math.log(2) / test.stats["bytes"],
    }
    return output.finish(stats)
