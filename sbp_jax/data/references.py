"""What synthetic documents are compared with: the documents that were read for them, and indexes of all real ones.

Kept in a scratch folder, shard by shard, so that a killed run finds what it had finished.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from etils import epath

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.data.screened import Ragged, mapped, save
from sbp_jax.data.shingle_index import ShingleIndex, build, is_exact
from sbp_jax.data.shingle_index import opened as opened_index
from sbp_jax.progress import progress
from sbp_jax.text.language import UNDETERMINED
from sbp_jax.text.shingles import among, shingle_sets, words

BATCH = 256  # documents whose words are hashed at a time
HELD_OUT = ("validation", "test")
INDEXES = ("capped", "held-out")  # names of their files
KEPT, LANGUAGES = "references.json", "languages.npy"


@dataclass(frozen=True)
class References:
    """The real documents as the filters need them, by ordinal.

    Attributes:
      words: hashed words of each document that was read for a synthetic one, in their order; of the others none.
      capped: 13-word shingles of the capped documents.
      held_out: those of the validation and test documents.
      language_names, languages: int16, the place of each capped document's language among the names; 0: undetermined.
    """

    words: Ragged
    capped: ShingleIndex
    held_out: ShingleIndex
    language_names: Sequence[str]
    languages: np.ndarray


def references(
    scratch: Output, documents: Artifact, splits: Artifact, screened: Artifact, read: np.ndarray, kind: str
) -> References:
    """Reads the real documents once.

    Args:
      read: ordinals of the documents that were read for synthetic ones, sorted.
      kind: of the indexes: exact, bloom, or auto.
    """
    _hash(scratch, documents, splits, read)
    shards = len(documents.shards(".parquet"))
    ordered = [_sorted(scratch, index, path) for index, path in enumerate(screened.shards(".npy", "hashes"))]
    held_out = _files(scratch.path, "held-out", shards)
    exact = is_exact(kind, sum(len(mapped(file)) for file in (*ordered, *held_out)))
    names, languages = _languages(screened, documents.rows)
    save(scratch, LANGUAGES, languages)
    built = {name: build(scratch, name, files, exact) for name, files in zip(INDEXES, (ordered, held_out), strict=True)}
    counts = {
        name: {"shingles": index.shingles, "false_positives": index.false_positives} for name, index in built.items()
    }
    if not scratch.has(KEPT):
        with scratch.writing(KEPT) as writing:
            told = {"shards": shards, "exact": exact, "language_names": names, "indexes": counts}
            writing.path.write_text(json.dumps(told))
    return opened(scratch.path)


def opened(folder: epath.Path) -> References:
    """The real documents as `references` kept them in this folder."""
    told = json.loads((folder / KEPT).read_text())
    capped, held_out = (opened_index(folder, name, told["exact"], **told["indexes"][name]) for name in INDEXES)
    read = Ragged(*(_files(folder, kind, told["shards"]) for kind in ("words", "offsets")))
    return References(read, capped, held_out, told["language_names"], mapped(folder / LANGUAGES))


def _hash(scratch: Output, documents: Artifact, splits: Artifact, read: np.ndarray) -> None:
    """Writes the words of documents that were read, and the shingles of those held out."""
    shards = zip(documents.shards(".parquet"), splits.shards(".parquet"), strict=True)
    with progress(f"{scratch.label}: real documents", documents.rows, "documents") as counter:
        for index, (path, split_path) in enumerate(shards):
            names = [f"{kind}-{index:05d}.npy" for kind in ("words", "offsets", "held-out")]
            if all(map(scratch.has, names)):
                continue
            table, split = parquet.table(path, ["ordinal", "text"]), parquet.table(split_path, ["split"])
            was_read = among(table["ordinal"].to_numpy(), read)
            hashes, counts = _words(table["text"], was_read)
            save(scratch, names[0], hashes)
            save(scratch, names[1], np.concatenate(([0], np.cumsum(counts))))
            held = np.isin(split["split"].to_numpy(zero_copy_only=False).astype(str), HELD_OUT)
            found = [shingle_sets(words(texts))[0] for texts in _batches(table["text"], held)]
            save(scratch, names[2], np.sort(np.concatenate([np.empty(0, np.uint64), *found])))
            counter.advance(table.num_rows)


def _words(texts: pa.ChunkedArray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashed words of the chosen texts, one after another, and the words of each text, 0 for those not chosen."""
    hashes, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for some in _batches(texts, chosen):
        found = words(some)
        hashes.append(found.hashes_W)
        lengths.append(np.diff(found.offsets))
    counts = np.zeros(len(chosen), np.int64)
    counts[chosen] = np.concatenate(lengths)
    return np.concatenate(hashes), counts


def _batches(texts: pa.ChunkedArray, chosen: np.ndarray) -> Iterator[list[str]]:
    places = np.flatnonzero(chosen)
    for start in range(0, len(places), BATCH):
        yield texts.take(places[start : start + BATCH]).to_pylist()


def _sorted(scratch: Output, index: int, path: epath.Path) -> epath.Path:
    name = f"sorted-{index:05d}.npy"
    if not scratch.has(name):
        save(scratch, name, np.sort(mapped(path)))
    return scratch.path / name


def _files(folder: epath.Path, kind: str, shards: int) -> list[epath.Path]:
    return [folder / f"{kind}-{index:05d}.npy" for index in range(shards)]


def _languages(screened: Artifact, documents: int) -> tuple[list[str], np.ndarray]:
    codes = {UNDETERMINED: 0}
    languages = np.zeros(documents, np.int16)
    for table in parquet.tables(screened, ["ordinal", "language"]):
        names = table["language"].to_pylist()
        languages[table["ordinal"].to_numpy()] = [codes.setdefault(name, len(codes)) for name in names]
    return list(codes), languages
