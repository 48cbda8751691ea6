"""Stage `tokenize`: documents, real or synthetic, become token ids."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Tokenizer
from sbp_jax.data import shards
from sbp_jax.text.tokenizer import TextTokenizer, load

VERSION = 1
BATCH = 512  # documents tokenized at a time


def run(
    output: Output, *, documents: Artifact, tokenizer: Artifact, settings: Tokenizer, execution: Execution
) -> Artifact:
    """Writes one ArrayRecord shard for each shard of documents: record i holds the int32 ids of ordinal i."""
    rows = parquet.shard_rows(documents)
    work = partial(_shard, documents=documents, tokenizer=tokenizer, settings=settings)
    names = [[_name(number)] for number in range(len(rows))]
    shards.make(output, names, work, execution, rows)
    return output.finish()


def _name(number: int) -> str:
    return f"part-{number:05d}.array_record"


def _shard(output: Output, number: int, documents: Artifact, tokenizer: Artifact, settings: Tokenizer) -> None:
    table, first = parquet.shard(documents, number, ["ordinal", "text"]), sum(parquet.shard_rows(documents)[:number])
    if not np.array_equal(table["ordinal"].to_numpy(), np.arange(first, first + table.num_rows)):
        raise ValueError(f"ordinals of {documents.path}, shard {number}, are not dense from {first}")
    text_tokenizer = load(tokenizer.file("tokenizer.json"), settings)
    with output.writing(_name(number)) as writing:
        arrayrecord.write(writing, _records(writing, table, text_tokenizer))


def _records(writing: Writing, table: pa.Table, tokenizer: TextTokenizer) -> Iterator[bytes]:
    stats = writing.stats = {"documents": 0, "tokens": 0, "bytes": 0}
    for batch in table.to_batches(BATCH):
        texts = batch.column("text").to_pylist()
        for text, tokens in zip(texts, tokenizer.encode_batch(texts), strict=True):
            stats["documents"] += 1
            stats["tokens"] += len(tokens)
            stats["bytes"] += len(text.encode())
            yield tokens.astype("<i4", copy=False).tobytes()
