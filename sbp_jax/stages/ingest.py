"""Stage `ingest`: the user's files become numbered documents."""

import json
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from etils import epath

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Corpus, Execution
from sbp_jax.errors import SbpError
from sbp_jax.progress import progress
from sbp_jax.text import documents
from sbp_jax.text.parts import parts

VERSION = 2
PROBE = 10_000  # when not one of so many first records is a document, there is no use in reading on


def run(output: Output, *, corpus: Corpus, execution: Execution) -> Artifact:
    """Writes the documents with dense ordinals in reading order, and `skipped.jsonl` with every record left out.

    Raises:
      SbpError: files that cannot be read, too many bad records, or no document at all.
    """
    skipped: list[documents.Skipped] = []
    waiting: list[documents.Document] = []
    shards = 0
    for document in _documents(output, corpus, skipped):
        waiting.append(document)
        if len(waiting) == corpus.documents_per_shard:
            _shard(output, corpus, shards, waiting)
            shards, waiting = shards + 1, []
    if waiting:
        _shard(output, corpus, shards, waiting)
        shards += 1
    if shards == 0:
        paths = ", ".join(corpus.paths)
        raise SbpError(f"no documents in {paths}; check corpus.paths and corpus.sample ({corpus.sample})")
    if output.has(f"part-{shards:05d}.parquet"):
        raise SbpError(f"the corpus has become smaller since an unfinished run wrote {output.path}; delete that folder")
    with output.writing("skipped.jsonl") as writing:
        writing.path.write_text("".join(json.dumps(vars(record), ensure_ascii=False) + "\n" for record in skipped))
    counts = Counter(record.reason for record in skipped)
    reasons = {f"skipped_{reason}": counts[reason] for reason in sorted(counts)}
    return output.finish({"skipped": len(skipped)} | reasons)


def _documents(output: Output, corpus: Corpus, skipped: list[documents.Skipped]) -> Iterator[documents.Document]:
    """The documents to keep; what is left out goes to `skipped`.

    Two documents of one id are an error of the corpus and count as bad records; equal texts without ids are not.
    """
    seen: set[int] = set()
    read = bad = 0
    with progress(output.label, None, "documents") as counter:
        for file in documents.source_files(corpus.paths):
            for record in documents.read(file, corpus):
                read += 1
                counter.advance()
                if isinstance(record, documents.Document):
                    if not _sampled(record.text, corpus.sample):
                        continue
                    whole = [record] if corpus.max_characters is None else list(parts(record, corpus.max_characters))
                    keys = [documents.id_hash(part.id) for part in whole]
                    if seen.isdisjoint(keys):
                        seen.update(keys)
                        yield from whole
                        continue
                    record = _duplicate(record, str(file))
                skipped.append(record)
                bad += record.reason != "duplicate_text"
                if bad == read == PROBE:
                    raise SbpError(_too_many(corpus, skipped, bad, read))
    if read and bad / read > corpus.max_skipped:
        raise SbpError(_too_many(corpus, skipped, bad, read))


def _sampled(text: str, sample: float) -> bool:
    return sample >= 1.0 or xxhash.xxh3_64_intdigest(text.encode()) / 2.0**64 < sample


def _duplicate(document: documents.Document, file: str) -> documents.Skipped:
    reason = "duplicate_text" if document.id == documents.content_id(document.text) else "duplicate_id"
    return documents.Skipped(file, document.line, reason, f"id {document.id!r} was read before")


def _too_many(corpus: Corpus, skipped: list[documents.Skipped], bad: int, read: int) -> str:
    first = next(record for record in skipped if record.reason != "duplicate_text")
    message = f"{bad:,} of {read:,} records are bad, more than corpus.max_skipped = {corpus.max_skipped:g} allows; "
    message += f"the first: {first.file}, line {first.line}: {first.reason}"
    if first.reason == "no_text_field":
        fields = f"no field {corpus.text_field!r} ({first.detail})"
        return f"{message}, {fields}; set corpus.text_field to the one that holds the text"
    if first.reason == "unknown_split":
        return f"{message}, {first.detail}; correct the field or set corpus.split_field to another or to None"
    if first.reason == "duplicate_id":
        return f"{message}, {first.detail}; make the ids unique, or set corpus.id_field to another field or to None"
    return f"{message}{f' ({first.detail})' if first.detail else ''}; repair the file or raise corpus.max_skipped"


def _shard(output: Output, corpus: Corpus, index: int, found: list[documents.Document]) -> None:
    table = documents.table(found, index * corpus.documents_per_shard, corpus.split_field is not None)

    def write(writing: Writing) -> None:
        parquet.write(writing, table)
        writing.stats = {"documents": len(found), "bytes": pc.sum(pc.binary_length(table["text"])).as_py()}

    name = f"part-{index:05d}.parquet"
    if output.has(name) and not _same(output.path / name, table):
        with output.writing(name) as writing:  # the user's files changed after a run that did not finish
            write(writing)
    output.shard(index, ".parquet", write)


def _same(path: epath.Path, table: pa.Table) -> bool:
    with path.open("rb") as stream:
        return pq.read_table(stream).equals(table)
