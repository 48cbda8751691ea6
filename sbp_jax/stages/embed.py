"""Stage `embed`: the documents of the capped set become unit vectors."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sbp_jax.accounting import formulas
from sbp_jax.artifacts import Artifact, Output
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Embedding, Execution, Model, Tokenizer
from sbp_jax.embedding import models, own_vectors
from sbp_jax.embedding.embedder import WINDOW, Embedder
from sbp_jax.embedding.whitening import Whitening
from sbp_jax.errors import SbpError
from sbp_jax.parallel import hosts
from sbp_jax.parallel.mesh import one_host_mesh
from sbp_jax.progress import Counter, progress
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.training import export

VERSION = 3
DOCUMENTS_PER_SHARD = 4096  # of the corpus, capped or not: what is done again after a run was killed
WHITENING_SAMPLE = 4096  # documents
SHARDS = 2048  # past so many, shards have more documents instead


@dataclass(frozen=True)
class Part:
    """The documents of one shard of embeddings: the capped ones among some rows of a shard of the corpus.

    Attributes:
      number: of the shard of embeddings.
      file: name of the shard of the documents, and of the one of the splits.
      start: first row.
      stop: one past the last.
    """

    number: int
    file: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"part-{self.number:05d}.parquet"


Capped = Callable[[Part], pa.Table]  # ordinal, id and text of the capped documents of a part
Vectors = Callable[[pa.Table], Iterator[np.ndarray]]  # of such documents, in order, some at a time


def run(
    output: Output,
    *,
    documents: Artifact,
    splits: Artifact,
    base: Artifact | None = None,
    tokenizer: Artifact | None = None,
    model: Model | None = None,
    settings: Tokenizer | None = None,
    embedding: Embedding,
    execution: Execution,
) -> Artifact:
    """Writes `ordinal` and `embedding` of each capped document, in the order of ordinals.

    Every host makes some of the shards, with its own devices. Memory holds one shard of the documents.

    Args:
      base: the repetition arm, whose best checkpoint embeds; given with `tokenizer`, `model` and `settings` where
        `embedding.model` is "self".

    Raises:
      SbpError: the model or the user's vectors are not what they should be, or a vector is not finite.
    """
    parts = _parts(documents)
    process, processes = hosts.share()
    unfinished = set(output.apart([part.name for part in parts], process, processes))
    own = parts[process::processes]
    capped = _reader(documents, splits, with_text=embedding.vectors is None)
    total = None if processes > 1 else splits.stats.get("documents_capped")
    with ExitStack() as stack:
        counter = stack.enter_context(progress(output.label, total, "documents"))
        lengths: list[int] = []  # tokens of the documents of the shard in the making
        costs = 0.0, 0.0
        if embedding.vectors is not None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            todo = [part for part in own if part.name in unfinished]
            width, vectors = _from_files(embedding, documents.rows, capped, todo, scratch, counter)
        else:
            embedder = _embedder(base, tokenizer, model, settings, embedding, execution)
            width, costs = embedder.width, formulas.embedder(embedder.shape)
            vectors = _from_model(embedder, execution.embed_batch, counter.advance, lengths.extend)
            if embedding.whiten and unfinished:
                sample = _from_model(embedder, execution.embed_batch, lambda documents: None)
                vectors = _whitened(vectors, _fit(output.label, capped, parts, sample))
        for part in own:

            def write(writing: Writing, part: Part = part) -> None:
                table = capped(part)
                lengths.clear()
                _write(writing, table, vectors(table), width)
                squares = sum(length**2 for length in lengths)
                writing.stats |= {"tokens": sum(lengths), "squared_tokens": squares}

            file = output.shard(part.number, ".parquet", write)
            if part.name not in unfinished:
                counter.skip(file.rows)
    stats = {"model": embedding.vectors or embedding.model, "width": width}
    return output.finish(stats | dict(zip(("token_flops", "square_flops"), costs, strict=True)))


def _parts(documents: Artifact) -> list[Part]:
    """The shards of embeddings in order; none holds documents of two shards of the corpus."""
    size = max(DOCUMENTS_PER_SHARD, -(-documents.rows // SHARDS))
    shards = [file for file in documents.files if file.name.startswith("part-") and file.name.endswith(".parquet")]
    rows = [(file, start) for file in shards for start in range(0, file.rows, size)]
    return [Part(number, file.name, start, min(start + size, file.rows)) for number, (file, start) in enumerate(rows)]


def _reader(documents: Artifact, splits: Artifact, with_text: bool) -> Capped:
    columns = ["ordinal", "id", "text"] if with_text else ["ordinal", "id"]

    @lru_cache(maxsize=1)
    def shard(name: str) -> tuple[pa.Table, np.ndarray]:
        with documents.file(name).open("rb") as stream:
            table = pq.read_table(stream, columns=columns)
        with splits.file(name).open("rb") as stream:
            split = pq.read_table(stream, columns=["split"])["split"]
        return table, split.to_numpy() == "capped"

    def capped(part: Part) -> pa.Table:
        table, chosen = shard(part.file)
        return table.slice(part.start, part.stop - part.start).filter(pa.array(chosen[part.start : part.stop]))

    return capped


def _embedder(
    base: Artifact | None,
    tokenizer: Artifact | None,
    model: Model | None,
    settings: Tokenizer | None,
    embedding: Embedding,
    execution: Execution,
) -> Embedder:
    mesh = one_host_mesh(execution.mesh)
    if embedding.model != models.SELF:
        return models.load(embedding, mesh, execution.attention)
    assert base is not None and tokenizer is not None and model is not None and settings is not None
    own = text_tokenizer.load(tokenizer.file("tokenizer.json"), settings)
    return models.load_base(base.folder(export.BEST), own, model, embedding, mesh, execution.attention)


def _from_model(
    embedder: Embedder,
    batch: int,
    advance: Callable[[int], None],
    lengths: Callable[[list[int]], None] = lambda lengths: None,
) -> Vectors:
    def vectors(table: pa.Table) -> Iterator[np.ndarray]:
        starts = range(0, table.num_rows, WINDOW)
        windows = (table["text"].slice(start, WINDOW).to_pylist() for start in starts)
        for start, vectors_RD in zip(starts, embedder.stream(windows, batch, advance, lengths), strict=True):
            bad = np.flatnonzero(~np.isfinite(vectors_RD).all(axis=1))
            if len(bad):
                first = table["id"][start + int(bad[0])].as_py()
                raise SbpError(
                    f"the model gives {len(bad):,} of {len(vectors_RD):,} documents a vector that is not finite;"
                    f" the first has id {first}: set embedding.dtype=float32, or fetch the model again"
                )
            yield vectors_RD

    return vectors


def _fit(label: str, capped: Capped, parts: list[Part], vectors: Vectors) -> Whitening:
    """Fitted to some documents of every shard, the same ones on every host."""
    each = -(-WHITENING_SAMPLE // len(parts))
    with progress(f"{label}: sample to whiten by", len(parts), "shards") as counter:
        sample: list[np.ndarray] = []
        for part in parts:
            sample.extend(vectors(capped(part).slice(0, each)))
            counter.advance()
    if not sample:
        raise SbpError(f"{label}: no document is in the capped set, so there is nothing to whiten by")
    return Whitening.fit(np.concatenate(sample))


def _whitened(vectors: Vectors, whitening: Whitening) -> Vectors:
    return lambda table: map(whitening, vectors(table))


def _from_files(
    embedding: Embedding, documents: int, capped: Capped, todo: list[Part], scratch: Path, counter: Counter
) -> tuple[int, Vectors]:
    def sought() -> Iterator[tuple[np.ndarray, list[str]]]:
        for part in todo:
            table = capped(part)
            yield table["ordinal"].to_numpy(), table["id"].to_pylist()

    assert embedding.vectors is not None
    given_ND = own_vectors.load(embedding.vectors, embedding.dimensions, documents, sought, scratch)

    def vectors(table: pa.Table) -> Iterator[np.ndarray]:
        for start in range(0, table.num_rows, WINDOW):
            ordinals = table["ordinal"].slice(start, WINDOW).to_numpy()
            yield own_vectors.normalized(given_ND[ordinals])
            counter.advance(len(ordinals))

    return given_ND.shape[1], vectors


def _write(writing: Writing, table: pa.Table, vectors: Iterator[np.ndarray], width: int) -> None:
    """Writes a shard, a row group for each array of vectors."""
    schema = pa.schema([("ordinal", pa.int64()), ("embedding", pa.list_(pa.float32(), width))])
    with (
        writing.path.open("wb") as stream,
        pq.ParquetWriter(
            stream,
            schema,
            compression="zstd",
            use_dictionary=False,  # no two numbers are equal, and looking for such takes most of the time
            write_statistics=False,
        ) as writer,
    ):
        for vectors_RD in vectors:
            ordinals = table["ordinal"].slice(writing.rows, len(vectors_RD))
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_RD.ravel()), width)
            writer.write_table(pa.table({"ordinal": ordinals, "embedding": column}, schema=schema))
            writing.rows += len(vectors_RD)
    writing.stats = {"documents": writing.rows}
