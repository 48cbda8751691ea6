"""The user's own vectors: a .npy with a row for each document, or Parquet with ids.

Vectors of Parquet files are put in the order of the documents in a file on disk, so that memory holds a few bytes for
some of the documents and never the vectors. Both kinds are then one array on disk, indexed by ordinal.

Legend: N documents of the corpus, D width, R rows of a batch.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath
from jaxtyping import Float

from sbp_jax.errors import SbpError
from sbp_jax.text.documents import id_hash

SOUGHT = 1 << 24  # documents whose vectors are looked for in one pass over the files; each takes 17 bytes of memory
READ = 1 << 24  # numbers of vectors that are read at a time
SHOWN = 3  # examples in a message
_SMALLEST = 1e-30  # norm of a vector that counts as zero

Sought = Callable[[], Iterable[tuple[np.ndarray, list[str]]]]  # ordinals and ids of some documents at a time, ascending


def files(path: str) -> list[epath.Path]:
    """The file, or the Parquet files of a folder, in order.

    Raises:
      SbpError: there is none, or it is of another kind.
    """
    given = epath.Path(path).expanduser()
    found = sorted(given.glob("*.parquet")) if given.is_dir() else [given] if given.exists() else []
    if not found or found[0].suffix not in (".npy", ".parquet"):
        raise SbpError(f"embedding.vectors is {path}; it must be a .npy, a .parquet or a folder of .parquet files")
    return found


def load(path: str, dimensions: int | None, documents: int, sought: Sought, scratch: Path) -> Float[np.ndarray, "N D"]:
    """The vectors by ordinal, on disk; of those from Parquet files only the sought ones are there.

    Args:
      dimensions: of a vector to keep; None: all.
      documents: N.
      sought: the documents whose vectors are wanted.
      scratch: an empty folder on a local disk, which takes the vectors that come from Parquet files.

    Raises:
      SbpError: the files are damaged or of another form, an id of a document is missing or there twice, vectors differ
        in width, are zero or not finite, or there are fewer or more rows than documents.
    """
    found = files(path)
    given = _mapped(found[0], documents) if found[0].suffix == ".npy" else None
    width = _width(found) if given is None else given.shape[1]
    if dimensions is not None and dimensions > width:
        raise SbpError(f"embedding.dimensions is {dimensions}; the vectors in {found[0]} have {width}")
    if given is None:
        if (needed := 4 * documents * width) > shutil.disk_usage(scratch).free:  # else the process is killed on the way
            raise SbpError(
                f"the vectors take {needed:,} bytes of {scratch}, which has not as many; set TMPDIR to a larger disk"
            )
        given = np.lib.format.open_memmap(scratch / "vectors.npy", "w+", np.float32, (documents, width))
        _collect(found, sought, given)
    vectors_ND = given[:, :dimensions]
    empty, step = Fault(), max(1, READ // width)
    for ordinals, ids in sought():
        for start in range(0, len(ids), step):
            usable = _usable(vectors_ND[ordinals[start : start + step]])
            empty.add([ids[start + row] for row in np.flatnonzero(~usable)])
    empty.demand_none(f"vectors in {_name(found)} are zero or not finite", "embed those documents again")
    return vectors_ND


def normalized(vectors_RD: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R D"]:
    """The vectors in float32, scaled to unit length."""
    return (vectors_RD / _norms(vectors_RD)[:, None]).astype(np.float32)


def _norms(vectors_RD: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors_RD.astype(np.float64), axis=1)


def _usable(vectors_RD: np.ndarray) -> np.ndarray:
    norms_R = _norms(vectors_RD)
    return np.isfinite(norms_R) & (norms_R > _SMALLEST)


def _mapped(file: epath.Path, documents: int) -> np.ndarray:
    try:
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise SbpError(f"{file} cannot be read as a .npy ({error}); save it with numpy.save") from error
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise SbpError(f"{file} holds {vectors.dtype} of shape {vectors.shape}; it must be floats of two dimensions")
    if len(vectors) != documents:
        raise SbpError(
            f"{file} has {len(vectors):,} rows for {documents:,} documents; it needs one for each document that was"
            " ingested, in order (records that ingestion skips have none): use Parquet with ids if that is in doubt"
        )
    return vectors


def _width(found: list[epath.Path]) -> int:
    """Numbers of a vector: those of the first one; the schemas of all files are looked at."""
    width = None
    for file in found:
        with file.open("rb") as stream:
            try:
                parquet = pq.ParquetFile(stream)
            except pa.ArrowInvalid as error:
                raise SbpError(f"{file} cannot be read as Parquet ({error}); write it again") from error
            if missing := [name for name in ("id", "embedding") if name not in parquet.schema_arrow.names]:
                columns = ", ".join(parquet.schema_arrow.names)
                raise SbpError(f"{file} has no column {missing[0]}, only {columns}; it must have id and embedding")
            kind = parquet.schema_arrow.field("embedding").type
            if isinstance(kind, pa.BaseExtensionType):
                kind = kind.storage_type
            lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
            if not lists or not pa.types.is_floating(kind.value_type):
                raise SbpError(f"the column embedding of {file} is {kind}; it must hold lists of floats")
            if width is None:
                first = next(
                    (batch for batch in parquet.iter_batches(1, columns=["embedding"]) if batch.num_rows), None
                )
                value = None if first is None else first["embedding"][0].as_py()
                width = None if value is None else len(value)
    if not width:
        raise SbpError(f"{found[0]} does not begin with a vector, so their width is not known; write it again")
    return width


def _passes(sought: Sought) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hashes of ids, ascending, and the ordinals they belong to, `SOUGHT` documents or a few more at a time."""
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for ordinals, ids in sought():
        waiting.append((_hashes(ids), ordinals))
        count += len(ids)
        if count >= SOUGHT:
            yield _sorted(waiting)
            waiting, count = [], 0
    if count:
        yield _sorted(waiting)


def _sorted(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    hashes, ordinals = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(hashes)
    return hashes[order], ordinals[order]


def _hashes(ids: list[str]) -> np.ndarray:
    return np.array([id_hash(text) for text in ids], np.uint64)


@dataclass
class Fault:
    """Documents with one thing wrong: how many, and the first ids."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, ids: list[str]) -> None:
        self.count += len(ids)
        self.examples += ids[: SHOWN - len(self.examples)]

    def demand_none(self, what: str, remedy: str) -> None:
        if self.count:
            shown = ", ".join(self.examples) + (", ..." if self.count > len(self.examples) else "")
            raise SbpError(f"{self.count:,} {what} (ids {shown}); {remedy}")


def _collect(found: list[epath.Path], sought: Sought, vectors_ND: np.ndarray) -> None:
    """Writes the vectors of the sought documents to their places."""
    missing, doubled, uneven = Fault(), Fault(), Fault()
    width = vectors_ND.shape[1]
    for hashes, ordinals in _passes(sought):
        seen = np.zeros(len(hashes), np.bool_)
        for ids, column, rows, places in _matches(found, hashes, max(1, READ // width)):
            again = np.ones(len(places), np.bool_)
            again[np.unique(places, return_index=True)[1]] = False
            doubled.add([ids[row] for row in rows[again | seen[places]]])
            seen[places] = True
            taken = column.take(pa.array(rows))
            even = pc.fill_null(pc.equal(pc.list_value_length(taken), width), False)
            kept = even.to_numpy(zero_copy_only=False)
            uneven.add([ids[row] for row in rows[~kept]])
            flat = taken.filter(even).flatten().to_numpy(zero_copy_only=False)
            vectors_ND[ordinals[places[kept]]] = flat.reshape(-1, width)
        if not seen.all():
            absent = ordinals[~seen]
            for some, ids in sought():
                missing.add([ids[row] for row in np.flatnonzero(np.isin(some, absent))])
    name = _name(found)
    missing.demand_none(f"documents have no vector in {name}", "add them, or take the documents out of the corpus")
    doubled.demand_none(f"vectors in {name} are of documents that have one already", "leave one for each")
    uneven.demand_none(f"vectors in {name} are not {width} numbers long as the first one", "use one model for all")


def _matches(
    found: list[epath.Path], hashes: np.ndarray, size: int
) -> Iterator[tuple[list[str], pa.Array, np.ndarray, np.ndarray]]:
    """Ids and vectors of a batch, its rows that are sought, and their places among the hashes.

    Of a row group without any of them the vectors are never read.
    """
    for file in found:
        with file.open("rb") as stream:
            parquet = pq.ParquetFile(stream)
            for group in range(parquet.num_row_groups):
                read = parquet.iter_batches(size, [group], ["id"])
                texts = [pc.fill_null(batch["id"].cast(pa.string()), "").to_pylist() for batch in read]
                matches = [_find(hashes, _hashes(ids)) for ids in texts]
                if not any(len(rows) for rows, _ in matches):
                    continue
                batches = parquet.iter_batches(size, [group], ["embedding"])
                for ids, (rows, places), batch in zip(texts, matches, batches, strict=True):
                    column = batch["embedding"]
                    yield ids, getattr(column, "storage", column), rows, places


def _name(found: list[epath.Path]) -> epath.Path:
    return found[0] if len(found) == 1 else found[0].parent


def _find(hashes: np.ndarray, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of some hashes are among the ascending ones, and their places there."""
    places = np.minimum(np.searchsorted(hashes, some), len(hashes) - 1)
    rows = np.flatnonzero(hashes[places] == some)
    return rows, places[rows]
