"""Stage `tokenize`: documents, real or synthetic, become token ids."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Tokenizer
from sbp_jax.progress import Counter, progress
from sbp_jax.text.tokenizer import TextTokenizer, load

VERSION = 1
BATCH = 512  # documents tokenized at a time


def run(
    output: Output, *, documents: Artifact, tokenizer: Artifact, settings: Tokenizer, execution: Execution
) -> Artifact:
    """Writes one ArrayRecord shard for each shard of documents: record i holds the int32 ids of ordinal i."""
    text_tokenizer = load(tokenizer.file("tokenizer.json"), settings)
    first = 0
    with progress(output.label, documents.rows, "documents") as counter:
        for index, table in enumerate(parquet.tables(documents, ["ordinal", "text"])):
            if not np.array_equal(table["ordinal"].to_numpy(), np.arange(first, first + table.num_rows)):
                raise ValueError(f"ordinals of {documents.path}, shard {index}, are not dense from {first}")
            first += table.num_rows
            if output.has(f"part-{index:05d}.array_record"):
                counter.skip(table.num_rows)

            def write(writing: Writing, table: pa.Table = table) -> None:
                arrayrecord.write(writing, _records(writing, table, text_tokenizer, counter))

            output.shard(index, ".array_record", write)
    return output.finish()


def _records(writing: Writing, table: pa.Table, tokenizer: TextTokenizer, counter: Counter) -> Iterator[bytes]:
    stats = writing.stats = {"documents": 0, "tokens": 0, "bytes": 0}
    for batch in table.to_batches(BATCH):
        texts = batch.column("text").to_pylist()
        for text, tokens in zip(texts, tokenizer.encode_batch(texts), strict=True):
            stats["documents"] += 1
            stats["tokens"] += len(tokens)
            stats["bytes"] += len(text.encode())
            yield tokens.astype("<i4", copy=False).tobytes()
        counter.advance(len(texts))
