"""Stage `pack`: the documents of one stream, shuffled, concatenated and cut into rows."""

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.config import Execution, Tokenizer
from sbp_jax.data.packing import pack
from sbp_jax.data.rows import write_rows
from sbp_jax.data.splits import members
from sbp_jax.data.stream_order import shuffled
from sbp_jax.errors import SbpError
from sbp_jax.progress import Counter, progress
from sbp_jax.text.tokenizer import load

VERSION = 1
READ = 1024  # documents read at a time
STREAMS = {"capped": ("capped",), "oracle": ("oracle", "capped"), "validation": ("validation",), "test": ("test",)}


def run(
    output: Output,
    *,
    documents: Artifact,
    tokens: Artifact,
    tokenizer: Artifact,
    splits: Artifact | None = None,
    stream: str,
    context: int,
    settings: Tokenizer,
    execution: Execution,
) -> Artifact:
    """Writes the rows of one stream: "capped", "oracle", "validation", "test", or "synthetic" (no splits: everything).

    Documents are shuffled by a fixed hash of their ordinals, since neighbours in a corpus file often share a topic.

    Raises:
      SbpError: an unknown stream, or one without documents.
    """
    ordinals = shuffled(_members(splits, stream, tokens))
    if len(ordinals) == 0:
        raise SbpError(f"{output.label}: the {stream} stream has no documents; enlarge its split")
    end_of_document = load(tokenizer.file("tokenizer.json"), settings).end_of_document
    with progress(output.label, len(ordinals), "documents") as counter:
        totals = write_rows(output, pack(_tokens(tokens, ordinals, counter), context, end_of_document))
    stats = {"documents": len(ordinals), "bytes": _text_bytes(documents, ordinals), "context": context}
    return output.finish(totals | stats)


def _members(splits: Artifact | None, stream: str, tokens: Artifact) -> np.ndarray:
    if splits is None and stream == "synthetic":
        return np.arange(tokens.rows)
    if splits is None or stream not in STREAMS:
        raise SbpError(f"unknown stream {stream!r}: with splits one of {', '.join(STREAMS)}, without them synthetic")
    return members(splits, *STREAMS[stream])


def _tokens(tokens: Artifact, ordinals: np.ndarray, counter: Counter) -> Iterator[tuple[int, np.ndarray]]:
    records = arrayrecord.source(tokens)
    for start in range(0, len(ordinals), READ):
        batch = ordinals[start : start + READ].tolist()
        for ordinal in batch:
            yield ordinal, np.frombuffer(records[ordinal], "<i4")
        counter.advance(len(batch))


def _text_bytes(documents: Artifact, ordinals: np.ndarray) -> int:
    """UTF-8 bytes of the text of these documents."""
    sizes = [pc.binary_length(table["text"]).to_numpy() for table in parquet.tables(documents, ["text"])]
    return int(np.concatenate(sizes).astype(np.int64)[ordinals].sum())
