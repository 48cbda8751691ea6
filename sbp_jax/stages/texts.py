"""Stage `texts`: the records of one held-out text set become numbered documents.

Unlike a corpus, a set keeps equal texts and equal ids: what is asked is the loss on the set as it is.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from etils import epath

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Corpus, Execution, TextSet
from sbp_jax.errors import SbpError
from sbp_jax.progress import progress
from sbp_jax.text import documents, record_text

VERSION = 1
DOCUMENTS, CHARACTERS = 1 << 14, 1 << 26  # of a shard at most; a longer document has one to itself
PROBE = 10_000  # when not one of so many first records is a document, there is no use in reading on


def files(texts: TextSet) -> list[epath.Path]:
    """The user's files of a set.

    Raises:
      SbpError: a path that does not exist, or that holds nothing to read.
    """
    return documents.source_files(texts.paths, f"evaluation.texts.{texts.name}.paths")


def run(output: Output, *, texts: TextSet, execution: Execution) -> Artifact:
    """Writes the documents with dense ordinals in reading order, and `skipped.jsonl` with every record left out.

    Raises:
      SbpError: files that cannot be read, too many records without a text, or no document at all.
    """
    skipped: list[documents.Skipped] = []
    first = shards = 0
    for found in _shards(output.label, texts, skipped):

        def write(writing: Writing, found: list[documents.Document] = found, first: int = first) -> None:
            parquet.write(writing, documents.table(found, first, given=texts.given is not None))
            writing.stats = {"documents": len(found), "bytes": sum(len(document.text.encode()) for document in found)}

        output.shard(shards, ".parquet", write)
        first, shards = first + len(found), shards + 1
    with output.writing("skipped.jsonl") as writing:
        writing.path.write_text("".join(json.dumps(vars(record), ensure_ascii=False) + "\n" for record in skipped))
    counts = Counter(record.reason for record in skipped)
    reasons = {f"skipped_{reason}": counts[reason] for reason in sorted(counts)}
    return output.finish({"skipped": len(skipped)} | reasons)


def _shards(label: str, texts: TextSet, skipped: list[documents.Skipped]) -> Iterator[list[documents.Document]]:
    found: list[documents.Document] = []
    characters = 0
    for document in _documents(label, texts, skipped):
        if found and (len(found) == DOCUMENTS or characters + len(document.text) > CHARACTERS):
            yield found
            found, characters = [], 0
        found.append(document)
        characters += len(document.text)
    if found:
        yield found


def _documents(label: str, texts: TextSet, skipped: list[documents.Skipped]) -> Iterator[documents.Document]:
    """The documents in reading order; what is left out goes to `skipped`."""
    field = f"evaluation.texts.{texts.name}"
    given = None if texts.given is None else record_text.parse(texts.given, f"{field}.given")
    template = replace(record_text.parse(texts.text, f"{field}.text"), given=given)
    read = 0
    with progress(label, None, "documents") as counter:
        for file in files(texts):
            for record in documents.read(file, Corpus(paths=texts.paths), template):
                read += 1
                counter.advance()
                if isinstance(record, documents.Document):
                    yield record
                    continue
                skipped.append(record)
                if len(skipped) == read == PROBE:
                    raise SbpError(_too_many(texts, field, skipped, read))
    if read == 0:
        raise SbpError(f"{field}.paths ({', '.join(texts.paths)}) holds no record")
    if len(skipped) == read or len(skipped) > texts.max_skipped * read:
        raise SbpError(_too_many(texts, field, skipped, read))


def _too_many(texts: TextSet, field: str, skipped: list[documents.Skipped], read: int) -> str:
    first = skipped[0]
    message = f"{len(skipped):,} of {read:,} records of the text set {texts.name} give no text"
    message += f", more than {field}.max_skipped = {texts.max_skipped:g} allows"
    message += f"; the first: {first.file}, line {first.line}: {first.reason}"
    message += f" ({first.detail})" if first.detail else ""
    return f"{message}; change {field}.text ({texts.text!r}), repair the file, or raise {field}.max_skipped"
