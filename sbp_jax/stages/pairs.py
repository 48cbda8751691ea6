"""Stage `pairs`: neighbours become ordered pairs (d1, d2), each with the evidence for its verdict."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Pairs
from sbp_jax.errors import SbpError
from sbp_jax.progress import Counter, progress
from sbp_jax.text.shingles import containment, jaccard, shingles

VERSION = 1
ACCEPTED, NEAR_DUPLICATE, TOO_LONG = "accepted", "near_duplicate", "too_long"
ADDED_TOKENS = 3  # E d1 S d2 E
BIN = 0.05  # width of the bins of the similarity histogram
SCHEMA = pa.schema(
    [
        ("d1", pa.int64()),
        ("d2", pa.int64()),
        ("similarity", pa.float32()),
        ("containment", pa.float32()),
        ("jaccard", pa.float32()),
        ("tokens", pa.int32()),
        ("verdict", pa.string()),
        ("rule_version", pa.int32()),
    ]
)


def run(
    output: Output,
    *,
    neighbors: Artifact,
    documents: Artifact,
    tokens: Artifact,
    pairs: Pairs,
    context: int,
    execution: Execution,
) -> Artifact:
    """Writes every neighbour at or above the threshold as a pair d1 = query, d2 = neighbour, with its verdict.

    A pair is rejected when the smaller document's 13-word shingles are mostly in the other, or when it does not fit
    into a row. Memory holds the shingles of all documents in a pair.

    Raises:
      SbpError: fewer accepted pairs than `pairs.minimum`.
    """
    shards = [
        table.filter(pa.array(table["similarity"].to_numpy() >= np.float32(pairs.threshold)))
        for table in parquet.tables(neighbors)
    ]
    missing = [table for index, table in enumerate(shards) if not output.has(_name(index))]
    texts = _Texts(documents, tokens, missing)
    with progress(output.label, sum(table.num_rows for table in shards), "pairs") as counter:
        for index, table in enumerate(shards):
            if output.has(_name(index)):
                counter.skip(table.num_rows)
                continue
            with output.writing(_name(index)) as writing:
                _write(writing, table, texts, pairs, context, counter)
    similarities = parquet.read(neighbors, ["similarity"])["similarity"].to_numpy()
    stats = _counts(output, len(shards))
    if stats["accepted"] < pairs.minimum:
        raise SbpError(_too_few(stats, similarities, pairs, context))
    return output.finish({"similarity_histogram": _histogram(similarities)} | stats)


def _name(index: int) -> str:
    return f"part-{index:05d}.parquet"


class _Texts:
    """Shingles and token counts of the documents that occur in some tables of neighbours."""

    def __init__(self, documents: Artifact, tokens: Artifact, neighbors: Sequence[pa.Table]):
        columns = [table[name].to_numpy() for table in neighbors for name in ("query", "neighbor")]
        wanted = np.unique(np.concatenate([np.empty(0, np.int64), *columns]))
        self.shingles: dict[int, np.ndarray] = {}
        self.tokens: dict[int, int] = {}
        if len(wanted) == 0:
            return
        records = arrayrecord.source(tokens)
        for table in parquet.tables(documents, ["ordinal", "text"]):
            chosen = table.filter(pa.array(np.isin(table["ordinal"].to_numpy(), wanted)))
            for ordinal, text in zip(chosen["ordinal"].to_pylist(), chosen["text"].to_pylist(), strict=True):
                self.shingles[ordinal] = shingles(text)
                self.tokens[ordinal] = len(records[ordinal]) // 4


def _write(writing: Writing, table: pa.Table, texts: _Texts, pairs: Pairs, context: int, counter: Counter) -> None:
    d1, d2 = table["query"].to_pylist(), table["neighbor"].to_pylist()
    contained, overlapping, lengths, verdicts = [], [], [], []
    for first, second in zip(d1, d2, strict=True):
        contained.append(containment(texts.shingles[first], texts.shingles[second]))
        overlapping.append(jaccard(texts.shingles[first], texts.shingles[second]))
        lengths.append(texts.tokens[first] + texts.tokens[second] + ADDED_TOKENS)
        if contained[-1] >= pairs.near_duplicate:
            verdicts.append(NEAR_DUPLICATE)
        else:
            verdicts.append(TOO_LONG if lengths[-1] > context + 1 else ACCEPTED)
        counter.advance()
    columns = [d1, d2, table["similarity"], contained, overlapping, lengths, verdicts, [VERSION] * len(d1)]
    parquet.write(writing, pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA))


def _counts(output: Output, shards: int) -> dict[str, int]:
    """Counts over all shards, read back from the files, since some may be an earlier run's."""
    counts = {ACCEPTED: 0, NEAR_DUPLICATE: 0, TOO_LONG: 0}
    covered = [np.empty(0, np.int64)]
    for index in range(shards):
        with (output.path / _name(index)).open("rb") as stream:
            table = pq.read_table(stream, columns=["d1", "d2", "verdict"])
        verdicts = table["verdict"].to_numpy()
        for name in counts:
            counts[name] += int(np.count_nonzero(verdicts == name))
        accepted = verdicts == ACCEPTED
        covered += [np.unique(table[name].to_numpy()[accepted]) for name in ("d1", "d2")]
    documents = len(np.unique(np.concatenate(covered)))
    return {"candidates": sum(counts.values())} | counts | {"documents_covered": documents}


def _histogram(similarities: np.ndarray) -> dict[str, int]:
    """Neighbours by similarity, accepted or not: what another threshold would offer."""
    bins, counts = np.unique(np.floor(similarities / BIN).astype(int), return_counts=True)
    return {f"{place * BIN:.2f}": int(count) for place, count in zip(bins, counts, strict=True)}


def _too_few(stats: dict[str, Any], similarities: np.ndarray, pairs: Pairs, context: int) -> str:
    message = f"{stats[ACCEPTED]:,} pairs were accepted at pairs.threshold = {pairs.threshold:g}"
    if stats["candidates"] > stats[ACCEPTED]:
        too_long = f"{stats[TOO_LONG]:,} too long for a context of {context}"
        message += f" ({stats[NEAR_DUPLICATE]:,} near-duplicates and {too_long} were rejected)"
    message += f", fewer than pairs.minimum = {pairs.minimum:,}"
    if stats[TOO_LONG] + stats[ACCEPTED] >= pairs.minimum:
        return f"{message}; raise tuning.context"
    # As many may be rejected below the threshold as above it.
    kept = stats[ACCEPTED] / stats["candidates"] if stats[ACCEPTED] else 1.0
    needed = math.ceil(pairs.minimum / kept)
    if needed <= len(similarities):
        lower = math.floor(float(np.partition(similarities, -needed)[-needed]) * 100) / 100
        if 0 < lower < pairs.threshold:
            offer = int(np.count_nonzero(similarities >= np.float32(lower)))
            return f"{message}; lower pairs.threshold to {lower:.2f}, which {offer:,} reach, or raise splits.capped"
    return f"{message}, and no lower threshold gives enough; raise splits.capped or neighbors.top_k"
