"""ArrayRecord shards: sequences of tokens with random access, the format Grain reads."""

from collections.abc import Iterable, Sequence

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from sbp_jax.artifacts.artifact import Artifact, Writing


def write(writing: Writing, records: Iterable[bytes]) -> None:
    """Writes one shard, a chunk per record so that any record can be read alone, and counts its rows."""
    writer = ArrayRecordWriter(str(writing.path), "group_size:1,zstd:3")
    try:
        for record in records:
            writer.write(record)
            writing.rows += 1
    finally:
        writer.close()


def source(artifact: Artifact) -> Sequence[bytes]:
    """All records of an artifact by their index over all shards, in order."""
    return ArrayRecordDataSource([str(path) for path in artifact.shards(".array_record")])
