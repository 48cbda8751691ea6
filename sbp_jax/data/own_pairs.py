"""Pairs that the user brings: Parquet or JSON Lines with the ids `d1` and `d2`, and perhaps a `similarity`.

Memory holds 20 bytes for each pair and for each of their documents, one file of pairs, and one shard of the documents.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from etils import epath

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.errors import SbpError
from sbp_jax.text.documents import id_hash

KINDS = (".parquet", ".jsonl", ".jsonl.gz")
SHOWN = 3  # examples in a message
COLUMNS = pa.schema([("d1", pa.string()), ("d2", pa.string()), ("similarity", pa.float32())])
PAIR = np.dtype([("d1", "<u8"), ("d2", "<u8"), ("similarity", "<f4")])


@dataclass(frozen=True)
class Joined:
    """The pairs of capped documents, by d1 and falling similarity, and how many others there were.

    Attributes:
      d1, d2: ordinals, int64.
      similarity: float32; 1 where none was given.
      uncapped: pairs with a document that is not in the capped set.
      repeated: pairs that were there before, or of a document with itself.
    """

    d1: np.ndarray
    d2: np.ndarray
    similarity: np.ndarray
    uncapped: int
    repeated: int


def files(path: str) -> list[epath.Path]:
    """The file, or all files of these kinds in a folder, in order.

    Raises:
      SbpError: there is none.
    """
    given = epath.Path(path).expanduser()
    listed = sorted(given.iterdir()) if given.is_dir() else [given] if given.exists() else []
    if not (found := [file for file in listed if file.name.endswith(KINDS)]):
        raise SbpError(f"pairs.path is {path}; it must be a file, or a folder of files, of kind {', '.join(KINDS)}")
    return found


def join(path: str, documents: Artifact, splits: Artifact) -> Joined:
    """Reads the pairs and finds their documents.

    Raises:
      SbpError: a file that cannot be read or lacks a column, an id that no document has, a similarity that is no
        number, or no pair of two capped documents.
    """
    pairs = np.concatenate([np.empty(0, PAIR), *map(_read, files(path))])
    wanted = np.unique(np.concatenate([pairs["d1"], pairs["d2"]]))
    ordinals, capped = np.full(len(wanted), -1, np.int64), np.zeros(len(wanted), np.bool_)
    shards = zip(parquet.tables(documents, ["ordinal", "id"]), parquet.tables(splits, ["split"]), strict=True)
    for table, split in shards:
        hashes = np.array([id_hash(text) for text in table["id"].to_pylist()], np.uint64)
        places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        rows = np.flatnonzero(wanted[places] == hashes) if len(wanted) else np.empty(0, np.int64)
        ordinals[places[rows]] = table["ordinal"].to_numpy()[rows]
        capped[places[rows]] = split["split"].to_numpy(zero_copy_only=False)[rows] == "capped"
    _demand_known(path, wanted[ordinals < 0])
    first, second = (np.searchsorted(wanted, pairs[name]) for name in ("d1", "d2"))
    inside = capped[first] & capped[second]
    d1, d2, similarity = ordinals[first][inside], ordinals[second][inside], pairs["similarity"][inside]
    order = np.lexsort((d2, -similarity, d1))
    d1, d2, similarity = d1[order], d2[order], similarity[order]
    _, kept = np.unique(np.stack([d1, d2]), axis=1, return_index=True)
    kept = np.sort(kept[d1[kept] != d2[kept]])
    if not len(kept):
        raise SbpError(
            f"{path} holds no pair of two documents of the capped set; raise splits.capped, or set splits.by"
        )
    return Joined(d1[kept], d2[kept], similarity[kept], int(np.sum(~inside)), len(d1) - len(kept))


def _table(file: epath.Path) -> pa.Table:
    """The columns that count, ids as text.

    Raises:
      SbpError: the file cannot be read, or lacks one.
    """
    try:
        if file.name.endswith(".parquet"):
            with file.open("rb") as stream:
                parsed = pq.ParquetFile(stream)
                names = [name for name in COLUMNS.names if name in parsed.schema_arrow.names]
                table, found = parsed.read(columns=names), parsed.schema_arrow.names
        else:  # a schema, or ids that look like dates would become dates
            wanted = pyarrow.json.ParseOptions(explicit_schema=COLUMNS, unexpected_field_behavior="ignore")
            table = pyarrow.json.read_json(pa.input_stream(str(file), compression="detect"), parse_options=wanted)
            found = [name for name in table.column_names if table[name].null_count < table.num_rows]
        if missing := [name for name in ("d1", "d2") if name not in found]:
            columns = ", ".join(found) or "nothing that pairs have"
            raise SbpError(
                f"{file} has no column {missing[0]}, only {columns}; it must have d1 and d2, ids of documents"
            )
        given = [name for name in COLUMNS.names if name in found]
        return pa.table({name: table[name].cast(COLUMNS.field(name).type) for name in given})
    except (pa.ArrowException, OSError) as error:
        raise SbpError(f"{file} cannot be read ({error}); write it again") from error


def _read(file: epath.Path) -> np.ndarray:
    """The pairs of a file, by the hashes of their ids."""
    table = _table(file)
    pairs = np.ones(table.num_rows, PAIR)
    for name in ("d1", "d2"):
        pairs[name] = [id_hash(text) for text in table[name].fill_null("").to_pylist()]
    if "similarity" in table.column_names:
        pairs["similarity"] = table["similarity"].to_numpy()
    if not np.isfinite(pairs["similarity"]).all():
        row = int(np.flatnonzero(~np.isfinite(pairs["similarity"]))[0])
        raise SbpError(f"{file}: the similarity of pair {row + 1} is no number; give all pairs one, or none")
    return pairs


def _demand_known(path: str, unknown: np.ndarray) -> None:
    if not len(unknown):
        return
    sought, examples = set(unknown[:SHOWN].tolist()), set[str]()
    for file in files(path):
        table = _table(file)
        for name in ("d1", "d2"):
            examples |= {text for text in table[name].fill_null("").to_pylist() if id_hash(text) in sought}
    names = ", ".join(map(repr, sorted(examples))) + (", ..." if len(unknown) > SHOWN else "")
    raise SbpError(
        f"{path} names {len(unknown):,} ids that no document has ({names}); check corpus.id_field, or take them out;"
        " where corpus.max_characters cuts documents, name their parts: ID#0, ID#1 and so on"
    )
