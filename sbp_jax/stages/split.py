"""Stage `split`: which documents are held out, which are the capped set, and which the oracle set adds.

A seeded hash of the text decides, so that equal texts share a split; with `splits.by` = source the hash of the source
chooses among the documents that are not held out. A document that names its split keeps it.

Then near-copies are brought to one side, pair by pair: a held-out document that is a near-copy of a training document
joins the training side (one that named its split is left out instead), and of those that remain, a validation document
that is a near-copy of a test document joins the test set. A document that moved may make others move; connected
components are never formed.
"""

from collections import Counter

import numpy as np
import pyarrow as pa
import xxhash

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Splits
from sbp_jax.errors import SbpError
from sbp_jax.progress import progress
from sbp_jax.text.documents import SPLITS
from sbp_jax.text.near_duplicates import CopyIndex
from sbp_jax.text.shingles import shingles

VERSION = 2
NAMES = SPLITS
VALIDATION, TEST, CAPPED, ORACLE, UNUSED = range(len(NAMES))
SPLIT = "split"  # column of documents that say it themselves
FRACTION = {VALIDATION: "splits.validation", TEST: "splits.test", CAPPED: "splits.capped"}


def run(output: Output, *, documents: Artifact, splits: Splits, execution: Execution) -> Artifact:
    """Writes the split of every document, one shard for each shard of the documents.

    Memory holds the shingles of the held-out documents and a few bytes for every other document.

    Raises:
      SbpError: an empty validation, test or capped set.
    """
    split, training_split = _assign(output, documents, splits)
    if SPLIT in parquet.columns(documents):
        _given(documents, split, training_split)
    chosen = split.copy()
    _move(output, documents, splits, split, training_split)
    for part, fraction in FRACTION.items():
        if not np.any(split == part):
            size = f"{len(split):,} documents"
            raise SbpError(f"the {NAMES[part]} set is empty after splitting {size}; raise {fraction} or add documents")
    names = np.array(NAMES)
    for index, table in enumerate(parquet.tables(documents, ["ordinal"])):
        ordinals = table["ordinal"].to_numpy()

        def write(writing: Writing, ordinals: np.ndarray = ordinals) -> None:
            column = pa.array(names[split[ordinals]].tolist(), pa.string())
            parquet.write(writing, pa.table({"ordinal": ordinals, "split": column}))

        output.shard(index, ".parquet", write)
    counts = Counter(split.tolist())
    stats: dict[str, int] = {f"documents_{name}": counts[part] for part, name in enumerate(NAMES)}
    stats["moved"] = int(np.sum((chosen <= TEST) & (split > TEST)))
    stats["moved_to_test"] = int(np.sum((chosen == VALIDATION) & (split == TEST)))
    return output.finish(stats)


def _assign(output: Output, documents: Artifact, splits: Splits) -> tuple[np.ndarray, np.ndarray]:
    """The split of each ordinal by the hash of its text, and the one it takes if it is not held out."""
    # Seeds are hashes themselves: ingestion samples by the unseeded hash, which must not predict the split.
    held_seed = xxhash.xxh3_64_intdigest(f"held out {splits.seed}".encode())
    capped_seed = xxhash.xxh3_64_intdigest(f"capped {splits.seed}".encode())
    held: list[np.ndarray] = []
    capped: list[np.ndarray] = []
    with progress(f"{output.label}: hash", documents.rows, "documents") as counter:
        for table in parquet.tables(documents, ["text"] if splits.by == "text" else ["text", splits.by]):
            texts = [text.encode() for text in table["text"].to_pylist()]
            owners = texts if splits.by == "text" else [owner.encode() for owner in table[splits.by].to_pylist()]
            held.append(np.array([xxhash.xxh3_64_intdigest(text, held_seed) for text in texts], np.uint64))
            capped.append(np.array([xxhash.xxh3_64_intdigest(owner, capped_seed) for owner in owners], np.uint64))
            counter.advance(len(texts))
    u_held, u_capped = np.concatenate(held) / 2.0**64, np.concatenate(capped) / 2.0**64
    training = np.select([u_capped < splits.capped, u_capped < splits.oracle], [CAPPED, ORACLE], UNUSED)
    conditions = [u_held < splits.validation, u_held < splits.validation + splits.test]
    return np.select(conditions, [VALIDATION, TEST], training).astype(np.int8), training.astype(np.int8)


def _given(documents: Artifact, split: np.ndarray, training_split: np.ndarray) -> None:
    """Changes both in place where documents say their split; a near-copy among the held-out ones is then left out."""
    for table in parquet.tables(documents, ["ordinal", SPLIT]):
        names = table[SPLIT].to_pylist()
        rows = [row for row, name in enumerate(names) if name is not None]
        chosen = np.array([NAMES.index(names[row]) for row in rows], np.int8)
        ordinals = table["ordinal"].to_numpy()[rows]
        split[ordinals] = chosen
        training_split[ordinals] = np.where(chosen > TEST, chosen, UNUSED)


def _move(output: Output, documents: Artifact, splits: Splits, split: np.ndarray, training_split: np.ndarray) -> None:
    """Changes `split` in place until no held-out document is a near-copy of one on another side."""
    held_out: list[tuple[int, np.ndarray]] = []
    with progress(f"{output.label}: held-out shingles", int(np.sum(split <= TEST)), "documents") as counter:
        for table in parquet.tables(documents, ["ordinal", "text"]):
            ordinals = table["ordinal"].to_numpy()
            for row in np.flatnonzero(split[ordinals] <= TEST).tolist():
                held_out.append((int(ordinals[row]), shingles(table["text"][row].as_py())))
                counter.advance()
    index = CopyIndex(held_out, splits.near_duplicate)
    training = (split == CAPPED) | (split == ORACLE)
    with progress(f"{output.label}: near-copies", int(np.sum(training)), "documents") as counter:
        for table in parquet.tables(documents, ["ordinal", "text"]):
            ordinals = table["ordinal"].to_numpy()
            moved: set[int] = set()
            for row in np.flatnonzero(training[ordinals]).tolist():
                moved.update(index.copies(shingles(table["text"][row].as_py())))
                counter.advance()
            _join_training(index, moved, split, training_split)
    validation = {int(ordinal) for ordinal in np.flatnonzero(split == VALIDATION)}
    pool = CopyIndex([(number, index.shingles(number)) for number in validation], splits.near_duplicate)
    front = {int(ordinal) for ordinal in np.flatnonzero(split == TEST)}
    while front:
        front = {copy for number in front for copy in pool.copies(index.shingles(number))}
        split[list(front)] = TEST
        pool.remove(front)


def _join_training(index: CopyIndex, moved: set[int], split: np.ndarray, training_split: np.ndarray) -> None:
    """Moves held-out documents to the training side, with their own near-copies and the copies of those."""
    while moved:
        found: set[int] = set()
        for number in sorted(moved):
            split[number] = training_split[number]
            if split[number] != UNUSED:  # an unused document is never trained on
                found.update(index.copies(index.shingles(number)))
        index.remove(moved)
        moved = found - moved
