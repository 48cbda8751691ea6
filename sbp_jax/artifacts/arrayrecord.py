"""ArrayRecord shards: sequences of tokens with random access, the format Grain reads."""

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

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
        writer.close()
    except RuntimeError as error:  # what the writer raises for whatever the system refuses
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(writing.path)) from error
        raise
    finally:
        if writer.is_open():
            with suppress(RuntimeError):
                writer.close()


def source(artifact: Artifact) -> Sequence[bytes]:
    """All records of an artifact by their index over all shards, in order."""
    return ArrayRecordDataSource([str(path) for path in artifact.shards(".array_record")])
