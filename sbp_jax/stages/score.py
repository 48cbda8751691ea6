"""Stage `score`: what one arm's final model says of held-out documents, one by one."""

import math
from contextlib import closing

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Model, Training
from sbp_jax.data.held_out import Scores, ScoreSums
from sbp_jax.data.rows import RowSource
from sbp_jax.errors import SbpError
from sbp_jax.model import huggingface
from sbp_jax.parallel import hosts
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.progress import progress
from sbp_jax.training import export
from sbp_jax.training.evaluation import target_losses
from sbp_jax.training.interruption import Watchdog
from sbp_jax.training.step import Setup

VERSION = 3
LARGEST = 700.0  # nats per token whose perplexity a float holds


def run(
    output: Output, *, trained: Artifact, rows: Artifact, model: Model, training: Training, execution: Execution
) -> Artifact:
    """Scores the final model on windows: a Parquet row per document, shard by shard, totals in the manifest.

    The end of each document is predicted too and counted: nats per token, and perplexity, over tokens and ends, bits
    per byte over the bytes of the texts. Batches have the shapes of the training step's, and hold the same rows
    whatever an earlier run left to do, so that a killed run ends with the same bits.

    Raises:
      SbpError: the model gives a document no finite loss.
      RuntimeError: the targets scored are not those of the documents, which is a fault of the program.
    """
    mesh = build_mesh(execution.mesh)
    folder = trained.folder(export.FINAL)
    vocabulary = huggingface.inspect(folder).vocabulary
    parameters = huggingface.load(folder, model, vocabulary, mesh)
    setup = Setup(model, vocabulary, training, 0, 1, mesh, execution)
    source, sums = RowSource(rows), ScoreSums(rows)
    names = [f"part-{shard:05d}.parquet" for shard in range(sums.shards)]
    sums.leave_out([shard for shard, name in enumerate(names) if hosts.first_says(output.has(name))])
    with (
        closing(Watchdog(output.path, execution.stall_seconds)) as watchdog,
        progress(output.label, len(source), "rows") as counter,
    ):
        for batch, nats_BT in target_losses(setup, parameters, source, sums.need):
            for shard, scores in sums.add(batch, nats_BT):
                _write(output, shard, scores)
            watchdog.alive()
            counter.advance(len(nats_BT))
    sums.check_complete()
    if not hosts.is_first():
        return output.finish()
    counts = [output.counts(name) for name in names]
    targets, size = (sum(count[name] for count in counts) for name in ("targets", "bytes"))
    nats = math.fsum(count["nats"] for count in counts)
    rates = {"nats_per_token": nats / targets, "bits_per_byte": nats / math.log(2) / size}
    return output.finish({"nats": nats, **rates, "perplexity": math.exp(min(nats / targets, LARGEST))})


def _write(output: Output, shard: int, scores: Scores) -> None:
    wrong = np.flatnonzero(~np.isfinite(scores.nats))
    if len(wrong):
        document = scores.entries["ordinal"][wrong[0]]
        raise SbpError(
            f"{output.label}: the model gives document {document} no finite loss, and {len(wrong) - 1:,} more of this"
            " shard; lower the learning rate (training.peak_lr) and train it again"
        )
    columns = {name: scores.entries[name] for name in ("ordinal", "targets", "bytes")}

    def write(writing: Writing) -> None:
        names = ("ordinal", "nats", "targets", "bytes")
        parquet.write(writing, pa.table(columns | {"nats": scores.nats}).select(names))
        sums = {name: int(columns[name].sum()) for name in ("targets", "bytes")}
        writing.stats = {"documents": len(scores.nats), "nats": math.fsum(scores.nats), **sums}

    output.shard(shard, ".parquet", write)
