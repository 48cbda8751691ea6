"""Stage `pack`: the documents of one stream, in their order, concatenated and cut into rows."""

from array import array
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.config import Execution, Tokenizer
from sbp_jax.data import context_path, megadocs
from sbp_jax.data.packing import pack_joined
from sbp_jax.data.rows import ROW_TARGETS, SYNTHETIC, Row, write_rows
from sbp_jax.data.screened import save
from sbp_jax.data.splits import members
from sbp_jax.data.stream_order import save_list, shuffled
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
    neighbors: Artifact | None = None,
    synthetic: Artifact | None = None,
    synthetic_tokens: Artifact | None = None,
    stream: str,
    context: int,
    settings: Tokenizer,
    execution: Execution,
) -> Artifact:
    """Writes the rows of one stream.

    That is "capped", "oracle", "validation", "test", "synthetic" (no splits: everything), or "megadoc" (no splits: the
    accepted synthetic documents of each seed, and then the seed, which see one another).

    Documents are shuffled by a fixed hash of their ordinals, since neighbours in a corpus file often share a topic.

    Args:
      neighbors: given, documents stand along a path through their graph instead, and see one another.
      synthetic, synthetic_tokens: of megadocs, the synthetic documents, where `documents` and `tokens` are real.

    Raises:
      SbpError: an unknown stream, or one without documents.
    """
    order_D, joined_D = _order(splits, stream, tokens, neighbors, synthetic)
    if len(order_D) == 0:
        raise SbpError(f"{output.label}: the {stream} stream has no documents; enlarge its split")
    real_D = order_D < SYNTHETIC
    end_of_document = load(tokenizer.file("tokenizer.json"), settings).end_of_document
    lengths, row_targets = np.empty(len(order_D), np.int64), array("i")
    with progress(output.label, len(order_D), "documents") as counter:
        read = _tokens((tokens, synthetic_tokens), order_D, joined_D, lengths, counter)
        rows = pack_joined(read, context, end_of_document)
        totals = write_rows(output, rows if synthetic is None else _counted(rows, row_targets))
    size = _text_bytes(documents, order_D[real_D])
    if synthetic is not None:
        size += _text_bytes(synthetic, order_D[~real_D] - SYNTHETIC)
        totals |= {"synthetic_documents": int(np.count_nonzero(~real_D)), "synthetic_targets": sum(row_targets)}
        save(output, ROW_TARGETS, np.array(row_targets, np.int32))
    if synthetic is not None or neighbors is not None:
        save_list(output, order_D, lengths + 1)
    return output.finish(totals | {"documents": len(order_D), "bytes": size, "context": context})


def _order(
    splits: Artifact | None, stream: str, tokens: Artifact, neighbors: Artifact | None, synthetic: Artifact | None
) -> tuple[np.ndarray, np.ndarray]:
    """The documents in order, as rows name them, and which of them see the one before, int64 and bool [D]."""
    if synthetic is not None and stream == "megadoc":
        return megadocs.stitched(synthetic)
    if splits is None and stream == "synthetic":
        ordinals = np.arange(tokens.rows)
    elif splits is None or stream not in STREAMS:
        names = ", ".join(STREAMS)
        raise SbpError(f"unknown stream {stream!r}: with splits one of {names}, without them synthetic or megadoc")
    else:
        ordinals = members(splits, *STREAMS[stream])
    if neighbors is not None:
        return context_path.path(ordinals, neighbors), np.ones(len(ordinals), np.bool_)
    return shuffled(ordinals), np.zeros(len(ordinals), np.bool_)


def _counted(rows: Iterator[Row], counts: array) -> Iterator[Row]:
    """Adds the synthetic targets of each row that passes."""
    for row in rows:
        counts.append(int(np.count_nonzero(row.documents >= SYNTHETIC)))
        yield row


def _tokens(
    tokens: tuple[Artifact, Artifact | None],
    order_D: np.ndarray,
    joined_D: np.ndarray,
    lengths: np.ndarray,
    counter: Counter,
) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Each document with its tokens, those of the real ones in the first artifact; writes down how many there are."""
    real, synthetic = (None if artifact is None else arrayrecord.source(artifact) for artifact in tokens)
    for start in range(0, len(order_D), READ):
        batch = order_D[start : start + READ].tolist()
        for place, document in enumerate(batch, start):
            records, ordinal = (real, document) if document < SYNTHETIC else (synthetic, document - SYNTHETIC)
            assert records is not None
            found = np.frombuffer(records[ordinal], "<i4")
            lengths[place] = len(found)
            yield document, found, bool(joined_D[place])
        counter.advance(len(batch))


def _text_bytes(documents: Artifact, ordinals: np.ndarray) -> int:
    """UTF-8 bytes of the text of these documents."""
    sizes = [pc.binary_length(table["text"]).to_numpy() for table in parquet.tables(documents, ["text"])]
    return int(np.concatenate(sizes).astype(np.int64)[ordinals].sum())
