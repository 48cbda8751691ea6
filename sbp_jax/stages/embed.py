"""Stage `embed`: the documents of the capped set become unit vectors."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Embedding, Execution
from sbp_jax.data.splits import members
from sbp_jax.model.encoder import load
from sbp_jax.parallel.mesh import one_host_mesh
from sbp_jax.progress import progress

VERSION = 1
DOCUMENTS_PER_SHARD = 512


def run(
    output: Output, *, documents: Artifact, splits: Artifact, embedding: Embedding, execution: Execution
) -> Artifact:
    """Writes `ordinal` and `embedding` of each capped document, in the order of ordinals."""
    encoder = load(embedding.model, one_host_mesh(execution.mesh))
    capped = members(splits, "capped")
    with progress(output.label, len(capped), "documents") as counter:
        for index, table in enumerate(_shards(documents, capped)):
            if output.has(f"part-{index:05d}.parquet"):
                counter.skip(table.num_rows)

            def write(writing: Writing, table: pa.Table = table) -> None:
                texts = table["text"].to_pylist()
                vectors = encoder.embed(texts, embedding.max_tokens, execution.embed_batch, counter.advance)
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), encoder.width)
                parquet.write(writing, pa.table({"ordinal": table["ordinal"], "embedding": column}))
                writing.stats = {"documents": len(texts)}

            output.shard(index, ".parquet", write)
    return output.finish({"model": embedding.model, "width": encoder.width})


def _shards(documents: Artifact, chosen: np.ndarray) -> Iterator[pa.Table]:
    """The chosen documents, as many a shard; holds two shards of the documents at most."""
    waiting: pa.Table | None = None
    for table in parquet.tables(documents, ["ordinal", "text"]):
        table = table.filter(pa.array(np.isin(table["ordinal"].to_numpy(), chosen)))
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while waiting.num_rows >= DOCUMENTS_PER_SHARD:
            yield waiting.slice(0, DOCUMENTS_PER_SHARD)
            waiting = waiting.slice(DOCUMENTS_PER_SHARD)
    if waiting is not None and waiting.num_rows:
        yield waiting
