"""Stage `window`: held-out documents as rows of windows, each document read from its own start."""

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.config import Execution, Tokenizer
from sbp_jax.data import held_out
from sbp_jax.data.rows import write_rows
from sbp_jax.data.screened import mapped, save
from sbp_jax.data.splits import members
from sbp_jax.data.windows import Window, pack_windows, windows
from sbp_jax.errors import SbpError
from sbp_jax.progress import Counter, progress
from sbp_jax.text.tokenizer import load

VERSION = 1
READ = 1024  # documents read at a time
DOCUMENTS, TARGETS = 1 << 14, 1 << 24  # of a shard of the index, about, and so of the scores


def run(
    output: Output,
    *,
    documents: Artifact,
    tokens: Artifact,
    tokenizer: Artifact,
    splits: Artifact | None = None,
    context: int,
    stride: int,
    settings: Tokenizer,
    execution: Execution,
) -> Artifact:
    """Writes the rows of the test documents where splits are given, otherwise of all, in the order of their ordinals.

    Beside them lies the index of the documents: `documents-*.npy` of `held_out.ENTRY`.

    Raises:
      SbpError: there are no test documents.
    """
    chosen = None if splits is None else members(splits, "test")
    if chosen is not None and len(chosen) == 0:
        raise SbpError(f"{output.label}: there are no test documents; raise splits.test")
    count = documents.rows if chosen is None else len(chosen)
    names = []
    with progress(f"{output.label}: lengths", count, "documents") as counter:
        for entries in _index(documents, tokens, chosen, counter):
            names.append(f"{held_out.PREFIX}-{len(names):05d}.npy")
            save(output, names[-1], entries)
    index = [mapped(output.path / name) for name in names]
    end_of_document = load(tokenizer.file("tokenizer.json"), settings).end_of_document
    with progress(output.label, count, "documents") as counter:
        found = _windows(index, tokens, context, stride, end_of_document, counter)
        totals = write_rows(output, pack_windows(found, context, end_of_document))
    stats = {name: sum(int(shard[name].sum()) for shard in index) for name in ("targets", "bytes")}
    if totals["targets"] != stats["targets"]:
        raise RuntimeError(f"{output.label}: {totals['targets']} targets in rows, {stats['targets']} in documents")
    return output.finish(totals | stats | {"documents": count, "context": context, "stride": stride})


def _index(documents: Artifact, tokens: Artifact, chosen: np.ndarray | None, counter: Counter) -> Iterator[np.ndarray]:
    """The entries of the documents, those of one shard of the index at a time."""
    records = arrayrecord.source(tokens)
    waiting: list[np.ndarray] = []
    for table in parquet.tables(documents, ["ordinal", "text"]):
        ordinals, sizes = table["ordinal"].to_numpy(), pc.binary_length(table["text"]).to_numpy()
        here = np.arange(len(ordinals)) if chosen is None else np.flatnonzero(np.isin(ordinals, chosen))
        for start in range(0, len(here), READ):
            some = here[start : start + READ]
            lengths = [len(record) // 4 for record in records.__getitems__(ordinals[some].tolist())]
            waiting.append(held_out.entries(ordinals[some], np.array(lengths) + 1, sizes[some]))
            counter.advance(len(some))
            targets = sum(int(part["targets"].sum()) for part in waiting)
            if sum(map(len, waiting)) >= DOCUMENTS or targets >= TARGETS:
                yield np.concatenate(waiting)
                waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _windows(
    index: list[np.ndarray], tokens: Artifact, context: int, stride: int, end_of_document: int, counter: Counter
) -> Iterator[Window]:
    records = arrayrecord.source(tokens)
    for shard in index:
        for start in range(0, len(shard), READ):
            ordinals = shard["ordinal"][start : start + READ].tolist()
            for ordinal, record in zip(ordinals, records.__getitems__(ordinals), strict=True):
                document = np.frombuffer(record, "<i4")
                yield from windows(ordinal, document, context, stride, end_of_document)
            counter.advance(len(ordinals))
