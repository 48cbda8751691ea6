"""Stage `copies`: which documents of a held-out text set stand in the training documents, word for word.

A text set is the user's and is scored as it is. What of it the arms have read is told beside its score: for each of its
documents the fraction of its 13-word shingles that the capped set holds, and the oracle set. A document of fewer than
13 words is found only where a training document is the same words, and is counted as too short.

All training documents are read once. Memory holds the shingles of the text set, 10 bytes for each word.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution
from sbp_jax.progress import progress
from sbp_jax.text.shingles import WORDS, among, distinct, shingle_sets, words

VERSION = 1
BATCH = 256  # documents whose words are hashed at a time
SETS = {"capped": ("capped",), "oracle": ("capped", "oracle")}  # splits of the documents that an arm may read
COPIED = 0.5  # of a document's shingles, from which on it counts as copied


def run(output: Output, *, texts: Artifact, documents: Artifact, splits: Artifact, execution: Execution) -> Artifact:
    """Writes a row for each document of the set, one shard for each of its shards, and counts those that are copied."""
    parts = [hashes for table in parquet.tables(texts, ["text"]) for hashes in _hashed(table["text"])]
    own = distinct(np.sort(np.concatenate(parts)))
    seen = {split: np.zeros(len(own), np.bool_) for split in SETS["oracle"]}
    with progress(output.label, documents.rows, "documents") as counter:
        shards = zip(parquet.tables(documents, ["text"]), parquet.tables(splits, ["split"]), strict=True)
        for table, table_splits in shards:
            of = table_splits["split"].to_numpy(zero_copy_only=False)
            for split, flags in seen.items():
                for hashes in _hashed(table["text"].filter(pa.array(of == split))):
                    flags[np.searchsorted(own, hashes[among(hashes, own)])] = True
            counter.advance(table.num_rows)
    for index, table in enumerate(parquet.tables(texts, ["ordinal", "text"])):
        columns: dict[str, Any] = {"ordinal": table["ordinal"].to_numpy(), **_shares(table["text"], own, seen)}

        def write(writing: Writing, columns: dict[str, Any] = columns) -> None:
            parquet.write(writing, pa.table(columns))
            writing.stats = {f"copied_{name}": int(np.sum(columns[name] >= COPIED)) for name in SETS}
            writing.stats |= {"documents": writing.rows, "too_short": int(np.sum(columns["words"] < WORDS))}

        output.shard(index, ".parquet", write)
    made = output.finish({"copied_from": COPIED})
    if made.stats["copied_oracle"]:
        counts = f"{made.stats['copied_oracle']:,} of {made.rows:,} ({made.stats['copied_capped']:,} in the capped set)"
        print(f"warning: {output.label}: training documents hold half or more of {counts}", file=sys.stderr)
    return made


def _hashed(texts: pa.ChunkedArray) -> Iterator[np.ndarray]:
    """The shingles of the texts, those of some at a time."""
    for start in range(0, len(texts), BATCH):
        yield shingle_sets(words(texts.slice(start, BATCH).to_pylist()))[0]


def _shares(texts: pa.ChunkedArray, own: np.ndarray, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Words of each text, and the fraction of its shingles that each set holds; 0 for one without words."""
    columns: dict[str, list[np.ndarray]] = {"words": [], **{name: [] for name in SETS}}
    for start in range(0, len(texts), BATCH):
        found = words(texts.slice(start, BATCH).to_pylist())
        hashes, counts = shingle_sets(found)
        columns["words"].append(np.diff(found.offsets))
        places, owners = np.searchsorted(own, hashes), np.repeat(np.arange(len(counts)), counts)
        for name, splits in SETS.items():
            held = np.logical_or.reduce([seen[split][places] for split in splits])
            shares = np.bincount(owners, held, len(counts)) / np.maximum(counts, 1)
            columns[name].append(shares.astype(np.float32))
    return {name: np.concatenate(parts) for name, parts in columns.items()}
