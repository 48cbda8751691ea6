"""Stage `neighbors`: the nearest other documents of each embedded document, or for the control random others."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.experimental import multihost_utils

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.artifacts.artifact import Writing, finished_files, read_json
from sbp_jax.config import Execution, Neighbors
from sbp_jax.errors import SbpError
from sbp_jax.parallel import hosts
from sbp_jax.parallel.mesh import build_mesh, one_host_mesh
from sbp_jax.progress import progress
from sbp_jax.search import backends, random_pairs
from sbp_jax.search.audit import audit
from sbp_jax.search.ranking import FOUND, MISSING
from sbp_jax.search.vectors import Stored
from sbp_jax.text import template

VERSION = 3
QUERIES_PER_SHARD = 10_000
READ = 4096  # documents whose lengths are read at a time
CHOICE = "choice.json"  # of the search, made once
SCRATCH = "scratch"  # indexes and buckets of a run that goes on; gone once the artifact is complete


def run(
    output: Output,
    *,
    embeddings: Artifact,
    neighbors: Neighbors,
    execution: Execution,
    threshold: float = 1.0,
    like: Artifact | None = None,
    tokens: Artifact | None = None,
    context: int = 0,
) -> Artifact:
    """Writes `query`, `neighbor` (ordinals) and `similarity`, ordered by query and falling similarity.

    The manifest tells which search ran and why, with which settings, and how many of the true neighbours it found. All
    hosts run it: the exact search is one program on all their devices, the others are divided among them.

    Args:
      threshold: of the control, the similarity from which on documents are related and not drawn.
      like: pairs, each accepted one of which becomes a random pair with the same d1: the control.
      tokens: of all documents, so that only pairs which fit a row of the synthesizer are drawn; None: any.
      context: positions of such a row.

    Raises:
      SbpError: a vector that is zero or not finite, fewer than two documents, or an index of other vectors.
    """
    stored = Stored(embeddings)
    if len(stored) < 2:
        raise SbpError(f"{embeddings.path} has fewer than two documents, so none has a neighbour; raise splits.capped")
    with _scratch(output) as folder:
        if like is not None:
            lengths_N = None if tokens is None else _lengths(tokens, stored.ordinals)
            return output.finish(_random(output, like, stored, threshold, folder, lengths_N, context))
        choice = _choice(output, stored, neighbors)
        shards = range(0, len(stored), QUERIES_PER_SHARD)
        names = [_name(index) for index in range(len(shards))]
        process, processes = jax.process_index(), jax.process_count()
        own = set(output.apart(names, process, processes))
        everybody = choice.backend == "exact"
        if processes > 1 and not everybody and "://" in str(output.path):
            raise SbpError(
                f"several hosts cannot share the {choice.backend} search's files in {output.path}, which is no disk;"
                " give a --workdir that is mounted on all of them, or set neighbors.backend=exact"
            )
        wanted = _union(names, own)
        missing = wanted if everybody else own
        mesh = one_host_mesh(execution.mesh)
        meshes = build_mesh(execution.mesh) if everybody else mesh, mesh
        if wanted:  # by any host: they prepare a search together
            search = backends.start(choice, stored, neighbors, meshes, folder, process, processes)
        with progress(output.label, len(stored), "documents") as counter:
            for start, name in zip(shards, names, strict=True):
                stop = min(start + QUERIES_PER_SHARD, len(stored))
                if name not in missing:
                    counter.skip(stop - start)
                    continue
                indices, similarities = search(start, stop)
                if name in own:
                    with output.writing(name) as writing:
                        _write(writing, stored.ordinals, start, indices, similarities)
                counter.advance(stop - start)
        if not hosts.is_first():
            return output.finish()
        stats: dict[str, Any] = {"backend": choice.backend, "backend_reason": choice.reason}
        stats["settings"] = choice.settings
        stats |= audit(stored, _tables(output, names), neighbors.top_k, neighbors.audited, mesh)
        return output.finish(stats)


def _choice(output: Output, stored: Stored, neighbors: Neighbors) -> backends.Choice:
    """The search that the run which began this artifact chose: one that goes on elsewhere has to go on with it."""
    file = output.path / CHOICE
    if hosts.first_says(file.exists()):
        kept = read_json(file)
        if isinstance(kept, dict):
            return backends.Choice(**kept)
    choice = backends.choose(len(stored), stored.width, neighbors, jax.device_count())
    if hosts.is_first():
        file.write_text(json.dumps(asdict(choice)))
    return choice


def _name(index: int) -> str:
    return f"part-{index:05d}.parquet"


class _scratch:
    """The folder of what a search keeps on disk; a bucket in the cloud cannot be mapped, so there it is temporary."""

    def __init__(self, output: Output):
        self._path = os.fspath(output.path / SCRATCH)
        self._temporary = tempfile.mkdtemp() if "://" in self._path else None

    def __enter__(self) -> Path:
        return Path(self._temporary or self._path)

    def __exit__(self, kind: object, *_: object) -> None:
        """Only what is complete is cleared away, since a killed run goes on with it."""
        if self._temporary or (kind is None and hosts.is_first()):
            shutil.rmtree(self._temporary or self._path, ignore_errors=True)


def _union(names: list[str], own: set[str]) -> set[str]:
    """The shards that any of the hosts still has to write: all of them search for it together."""
    if not hosts.several():
        return own
    wanted = multihost_utils.process_allgather(np.array([name in own for name in names]))
    return {name for name, needed in zip(names, np.any(wanted, axis=0), strict=True) if needed}


def _tables(output: Output, names: list[str]) -> Iterator[pa.Table]:
    """The shards as they were written, by whichever host, once they are."""
    for name in names:
        while not output.has(name) and not finished_files(output.path, [name]):
            time.sleep(0.2)
        with (output.path / name).open("rb") as stream:
            yield pq.read_table(stream, columns=["query", "neighbor", "similarity"])


def _write(writing: Writing, ordinals: np.ndarray, start: int, indices: np.ndarray, similarities: np.ndarray) -> None:
    found = indices != MISSING
    queries = ordinals[start : start + len(indices)]
    query = np.broadcast_to(queries[:, None], indices.shape)[found]
    columns = {"query": query, "neighbor": ordinals[indices[found]], "similarity": similarities[found]}
    parquet.write(writing, pa.table(columns, schema=FOUND))
    writing.stats = {"queries": len(indices), "missing": int(np.count_nonzero(~found))}


def _lengths(tokens: Artifact, ordinals: np.ndarray) -> np.ndarray:
    """Tokens of each document, int64 [N]."""
    records: Any = arrayrecord.source(tokens)
    parts = [np.empty(0, np.int64)]
    for start in range(0, len(ordinals), READ):
        some = records.__getitems__(ordinals[start : start + READ].tolist())
        parts.append(np.array([len(record) // np.dtype(np.int32).itemsize for record in some], np.int64))
    return np.concatenate(parts)


def _random(
    output: Output,
    like: Artifact,
    stored: Stored,
    threshold: float,
    folder: Path,
    lengths_N: np.ndarray | None,
    context: int,
) -> dict[str, Any]:
    """One shard of random pairs for each shard of pairs."""
    room = context + 1 - template.length(0, 1)
    shards = like.shards(".parquet")
    names = [_name(index) for index in range(len(shards))]
    own = output.apart(names, jax.process_index(), jax.process_count())
    folder = folder / f"host-{jax.process_index()}"
    folder.mkdir(parents=True, exist_ok=True)
    vectors_ND = stored.mapped(folder) if own else np.empty((0, 0))
    with progress(output.label, len(own), "shards") as counter:
        for path, name in zip(shards, names, strict=True):
            if name not in own:
                continue
            with path.open("rb") as stream:
                table = pq.read_table(stream, columns=["d1", "verdict"])
            d1 = np.sort(table["d1"].to_numpy()[table["verdict"].to_numpy(zero_copy_only=False) == "accepted"])
            queries = np.searchsorted(stored.ordinals, d1)
            places = np.arange(len(d1)) - np.searchsorted(d1, d1)
            drawn, similarities = random_pairs.draw(vectors_ND, queries, places, threshold, 0, lengths_N, room)
            order = np.lexsort((drawn, -similarities, d1))
            order = order[drawn[order] >= 0]
            columns = {"query": d1[order], "neighbor": stored.ordinals[drawn[order]]}
            with output.writing(name) as writing:
                parquet.write(writing, pa.table(columns | {"similarity": similarities[order]}, schema=FOUND))
                writing.stats = {"pairs": len(d1), "undrawn": len(d1) - len(order)}
            counter.advance()
    return {"backend": "random", "backend_reason": "the control of random pairs", "threshold": threshold}
