"""Writing and reading artifacts so that nothing half-written is ever read and nothing finished is ever lost.

A file counts once its marker in `.done/` exists, and the artifact once `manifest.json` does. Both are small JSON
files written after what they vouch for; one cut off in the middle does not parse and counts as absent. No step
relies on an atomic rename, which buckets do not have.
"""

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import xxhash
from etils import epath

from sbp_jax.artifacts.recipe import Recipe
from sbp_jax.errors import SbpError

MANIFEST = "manifest.json"
MARKERS = ".done"
FAILED = ".failed"  # begins the name of what a process leaves that gives an artifact up
SAY_SECONDS = 60.0  # between two words about what is waited for


@dataclass(frozen=True)
class File:
    """One finished file of an artifact: name inside the folder, rows, bytes, xxh3-128 checksum, summable counts."""

    name: str
    rows: int
    bytes: int
    checksum: str
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A complete artifact, opened for reading."""

    path: epath.Path
    key: str
    files: tuple[File, ...]
    stats: dict[str, Any]
    seconds: float
    recipe: dict[str, Any]
    _verified: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Rows of the shards, or steps of a training run; rejected rows do not count."""
        return count_rows(self.files)

    def file(self, name: str) -> epath.Path:
        """Path of a file, its checksum verified at the first use.

        Raises:
          SbpError: the file is missing or its content changed since it was written.
        """
        entry = next((file for file in self.files if file.name == name), None)
        if entry is None:
            raise SbpError(
                f"{self.path} has no file {name}; it was made by another version: run `sbp clean`, then `sbp run`"
            )
        path = self.path / name
        if name not in self._verified:
            if not path.exists():
                raise SbpError(f"{path} is missing; run `sbp run` again to rebuild it")
            if checksum(path) != entry.checksum:
                raise SbpError(
                    f"{path} is corrupted (its checksum is not the one written with it);"
                    " delete that file and run `sbp run` again to rebuild it alone"
                )
            self._verified.add(name)
        return path

    def folder(self, name: str) -> epath.Path:
        """Path of a folder of files, such as a model, the checksum of each verified.

        Raises:
          SbpError: there is none, or a file is missing or changed since it was written.
        """
        files = [file.name for file in self.files if file.name.startswith(f"{name}/")]
        for file in files or [name]:
            self.file(file)
        return self.path / name

    def shards(self, suffix: str, prefix: str = "part") -> list[epath.Path]:
        """Verified paths of the shards named `prefix-00000suffix` and so on, in order."""
        return [
            self.file(file.name)
            for file in self.files
            if file.name.startswith(f"{prefix}-") and file.name.endswith(suffix)
        ]


def find(path: epath.Path, key: str) -> Artifact | None:
    """The complete artifact in a folder, or None where it is absent or partial."""
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or "files" not in manifest:
        return None
    files = tuple(File(**entry) for entry in manifest["files"])
    for entry in files:
        file = path / entry.name
        if not file.exists() or file.stat().length != entry.bytes:
            return None
    return Artifact(path, key, files, manifest["stats"], manifest["seconds"], manifest["recipe"])


def wait_for(path: epath.Path, key: str) -> Artifact:
    """The artifact that another process makes in a folder, once it is complete.

    Raises:
      SbpError: another process has failed at it meanwhile.
    """
    waiting = Waiting(path)
    while (artifact := find(path, key)) is None:
        waiting.look("its manifest")
        time.sleep(1.0)
    return artifact


def report_failure(path: epath.Path, process: int, message: str) -> None:
    """Tells the other processes that wait for an artifact that this one gives up; where there is no room, nobody."""
    with suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
        record = {"process": process, "message": message, "at": time.time_ns()}
        (path / f"{FAILED}-{process}.json").write_text(json.dumps(record))


class Waiting:
    """Waits for what other processes write, not without a word, and not for one that has failed since it began."""

    def __init__(self, path: epath.Path):
        self._path, self._looks, self._said = path, 0, time.monotonic()
        self._before = self._failures()

    def look(self, what: str) -> None:
        """Has to be called again and again.

        Raises:
          SbpError: another process has failed.
        """
        self._looks += 1
        for record in self._failures():
            if record not in self._before:
                raise SbpError(
                    f"{self._path.parent.name}: process {record['process']} failed ({record['message']}); run it again,"
                    " and then this one: what is finished is kept"
                )
        if time.monotonic() - self._said > SAY_SECONDS:
            self._said = time.monotonic()
            print(f"  {self._path.parent.name}: waiting for {what}", file=sys.stderr, flush=True)

    def _failures(self) -> list[dict[str, Any]]:
        records = (read_json(file) for file in self._path.glob(f"{FAILED}-*.json"))
        return [record for record in records if isinstance(record, dict)]


class Output:
    """An artifact being written; a killed run's finished files are found again.

    Where several processes make one artifact together, one of them writes. The others hold an `Output` that takes no
    files and whose `finish` waits for the manifest. Files that each process makes apart, for itself, are named to
    `apart`; all of them are written.

    Attributes:
      path: the folder.
      label: the stage instance, for progress and messages.
      execution: how the work is carried out, recorded in the manifest and no part of the recipe.
    """

    def __init__(
        self,
        path: epath.Path,
        recipe: Recipe,
        label: str,
        execution: dict[str, Any] | None = None,
        writes: bool = True,
    ):
        self.path, self.recipe, self.label, self.execution = path, recipe, label, execution or {}
        self._writes = writes
        self._own: set[str] = set()
        self._elsewhere: set[str] = set()
        self._started = time.monotonic()
        self._files: dict[str, File] = {}
        self._waiting = Waiting(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / MARKERS).mkdir(exist_ok=True)
        if not writes:
            return
        if (path / MANIFEST).exists():  # a file vanished after the artifact was complete
            (path / MANIFEST).unlink()
        for entry in finished_files(path):
            self._files[entry.name] = entry

    def has(self, name: str) -> bool:
        return name in self._files

    def counts(self, name: str) -> dict[str, Any]:
        """The summable counts of a finished file."""
        return self._files[name].stats

    def apart(self, names: Sequence[str], process: int, processes: int) -> list[str]:
        """Divides files among the processes, each of which then writes its own; `finish` waits for all of them.

        Returns:
          Those of this process that are not finished yet.
        """
        self.divide(names[process::processes], names)
        return [name for name in names[process::processes] if name not in self._files]

    def divide(self, own: Collection[str], names: Collection[str]) -> None:
        """Says which of some files this process writes; the others are written by other processes."""
        self._own |= set(own)
        self._elsewhere |= set(names) - self._own
        if not self._writes:
            self._files |= {entry.name: entry for entry in finished_files(self.path, own)}

    def elsewhere(self) -> "Output":
        """The same folder for a process to which single files are given to write; it knows of none that are there."""
        other = copy.copy(self)
        other._files, other._own, other._elsewhere, other._writes = {}, set(), set(), True
        return other

    def entry(self, name: str) -> File:
        """A finished file."""
        return self._files[name]

    def take(self, files: Iterable[File]) -> None:
        """Counts in files that were written with the help of `elsewhere`."""
        self._files |= {entry.name: entry for entry in files}

    @contextmanager
    def writing(self, name: str) -> Iterator["Writing"]:
        """Gives the path to write `name` to; the file counts once the block ends without an error."""
        if not self._writes and name not in self._own:
            with tempfile.TemporaryDirectory() as scratch:
                writing = Writing(epath.Path(scratch) / "unused")
                yield writing
            self._files[name] = File(name, writing.rows, 0, "", writing.stats)
            return
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = Writing(path)
        yield writing
        self._files[name] = File(name, writing.rows, path.stat().length, checksum(path), writing.stats)
        _marker(self.path, name).write_text(json.dumps(vars(self._files[name])))

    def shard(self, index: int, suffix: str, write: Callable[["Writing"], None], prefix: str = "part") -> File:
        """Writes shard `index` with `write`, unless an earlier run finished it."""
        name = f"{prefix}-{index:05d}{suffix}"
        if name not in self._files:
            with self.writing(name) as writing:
                write(writing)
        return self._files[name]

    def finish(self, stats: dict[str, Any] | None = None) -> Artifact:
        """Writes the manifest: the sums of the files' counts, with `stats` on top.

        From here on the artifact is complete.
        """
        if not self._writes:
            return wait_for(self.path, self.recipe.key)
        while missing := self._elsewhere - set(self._files):
            self._files |= {entry.name: entry for entry in finished_files(self.path, missing)}
            self._waiting.look(f"{len(missing):,} files of other processes, such as {min(missing)}")
            time.sleep(0.2)
        files = sorted(self._files.values(), key=lambda entry: entry.name)
        summed: dict[str, Any] = {}
        for entry in files:
            for name, value in entry.stats.items():
                summed[name] = summed.get(name, 0) + value
        manifest = {
            "recipe": self.recipe.to_json(),
            "files": [vars(entry) for entry in files],
            "stats": summed | (stats or {}),
            "seconds": round(time.monotonic() - self._started, 3),
            "execution": self.execution,
        }
        (self.path / MANIFEST).write_text(json.dumps(manifest, indent=1))
        artifact = find(self.path, self.recipe.key)
        assert artifact is not None
        return artifact


@dataclass
class Writing:
    """A file being written: where, and what the writer says about it."""

    path: epath.Path
    rows: int = 0
    stats: dict[str, Any] = field(default_factory=dict)


def _marker(path: epath.Path, name: str) -> epath.Path:
    return path / MARKERS / (name.replace("/", "%2F") + ".json")


def finished_files(path: epath.Path, names: Collection[str] | None = None) -> list[File]:
    """Files of a partial artifact that are whole, by their markers; of those named, where names are given."""
    if not (path / MARKERS).exists():
        return []
    entries = []
    markers = (path / MARKERS).glob("*.json") if names is None else (_marker(path, name) for name in names)
    for marker in sorted(markers):
        record = read_json(marker)
        if not isinstance(record, dict) or "checksum" not in record:
            continue
        file = path / record["name"]
        if file.exists() and file.stat().length == record["bytes"] and checksum(file) == record["checksum"]:
            entries.append(File(**record))
    return entries


def count_rows(files: Iterable[File]) -> int:
    return sum(file.rows for file in files if not file.name.startswith("rejected-"))


def checksum(path: epath.Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: epath.Path) -> Any | None:
    """The content of a JSON file; None where it is absent or was cut off while being written."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
