"""Stage `window`: held-out documents as rows of windows, each document read from its own start."""

from collections.abc import Iterator
from typing import Any

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
from sbp_jax.text.tokenizer import TextTokenizer, load

VERSION = 1
READ = 256  # documents read at a time
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

    Beside them lies the index of the documents: `documents-*.npy` of `held_out.ENTRY`. Of a document of which a part
    is given, the targets and bytes are those behind that part.

    Raises:
      SbpError: there are no test documents.
    """
    chosen = None if splits is None else members(splits, "test")
    if chosen is not None and len(chosen) == 0:
        raise SbpError(f"{output.label}: there are no test documents; raise splits.test")
    count = documents.rows if chosen is None else len(chosen)
    names: list[str] = []
    encoder = load(tokenizer.file("tokenizer.json"), settings)
    with progress(f"{output.label}: lengths", count, "documents") as counter:
        for entries in _index(documents, tokens, chosen, encoder, counter):
            names.append(f"{held_out.PREFIX}-{len(names):05d}.npy")
            save(output, names[-1], entries)
    index = [mapped(output.path / name) for name in names]
    end_of_document = encoder.end_of_document
    with progress(output.label, count, "documents") as counter:
        found = _windows(index, tokens, context, stride, end_of_document, counter)
        totals = write_rows(output, pack_windows(found, context, end_of_document))
    stats = {name: sum(int(shard[name].sum()) for shard in index) for name in ("targets", "bytes")}
    if totals["targets"] != stats["targets"]:
        raise RuntimeError(f"{output.label}: {totals['targets']} targets in rows, {stats['targets']} in documents")
    return output.finish(totals | stats | {"documents": count, "context": context, "stride": stride})


def _index(
    documents: Artifact, tokens: Artifact, chosen: np.ndarray | None, encoder: TextTokenizer, counter: Counter
) -> Iterator[np.ndarray]:
    """The entries of the documents, those of one shard of the index at a time."""
    records, waiting = arrayrecord.source(tokens), list[np.ndarray]()
    count = targets = 0
    part = ["given"] if "given" in parquet.columns(documents) else []
    for table in parquet.tables(documents, ["ordinal", "text", *part]):
        if chosen is not None:
            table = table.filter(np.isin(table["ordinal"].to_numpy(), chosen))
        ordinals, sizes = table["ordinal"].to_numpy(), pc.binary_length(table["text"]).to_numpy()
        for start in range(0, len(ordinals), READ):
            some = ordinals[start : start + READ]
            lengths = [len(document) + 1 for document in _tokens(records, some)]
            behind = sizes[start : start + READ]
            if part:
                rows = table.slice(start, READ)
                texts, given = rows["text"].to_pylist(), rows["given"].to_pylist()
                before = encoder.tokens_within(texts, given)
                lengths = [length - 1 - read for length, read in zip(lengths, before, strict=True)]
                behind = np.array([len(text[read:].encode()) for text, read in zip(texts, given, strict=True)])
            waiting.append(held_out.entries(some, lengths, behind))
            count, targets = count + len(some), targets + sum(lengths)
            counter.advance(len(some))
            if count >= DOCUMENTS or targets >= TARGETS:
                yield np.concatenate(waiting)
                waiting, count, targets = [], 0, 0
    if waiting:
        yield np.concatenate(waiting)


def _windows(
    index: list[np.ndarray], tokens: Artifact, context: int, stride: int, end_of_document: int, counter: Counter
) -> Iterator[Window]:
    records = arrayrecord.source(tokens)
    for shard in index:
        for start in range(0, len(shard), READ):
            some = shard[start : start + READ]
            for entry, document in zip(some, _tokens(records, some["ordinal"]), strict=True):
                # The end is a target only of a document that is scored whole.
                given = len(document) - int(entry["targets"]) if entry["targets"] <= len(document) else None
                yield from windows(int(entry["ordinal"]), document, context, stride, end_of_document, given)
            counter.advance(len(some))


def _tokens(records: Any, ordinals: np.ndarray) -> Iterator[np.ndarray]:
    """The tokens of some documents, int32 [n] each."""
    for record in records.__getitems__(ordinals.tolist()):
        yield np.frombuffer(record, "<i4")
