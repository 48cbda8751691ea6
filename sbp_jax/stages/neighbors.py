"""Stage `neighbors`: the nearest other documents of each embedded document."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Neighbors
from sbp_jax.errors import SbpError
from sbp_jax.parallel.mesh import one_host_mesh
from sbp_jax.progress import progress
from sbp_jax.search import exact, scann_search
from sbp_jax.search.ranking import MISSING

VERSION = 1
QUERIES_PER_SHARD = 10_000
AUDITED = 200  # queries whose neighbours are compared with exact ones
SCHEMA = pa.schema([("query", pa.int64()), ("neighbor", pa.int64()), ("similarity", pa.float32())])

Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # queries [Q] to indices and similarities [Q, K]


def run(output: Output, *, embeddings: Artifact, neighbors: Neighbors, execution: Execution) -> Artifact:
    """Writes `query`, `neighbor` (ordinals) and `similarity`, ordered by query and falling similarity.

    The manifest tells which search ran and why, with which settings, and how many of the true neighbours it found.

    Raises:
      SbpError: a vector that is zero or not finite, or fewer than two documents.
    """
    ordinals, vectors = _vectors(embeddings)
    mesh = one_host_mesh(execution.mesh)
    backend, reason = _choose(len(vectors))
    shards = [
        np.arange(start, min(start + QUERIES_PER_SHARD, len(vectors)))
        for start in range(0, len(vectors), QUERIES_PER_SHARD)
    ]
    search: Search | None = None
    with progress(output.label, len(vectors), "documents") as counter:
        for index, queries in enumerate(shards):
            if output.has(_name(index)):
                counter.skip(len(queries))
                continue
            search = search or _search(backend, vectors, neighbors, mesh)
            indices, similarities = search(queries)
            with output.writing(_name(index)) as writing:
                _write(writing, ordinals, queries, indices, similarities)
            counter.advance(len(queries))
    stats: dict[str, Any] = {"backend": backend, "backend_reason": reason}
    if backend == "scann":
        stats["settings"] = dataclasses.asdict(scann_search.settings(len(vectors), neighbors))
    return output.finish(stats | _audit(output, len(shards), ordinals, vectors, neighbors, mesh))


def _name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _vectors(embeddings: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """Ordinals, int64 [N], and unit vectors, float32 [N, D]."""
    ordinals, vectors = [], []
    for table in parquet.tables(embeddings, ["ordinal", "embedding"]):
        column = table["embedding"].combine_chunks()
        ordinals.append(table["ordinal"].to_numpy())
        vectors.append(column.flatten().to_numpy().reshape(table.num_rows, -1))
    if sum(map(len, ordinals)) < 2:
        raise SbpError(f"{embeddings.path} has fewer than two documents, so none has a neighbour; raise splits.capped")
    all_ordinals, all_vectors = np.concatenate(ordinals), np.concatenate(vectors)
    lengths = np.linalg.norm(all_vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        first = f"the first is that of the document with ordinal {all_ordinals[bad[0]]}"
        raise SbpError(f"{len(bad):,} embeddings are zero or not finite, {first}; check embedding.model")
    return all_ordinals, all_vectors


def _choose(documents: int) -> tuple[str, str]:
    """The search to use and why."""
    if documents < scann_search.SMALLEST:
        return "exact", f"fewer than {scann_search.SMALLEST} documents"
    unavailable = scann_search.unavailable()
    if unavailable is not None:
        return "exact", f"ScaNN cannot be imported: {unavailable}"
    return "scann", f"at least {scann_search.SMALLEST} documents"


def _search(backend: str, vectors: np.ndarray, neighbors: Neighbors, mesh: Mesh) -> Search:
    if backend == "exact":
        return partial(exact.search, vectors, top_k=neighbors.top_k, mesh=mesh)
    chosen = scann_search.settings(len(vectors), neighbors)
    return partial(scann_search.search, scann_search.build(vectors, chosen), vectors, chosen=chosen)


def _write(
    writing: Writing, ordinals: np.ndarray, queries: np.ndarray, indices: np.ndarray, similarities: np.ndarray
) -> None:
    found = indices != MISSING
    query = np.broadcast_to(ordinals[queries][:, None], indices.shape)[found]
    columns = {"query": query, "neighbor": ordinals[indices[found]], "similarity": similarities[found]}
    parquet.write(writing, pa.table(columns, schema=SCHEMA))
    writing.stats = {"queries": len(queries), "missing": int(np.count_nonzero(~found))}


def _audit(
    output: Output, shards: int, ordinals: np.ndarray, vectors: np.ndarray, neighbors: Neighbors, mesh: Mesh
) -> dict[str, Any]:
    """Share of the true neighbours found, for queries spread evenly over the documents.

    A written neighbour counts when it is as near as the last true one: which of several that tie is chosen is no error.
    """
    sample = np.unique(np.linspace(0, len(vectors) - 1, min(AUDITED, len(vectors))).astype(np.int64))
    _, true_similarities = exact.search(vectors, sample, neighbors.top_k, mesh)
    asked, least = ordinals[sample], true_similarities[:, -1] - 1e-5
    hits = 0
    for index in range(shards):
        with (output.path / _name(index)).open("rb") as stream:
            table = pq.read_table(stream, columns=["query", "similarity"])
        query, similarity = table["query"].to_numpy(), table["similarity"].to_numpy()
        places = np.minimum(np.searchsorted(asked, query), len(asked) - 1)
        hits += int(np.count_nonzero((asked[places] == query) & (similarity >= least[places])))
    return {"recall_at_k": hits / true_similarities.size, "audited_queries": len(sample)}
