"""Reading documents from files: JSON Lines (plain, gzip, zstd), Parquet, Arrow, ArrayRecord, folders of plain text.

Every record becomes a `Document` or a `Skipped` with its place and reason; nothing is dropped in silence. Blank lines
are no records.
"""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
import zstandard
from etils import epath

from sbp_jax.config import Corpus
from sbp_jax.errors import SbpError
from sbp_jax.text import array_records
from sbp_jax.text.record_text import Missing, NoText, RecordText

SPLITS = ("validation", "test", "capped", "oracle", "unused")
SHOWN = 20  # names listed in an error message
ABSENT = object()

LINES = tuple(f".{name}{packing}" for name in ("jsonl", "json", "ndjson") for packing in ("", ".gz", ".zst"))
ARROW = (".parquet", ".arrow")  # .arrow: as `save_to_disk` of `datasets` writes it, a stream, or an IPC file
DATA = (*LINES, *ARROW)
TEXT = (".txt", ".md")
# What `datasets` and `tensorflow_datasets` write beside their tables.
METADATA = ("dataset_info.json", "dataset_dict.json", "state.json", "features.json", "metadata.json")
KINDS = ".jsonl, .json, .ndjson (each also .gz or .zst), .parquet, .arrow, .array_record, .txt, .md"
BLOCK = 1 << 12  # bytes of zstd read at a time, which decompress to at most 2^15 times as many
LONGEST = 1 << 28  # bytes of a line
BATCH = 1024  # rows of a table read at a time
IPC_FILE = b"ARROW1"  # begins the file format of Arrow; its stream has no such mark
SCHEMA = pa.schema([("ordinal", pa.int64()), *((name, pa.string()) for name in ("id", "source", "text"))])


@dataclass(frozen=True)
class Document:
    """One document as found; ids need not be unique yet."""

    id: str
    text: str
    line: int  # line, or Parquet row, counted from 1
    source: str  # what the record says, or the name of its file
    split: str | None = None  # what the record says
    given: int = 0  # characters at the beginning of the text that are read and bear no loss


@dataclass(frozen=True)
class Skipped:
    """A record that is no document.

    Attributes:
      file: the file as the user named it.
      line: line, or Parquet row, counted from 1.
      reason: too_long, not_json, not_an_object, no_text_field, text_not_a_string, empty, unknown_split or invalid_utf8.
      detail: what was found instead, for people.
    """

    file: str
    line: int
    reason: str
    detail: str = ""


def source_files(paths: Iterable[str], field: str = "corpus.paths") -> list[epath.Path]:
    """Expands files, folders and globs: in the order given, sorted inside each, every file once.

    A folder is searched through, hidden names excepted. Where a folder or a glob holds data files, the .txt and .md
    files beside them (a README) are no documents.

    Args:
      field: of the config that names the paths, for messages.

    Raises:
      SbpError: a path that does not exist, or that holds nothing of a known kind.
    """
    found: dict[str, epath.Path] = {}
    for name in paths:
        files = _expand(name, field)
        if not files:
            raise SbpError(f"{field}: {name} holds no file to read; known kinds are {KINDS}")
        found.update({str(file): file for file in files})
    if not found:
        raise SbpError(f"{field} is empty; set it to the files, folders or globs of your documents")
    return list(found.values())


def read(file: epath.Path, corpus: Corpus, template: RecordText | None = None) -> Iterator[Document | Skipped]:
    """Streams the records of one file, in order.

    Args:
      template: makes the text of a document from the fields of its record; None: `corpus.text_field` holds it. What a
        .txt file holds is the field `text`.

    Raises:
      SbpError: the file is cut off, damaged or not readable, or a table has no column for the text.
    """
    if file.name.lower().endswith(ARROW):
        yield from _table(file, corpus, template)
    elif array_records.is_array_record(file.name):
        yield from _array_records(file, corpus, template)
    elif file.name.lower().endswith(TEXT):
        yield from _plain_text(file, corpus, template)
    else:
        for number, line in enumerate(_lines(file), start=1):
            if line is None:
                yield Skipped(str(file), number, "too_long", f"more than {LONGEST:,} bytes")
            elif line.strip():
                yield _from_json(line, file, number, corpus, template)


def table(found: Sequence[Document], first: int, splits: bool = False, given: bool = False) -> pa.Table:
    """Documents as rows of an artifact, numbered from `first`.

    Args:
      splits: each says the split that it named.
      given: each says how many of its characters bear no loss.
    """
    schema = SCHEMA.append(pa.field("split", pa.string())) if splits else SCHEMA
    schema = schema.append(pa.field("given", pa.int64())) if given else schema
    columns = {name: [getattr(document, name) for document in found] for name in schema.names[1:]}
    return pa.table({"ordinal": range(first, first + len(found)), **columns}, schema=schema)


def id_hash(name: str) -> int:
    """What an id is known by in the whole pipeline, 64 bits."""
    return xxhash.xxh3_64_intdigest(name.encode())


def content_id(text: str) -> str:
    """The id of a document that has none: a hash of its text."""
    return "sha-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _expand(name: str, field: str) -> list[epath.Path]:
    path = epath.Path(name).expanduser()
    if path.is_dir():
        files = _walk(path)
    elif path.exists():
        return [path] if _is_data(path) or path.name.lower().endswith(TEXT) else []
    elif any(sign in name for sign in "*?["):
        root = _root(name)
        pattern = "/".join(path.parts[len(root.parts) :])
        files = sorted(file for file in root.glob(pattern) if not file.is_dir())
        if not files:
            raise SbpError(f"{field}: {name} matches no file; check the pattern and the folder it starts from")
    else:
        raise SbpError(f"{field}: {name} does not exist; check the path")
    data = [file for file in files if _is_data(file)]
    if any(_is_table(file) for file in data):
        data = [file for file in data if file.name not in METADATA]
    return data or [file for file in files if file.name.lower().endswith(TEXT)]


def _is_data(file: epath.Path) -> bool:
    return file.name.lower().endswith(DATA) or array_records.is_array_record(file.name)


def _is_table(file: epath.Path) -> bool:
    return file.name.lower().endswith(".arrow") or array_records.is_array_record(file.name)


def _walk(folder: epath.Path) -> list[epath.Path]:
    files: list[epath.Path] = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            if not path.is_dir():
                files.append(path)
            elif not os.path.islink(path):  # which may lead back up
                files.extend(_walk(path))
    return files


def _root(name: str) -> epath.Path:
    """The folder that the files of a configured path lie in: its part before the first wildcard."""
    path = epath.Path(name).expanduser()
    if path.exists():
        return path if path.is_dir() else path.parent
    parts: list[str] = []
    for part in path.parts[:-1]:
        if any(sign in part for sign in "*?["):
            break
        parts.append(part)
    return epath.Path(*parts) if parts else epath.Path(".")


def _lines(file: epath.Path) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is too long."""
    name = file.name.lower()
    try:
        with file.open("rb") as stream:
            if name.endswith(".gz"):
                yield from _bounded(gzip.GzipFile(fileobj=stream))
            elif name.endswith(".zst"):
                yield from _zstd_lines(stream)
            else:
                yield from _bounded(stream)
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise SbpError(_unreadable(file, error)) from error


def _bounded(stream: IO[bytes] | gzip.GzipFile) -> Iterator[bytes | None]:
    """Lines of which no more is ever held than `LONGEST`: a few bytes of gzip may hold a line of any length."""
    while line := stream.readline(LONGEST):
        if len(line) < LONGEST or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(LONGEST)
        yield None


def _unreadable(file: epath.Path, error: Exception) -> str:
    return f"{file} cannot be read to its end ({error}); check its permissions, or copy or download it again"


def _zstd_lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    # zstandard's own stream reader takes the end of a truncated file for its proper end, so frames are followed here.
    frame, begun, size = None, list[bytes](), 0  # pieces of the line that has begun, and how long they are together
    while block := stream.read(BLOCK):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            *ended, rest = frame.decompress(block).split(b"\n")
            for piece in ended:
                size += len(piece)
                yield b"".join([*begun, piece]) if size <= LONGEST else None
                begun, size = [], 0
            size += len(rest)
            if size <= LONGEST:
                begun.append(rest)
            else:
                begun = []
            block = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("the last zstd frame has no end")
    if size:
        yield b"".join(begun) if size <= LONGEST else None


def _from_json(
    line: bytes, file: epath.Path, number: int, corpus: Corpus, template: RecordText | None
) -> Document | Skipped:
    try:
        source = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return Skipped(str(file), number, "invalid_utf8", str(error))
    try:
        record = json.loads(source)
    except (ValueError, RecursionError) as error:
        found = "a list over several lines; write one object a line" if source.strip() == b"[" else error
        return Skipped(str(file), number, "not_json", str(found))
    if not isinstance(record, dict):
        return Skipped(str(file), number, "not_an_object", f"a JSON {type(record).__name__}")
    return _from_fields(record, file, number, corpus, template)


def _from_fields(
    record: Mapping[str, Any], file: epath.Path, number: int, corpus: Corpus, template: RecordText | None
) -> Document | Skipped:
    identity, origin = _field(record, corpus.id_field), _field(record, corpus.source_field)
    if corpus.source_pattern is not None and (found := re.search(corpus.source_pattern, str(origin or ""))):
        origin = found.group()
    if template is None:
        text = _field(record, corpus.text_field, ABSENT)
        if text is ABSENT:
            return Skipped(str(file), number, "no_text_field", f"fields: {_some(record)}")
        return _document(text, identity, origin, file, number, _field(record, corpus.split_field))
    try:
        given = template.given.render(record) if template.given else ""
        return _document(given + template.render(record), identity, origin, file, number, given=len(given))
    except Missing as missing:
        return Skipped(str(file), number, "no_text_field", f"{missing}; fields: {_some(record)}")
    except NoText as found:
        return Skipped(str(file), number, "text_not_a_string", str(found))


def _field(record: Mapping[str, Any], name: str | None, default: Any = None) -> Any:
    """A field of a record, or of one inside it: metadata.url, where no field is named so itself."""
    if name is None or name in record:
        return default if name is None else record[name]
    first, _, rest = name.partition(".")
    inside = record.get(first)
    return _field(inside, rest, default) if rest and isinstance(inside, Mapping) else default


def _some(names: Iterable[str]) -> str:
    """The first names, for an error message."""
    shown = list(islice(map(repr, names), SHOWN + 1))
    return ", ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "") or "none"


def _document(
    text: Any, identity: Any, origin: Any, file: epath.Path, number: int, split: Any = None, given: int = 0
) -> Document | Skipped:
    if not isinstance(text, str):
        return Skipped(str(file), number, "text_not_a_string", f"a {type(text).__name__}")
    if not text[given:].strip():
        return Skipped(str(file), number, "empty")
    if split is not None and split not in SPLITS:
        return Skipped(str(file), number, "unknown_split", f"{split!r}; a split is {', '.join(SPLITS)}")
    name = "" if identity is None else str(identity)
    source = ("" if origin is None else str(origin)) or file.name
    try:  # JSON escapes can spell half of a surrogate pair, which no UTF-8 can hold
        text.encode()
        name.encode()
        source.encode()
    except UnicodeEncodeError as error:
        return Skipped(str(file), number, "invalid_utf8", str(error).encode("ascii", "backslashreplace").decode())
    return Document(name or content_id(text), text, number, source, split, given)


def _table(file: epath.Path, corpus: Corpus, template: RecordText | None) -> Iterator[Document | Skipped]:
    """The records of a Parquet or an Arrow file."""
    with file.open("rb") as stream:
        try:
            names, batches = _batches(stream, file)
            needed = (corpus.text_field,) if template is None else template.fields
            for name in needed:
                if names.count(_column(name, names)) != 1:
                    count = "several columns" if name in names else "no column"
                    setting = "set corpus.text_field to" if template is None else "the template may name"
                    raise SbpError(f"{file} has {count} {name!r}; {setting} one of: {_some(names)}")
            keys = () if template is None else template.keys
            wanted = (*needed, *keys, corpus.id_field, corpus.source_field, corpus.split_field)
            found = (_column(name, names) for name in wanted if name is not None)
            columns = list(dict.fromkeys(name for name in found if name in names))
            number = 0
            for batch in batches(columns):
                values = [_values(batch.column(name)) for name in columns]
                for row in zip(*values, strict=True):
                    number += 1
                    try:
                        fields = [value.decode() if isinstance(value, bytes) else value for value in row]
                    except UnicodeDecodeError as error:
                        yield Skipped(str(file), number, "invalid_utf8", str(error))
                        continue
                    yield _from_fields(dict(zip(columns, fields, strict=True)), file, number, corpus, template)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise SbpError(_unreadable(file, error)) from error


def _column(field: str, names: Sequence[str]) -> str:
    """The column that holds a field: metadata for metadata.url."""
    return field if field in names else field.partition(".")[0]


def _batches(stream: IO[bytes], file: epath.Path) -> tuple[list[str], Callable[[list[str]], Iterator[pa.RecordBatch]]]:
    """The columns of a table, and how to read some of them, a bounded number of rows at a time."""
    if file.name.lower().endswith(".parquet"):
        table = pq.ParquetFile(stream)
        return table.schema_arrow.names, lambda columns: table.iter_batches(BATCH, columns=columns)
    is_file = stream.read(len(IPC_FILE)) == IPC_FILE
    stream.seek(0)
    reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)

    def read(columns: list[str]) -> Iterator[pa.RecordBatch]:
        whole = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader
        for batch in whole:
            chosen = batch.select(columns)
            yield from (chosen.slice(start, BATCH) for start in range(0, chosen.num_rows, BATCH))

    return reader.schema.names, read


def _values(column: pa.Array) -> list[Any]:
    """Python values of a column, strings as bytes: Arrow does not check that they are UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _array_records(file: epath.Path, corpus: Corpus, template: RecordText | None) -> Iterator[Document | Skipped]:
    try:
        for number, record in enumerate(array_records.records(file), start=1):
            if isinstance(record, bytes):
                yield _from_json(record, file, number, corpus, template)
            else:
                yield _from_fields(record, file, number, corpus, template)
    except (ValueError, OSError) as error:
        raise SbpError(_unreadable(file, error)) from error


def _plain_text(file: epath.Path, corpus: Corpus, template: RecordText | None) -> Iterator[Document | Skipped]:
    """A whole file as one document; its id is its path below the folder that all of `corpus.paths` share."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Skipped(str(file), 1, "invalid_utf8", str(error))
        return
    except OSError as error:
        raise SbpError(_unreadable(file, error)) from error
    roots = [_root(name).parts for name in corpus.paths]
    shared = os.path.commonprefix([file.parent.parts, *roots])
    identity = None if corpus.id_field is None else "/".join(file.parts[len(shared) :])
    if template is None:
        yield _document(text, identity, None, file, 1)
    else:
        fields = {"text": text} | ({} if identity is None else {corpus.id_field or "id": identity})
        yield _from_fields(fields, file, 1, corpus, template)
