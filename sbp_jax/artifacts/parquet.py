"""Parquet shards: the format of everything a person may want to open."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from sbp_jax.artifacts.artifact import Artifact, Writing


def write(writing: Writing, table: pa.Table) -> None:
    """Writes one shard (zstd) and sets its number of rows."""
    with writing.path.open("wb") as stream:
        pq.write_table(table, stream, compression="zstd")
    writing.rows = table.num_rows


def read(artifact: Artifact, columns: Iterable[str] | None = None, prefix: str = "part") -> pa.Table:
    """All shards as one table, in order."""
    return pa.concat_tables(list(tables(artifact, columns, prefix)))


def tables(artifact: Artifact, columns: Iterable[str] | None = None, prefix: str = "part") -> Iterator[pa.Table]:
    """One table per shard, in order, its checksum verified."""
    names = None if columns is None else list(columns)
    for path in artifact.shards(".parquet", prefix):
        yield table(path, names)


def shard(artifact: Artifact, number: int, columns: Iterable[str] | None = None) -> pa.Table:
    """One of the shards, its checksum verified."""
    return table(artifact.file(f"part-{number:05d}.parquet"), columns)


def shard_rows(artifact: Artifact) -> list[int]:
    """Rows of each shard, in order."""
    shards = [file for file in artifact.files if file.name.startswith("part-") and file.name.endswith(".parquet")]
    return [file.rows for file in shards]


def table(path: epath.Path, columns: Iterable[str] | None = None) -> pa.Table:
    """One shard, its checksum not verified."""
    with path.open("rb") as stream:
        return pq.read_table(stream, columns=None if columns is None else list(columns))


def columns(artifact: Artifact) -> list[str]:
    """Names of the columns of its first shard; all have the same."""
    with artifact.shards(".parquet")[0].open("rb") as stream:
        return list(pq.read_schema(stream).names)


def rows(path: epath.Path) -> int:
    """Rows of one shard."""
    with path.open("rb") as stream:
        return pq.ParquetFile(stream).metadata.num_rows
