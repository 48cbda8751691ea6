"""Stage `split`: which documents are held out, which are the capped set, and which the oracle set adds.

A seeded hash of the text decides, so that equal texts share a split; with `splits.by` = source the hash of the source
chooses among the documents that are not held out. A document that names its split keeps it.

Then near-copies are brought to one side, pair by pair: a held-out document that is a near-copy of a training document
joins the training side (one that named its split is left out instead), and of those that remain, a validation document
that is a near-copy of a test document joins the test set. A document that moved may make others move; connected
components are never formed.
"""

from collections import Counter
from functools import lru_cache, partial
from itertools import pairwise
from operator import itemgetter

import numpy as np
import pyarrow as pa
import xxhash
from etils import epath

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Splits
from sbp_jax.data.screened import mapped, save
from sbp_jax.errors import SbpError
from sbp_jax.parallel.executor import carry_out
from sbp_jax.progress import progress
from sbp_jax.text.documents import SPLITS
from sbp_jax.text.near_duplicates import CopyIndex
from sbp_jax.text.shingles import shingle_sets, words

VERSION = 2
BATCH = 256  # documents whose words are hashed at a time
NAMES = SPLITS
VALIDATION, TEST, CAPPED, ORACLE, UNUSED = range(len(NAMES))
CHOSEN, NUMBERS, LENGTHS, HASHES = "chosen.npy", "numbers.npy", "lengths.npy", "hashes.npy"  # in the scratch folder
SPLIT = "split"  # column of documents that say it themselves
FRACTION = {VALIDATION: "splits.validation", TEST: "splits.test", CAPPED: "splits.capped"}


def run(output: Output, *, documents: Artifact, splits: Splits, execution: Execution) -> Artifact:
    """Writes the split of every document, one shard for each shard of the documents.

    Memory holds a few bytes for every document, and in each process the shingles of the held-out ones.

    Raises:
      SbpError: an empty validation, test or capped set.
    """
    split, training_split = _assign(output, documents, splits, execution)
    if SPLIT in parquet.columns(documents):
        _given(documents, split, training_split)
    chosen = split.copy()
    scratch = Output(output.path / "scratch", output.recipe, output.label)
    _move(scratch, documents, splits, split, training_split, execution)
    scratch.path.rmtree()
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


def _assign(output: Output, documents: Artifact, splits: Splits, execution: Execution) -> tuple[np.ndarray, np.ndarray]:
    """The split of each ordinal by the hash of its text, and the one it takes if it is not held out."""
    held, capped = np.empty(documents.rows), np.empty(documents.rows)
    with progress(f"{output.label}: hash", documents.rows, "documents") as counter:
        tasks = carry_out(execution, output.label, partial(_hashes, documents, splits), _shards(documents))
        for ordinals, *found in tasks:
            held[ordinals], capped[ordinals] = found
            counter.advance(len(ordinals))
    training = np.select([capped < splits.capped, capped < splits.oracle], [CAPPED, ORACLE], UNUSED)
    conditions = [held < splits.validation, held < splits.validation + splits.test]
    return np.select(conditions, [VALIDATION, TEST], training).astype(np.int8), training.astype(np.int8)


def _shards(documents: Artifact) -> range:
    return range(len(parquet.shard_rows(documents)))


def _hashes(documents: Artifact, splits: Splits, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ordinals of a shard; of each the hash that may hold it out and the one that may cap it, from 0 to 1."""
    # Seeds are hashes themselves: ingestion samples by the unseeded hash, which must not predict the split.
    held_seed = xxhash.xxh3_64_intdigest(f"held out {splits.seed}".encode())
    capped_seed = xxhash.xxh3_64_intdigest(f"capped {splits.seed}".encode())
    table = parquet.shard(documents, number, ["ordinal", "text", *([] if splits.by == "text" else [splits.by])])
    texts = [text.encode() for text in table["text"].to_pylist()]
    owners = texts if splits.by == "text" else [owner.encode() for owner in table[splits.by].to_pylist()]
    held = np.array([xxhash.xxh3_64_intdigest(text, held_seed) for text in texts], np.uint64)
    capped = np.array([xxhash.xxh3_64_intdigest(owner, capped_seed) for owner in owners], np.uint64)
    return table["ordinal"].to_numpy(), held / 2.0**64, capped / 2.0**64


def _given(documents: Artifact, split: np.ndarray, training_split: np.ndarray) -> None:
    """Changes both in place where documents say their split; a near-copy among the held-out ones is then left out."""
    for table in parquet.tables(documents, ["ordinal", SPLIT]):
        names = table[SPLIT].to_pylist()
        rows = [row for row, name in enumerate(names) if name is not None]
        chosen = np.array([NAMES.index(names[row]) for row in rows], np.int8)
        ordinals = table["ordinal"].to_numpy()[rows]
        split[ordinals] = chosen
        training_split[ordinals] = np.where(chosen > TEST, chosen, UNUSED)


def _move(
    scratch: Output,
    documents: Artifact,
    splits: Splits,
    split: np.ndarray,
    training_split: np.ndarray,
    execution: Execution,
) -> None:
    """Changes `split` in place until no held-out document is a near-copy of one on another side."""
    save(scratch, CHOSEN, split)
    label, shards = scratch.label, _shards(documents)
    held_out: list[tuple[int, np.ndarray]] = []
    with progress(f"{label}: held-out shingles", int(np.sum(split <= TEST)), "documents") as counter:
        for found in carry_out(execution, label, partial(_held_out, scratch.path, documents), shards):
            held_out += found
            counter.advance(len(found))
    held_out.sort(key=itemgetter(0))
    _save_texts(scratch, held_out)
    held_out.clear()  # each process makes an index of them from the files
    training, moved = int(np.sum((split == CAPPED) | (split == ORACLE))), set[int]()
    with progress(f"{label}: near-copies", training, "documents") as counter:
        work = partial(_copies, scratch.path, documents, splits.near_duplicate)
        for documents_read, copies in carry_out(execution, label, work, shards):
            moved |= copies
            counter.advance(documents_read)
    index = _index(scratch.path, splits.near_duplicate)
    _index.cache_clear()  # from here on it changes
    _join_training(index, moved, split, training_split)
    validation = {int(ordinal) for ordinal in np.flatnonzero(split == VALIDATION)}
    pool = CopyIndex([(number, index.shingles(number)) for number in validation], splits.near_duplicate)
    front = {int(ordinal) for ordinal in np.flatnonzero(split == TEST)}
    while front:
        front = {copy for number in front for copy in pool.copies(index.shingles(number))}
        split[list(front)] = TEST
        pool.remove(front)


def _held_out(folder: epath.Path, documents: Artifact, number: int) -> list[tuple[int, np.ndarray]]:
    """The ordinals and shingles of the held-out documents of a shard."""
    table = parquet.shard(documents, number, ["ordinal", "text"])
    ordinals = table["ordinal"].to_numpy()
    rows = np.flatnonzero(mapped(folder / CHOSEN)[ordinals] <= TEST)
    hashes, counts = shingle_sets(words(table["text"].take(rows).to_pylist()))
    pieces = np.split(hashes, np.cumsum(counts)[:-1]) if len(rows) else []
    return list(zip(ordinals[rows].tolist(), pieces, strict=True))


def _copies(folder: epath.Path, documents: Artifact, threshold: float, number: int) -> tuple[int, set[int]]:
    """How many training documents a shard has, and which held-out documents are near-copies of one."""
    table = parquet.shard(documents, number, ["ordinal", "text"])
    split = mapped(folder / CHOSEN)[table["ordinal"].to_numpy()]
    rows = np.flatnonzero((split == CAPPED) | (split == ORACLE))
    index, copies = _index(folder, threshold), set[int]()
    for start in range(0, len(rows), BATCH):
        texts = table["text"].take(rows[start : start + BATCH]).to_pylist()
        copies |= index.copies_of_any(*shingle_sets(words(texts)))
    return len(rows), copies


def _save_texts(scratch: Output, texts: list[tuple[int, np.ndarray]]) -> None:
    """Writes numbered shingles for the processes that build an index of them."""
    save(scratch, NUMBERS, np.array([number for number, _ in texts], np.int64))
    save(scratch, LENGTHS, np.array([len(hashes) for _, hashes in texts], np.int64))
    save(scratch, HASHES, np.concatenate([np.empty(0, np.uint64), *(hashes for _, hashes in texts)]))


@lru_cache(maxsize=1)
def _index(folder: epath.Path, threshold: float) -> CopyIndex:
    numbers, lengths, hashes = (mapped(folder / name) for name in (NUMBERS, LENGTHS, HASHES))
    texts = (hashes[start:end] for start, end in pairwise(np.cumsum([0, *lengths]).tolist()))
    return CopyIndex(zip(numbers.tolist(), texts, strict=True), threshold)


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
