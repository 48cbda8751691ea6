"""Vectors brought together on disk by where they belong, in bounded memory, and results brought back by query.

A group is a file of vectors with their indices and tags. What is found in a group becomes a run: candidates of its
queries, ordered by query, of which the merge maps only the slice that it needs.

Legend: E entries of a group, Q queries, R rows of a run, K candidates, D width.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sbp_jax.artifacts.artifact import read_json
from sbp_jax.errors import SbpError
from sbp_jax.search.ranking import MISSING, ordered
from sbp_jax.search.vectors import Stored

STAMP = "made_from.json"
PIECE = 1 << 26  # candidates of a group from which on they are written in pieces
MERGED = 256  # queries whose candidates a thread merges at a time


def check_stamp(folder: Path, stamp: Mapping[str, object]) -> None:
    """Writes what a folder was made from, or refuses one that was made from something else.

    Raises:
      SbpError: it was.
    """
    file = folder / STAMP
    text = json.dumps(stamp, indent=1, sort_keys=True)
    if read_json(file) is None:  # a kill may have cut it off
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        file.write_text(text)
    elif file.read_text() != text:
        raise SbpError(f"the index in {folder} was built from other vectors or settings; delete that folder")


def claim(folder: Path, stamp: Mapping[str, object], process: int) -> None:
    """Makes a folder ready for what the stamp says: the first host checks or clears it, the others wait for that.

    Raises:
      SbpError: it holds what was made from something else.
    """
    if process == 0:
        folder.mkdir(parents=True, exist_ok=True)
        check_stamp(folder, stamp)
    while not isinstance(made_from := read_json(folder / STAMP), dict) or made_from != json.loads(json.dumps(stamp)):
        time.sleep(0.2)


def arrays_of_first(file: Path, process: int, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What the first host has made, or made before it was killed, on every host; a `.npz` file holds it."""
    if process == 0 and not file.exists():
        growing = file.with_suffix(".growing.npz")
        made: Any = make()
        np.savez(growing, **made)
        growing.rename(file)
    while not file.exists():
        time.sleep(0.2)
    with np.load(file) as arrays:
        return dict(arrays)


def wait_for(marker: Path) -> dict[str, object]:
    """What a marker says, once another host has written it."""
    while not isinstance(record := read_json(marker), dict):
        time.sleep(0.2)
    return record


@dataclass(frozen=True)
class Group:
    """Entries of one group: the vectors are mapped, as each host wrote them, the rest is in memory."""

    indices_E: np.ndarray
    tags_E: np.ndarray
    vectors: Sequence[np.ndarray]
    width: int

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some entries, float32 [rows, D]."""
        if len(self.vectors) == 1:
            return self.vectors[0][rows]
        taken = np.empty((len(rows), self.width), np.float32)
        starts = np.cumsum([0, *map(len, self.vectors)])
        parts = np.searchsorted(starts, rows, side="right") - 1
        for part in np.unique(parts):
            taken[parts == part] = self.vectors[part][rows[parts == part] - starts[part]]
        return taken


class Shuffle:
    """The groups of one folder, filled by all hosts, each with the vectors of its range."""

    def __init__(self, folder: Path, groups: int, width: int, process: int = 0, processes: int = 1):
        self.folder, self.groups, self.width = folder, groups, width
        self._process, self._processes = process, processes

    def fill(self, stored: Stored, place: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Sends the vectors to their groups, and waits for the other hosts to have done so.

        Args:
          place: of some vectors [C, D], where copies of them go: the group, the row and the tag of each entry [E].
        """
        if read_json(self._marker(self._process)) is None:
            for file in self.folder.glob(f"group-*{self._suffix(self._process)}.*"):  # what a killed run left
                file.unlink()
            ends = [len(stored) * host // self._processes for host in (self._process, self._process + 1)]
            with ThreadPoolExecutor(1) as writer:  # while the next ones are read and placed
                written = writer.submit(lambda: None)
                for start, vectors_CD in stored.blocks(*ends):
                    groups_E, rows_E, tags_E = place(vectors_CD)
                    written.result()
                    written = writer.submit(self.add, groups_E, start + rows_E, tags_E, vectors_CD, rows_E)
                written.result()
            self._marker(self._process).write_text(json.dumps({"groups": self.groups}))
        for process in range(self._processes):
            wait_for(self._marker(process))

    def add(
        self,
        group_E: np.ndarray,
        indices_E: np.ndarray,
        tags_E: np.ndarray,
        vectors_CD: np.ndarray,
        rows_E: np.ndarray,
    ) -> None:
        """Appends entries to their groups; `rows_E` says which of the vectors is whose."""
        order = np.argsort(group_E, kind="stable")
        bounds = np.searchsorted(group_E[order], np.arange(self.groups + 1))
        for group in np.flatnonzero(np.diff(bounds)):
            own = order[bounds[group] : bounds[group + 1]]
            for name, values in (
                ("indices", indices_E[own].astype(np.int64)),
                ("tags", tags_E[own].astype(np.int32)),
                ("vectors", vectors_CD[rows_E[own]]),
            ):
                with self._file(int(group), name, self._process).open("ab") as stream:
                    values.tofile(stream)

    def read(self, group: int) -> Group:
        indices, tags, vectors = [], [], []
        for process in range(self._processes):
            if self._file(group, "indices", process).exists():
                indices.append(np.fromfile(self._file(group, "indices", process), np.int64))
                tags.append(np.fromfile(self._file(group, "tags", process), np.int32))
                shape = len(indices[-1]), self.width
                vectors.append(np.memmap(self._file(group, "vectors", process), np.float32, "r", shape=shape))
        indices_E, tags_E = (
            np.concatenate([np.empty(0, np.int64), *indices]),
            np.concatenate([np.empty(0, np.int32), *tags]),
        )
        return Group(indices_E, tags_E, vectors, self.width)

    def drop(self, group: int) -> None:
        """Frees the disk of a group that is done."""
        for process in range(self._processes):
            for name in ("indices", "tags", "vectors"):
                self._file(group, name, process).unlink(missing_ok=True)

    def _suffix(self, process: int) -> str:
        """Other numbers of hosts divide the vectors otherwise; what those left is not read."""
        return f"-{process}-of-{self._processes}"

    def _marker(self, process: int) -> Path:
        return self.folder / f"shuffled{self._suffix(process)}.json"

    def _file(self, group: int, name: str, process: int) -> Path:
        return self.folder / f"group-{group:05d}{self._suffix(process)}.{name}"


def write_run(folder: Path, group: int, found: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Writes the candidates of a group, which count once the marker is there; in pieces, where they are very many.

    Args:
      found: queries [R], indices [R, K] and similarities [R, K] of some of its entries after others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    pieces = size = 0

    def write() -> None:
        queries_R, indices_RK, similarities_RK = map(np.concatenate, zip(*waiting, strict=True))
        order = np.argsort(queries_R, kind="stable")
        np.save(_run(folder, group, pieces, "queries"), queries_R[order])
        np.save(_run(folder, group, pieces, "indices"), indices_RK[order].astype(np.int32))
        np.save(_run(folder, group, pieces, "similarities"), similarities_RK[order].astype(np.float32))

    for part in found:
        waiting.append(part)
        size += part[1].size
        if size >= PIECE:
            write()
            pieces, size, waiting = pieces + 1, 0, []
    if waiting:
        write()
        pieces += 1
    run_marker(folder, group).write_text(json.dumps({"pieces": pieces}))


def run_marker(folder: Path, group: int) -> Path:
    return folder / f"run-{group:05d}.json"


def merge(folder: Path, groups: Sequence[int], start: int, stop: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best candidates of queries `start` to `stop` over all runs; index -1 where they hold too few."""
    pieces = [(group, piece) for group in groups for piece in range(_pieces(folder, group))]
    runs = [_range(folder, group, piece, start, stop) for group, piece in pieces]
    found_indices = np.full((stop - start, top_k), MISSING, np.int64)
    found_similarities = np.full((stop - start, top_k), -np.inf, np.float32)

    def some(first: int) -> None:
        last = min(first + MERGED, stop - start)
        rows = [slice(*np.searchsorted(queries_R, [start + first, start + last])) for queries_R, _, _ in runs]
        parts = [[values[own] for values in run] for run, own in zip(runs, rows, strict=True)]
        queries_R, indices_RK, similarities_RK = map(np.concatenate, zip(*parts, strict=True))
        order = np.argsort(queries_R, kind="stable")
        queries_R = queries_R[order] - (start + first)
        places_R = np.arange(len(queries_R)) - np.searchsorted(queries_R, queries_R)
        shape = last - first, int(places_R.max(initial=0)) + 1, indices_RK.shape[1]
        all_indices, all_similarities = np.full(shape, MISSING, np.int32), np.full(shape, -np.inf, np.float32)
        all_indices[queries_R, places_R] = indices_RK[order]
        all_similarities[queries_R, places_R] = similarities_RK[order]
        indices, similarities = (x.reshape(len(x), -1) for x in (all_indices, all_similarities))
        indices, similarities = ordered(indices, similarities, top_k)
        found_indices[first:last, : indices.shape[1]] = indices
        found_similarities[first:last, : similarities.shape[1]] = similarities

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(some, range(0, stop - start, MERGED)))
    return found_indices, found_similarities


def _pieces(folder: Path, group: int) -> int:
    record = read_json(run_marker(folder, group))
    assert isinstance(record, dict)
    return int(record["pieces"])


def _range(folder: Path, group: int, piece: int, start: int, stop: int) -> list[np.ndarray]:
    """Queries, indices and similarities of the rows of a run that belong to some queries."""
    queries_R = np.load(_run(folder, group, piece, "queries"), "r")
    first, last = np.searchsorted(queries_R, [start, stop])
    parts = []
    for name in ("queries", "indices", "similarities"):
        mapped = np.load(_run(folder, group, piece, name), "r")
        # Read, not mapped: the pages that a map brings in around those asked for would count as this process's.
        offset = mapped.offset + int(first) * mapped.strides[0]
        part = np.fromfile(mapped.filename, mapped.dtype, (last - first) * mapped[:1].size, offset=offset)
        parts.append(part.reshape(-1, *mapped.shape[1:]))
    return parts


def _run(folder: Path, group: int, piece: int, name: str) -> Path:
    return folder / f"run-{group:05d}-{piece:03d}.{name}.npy"
