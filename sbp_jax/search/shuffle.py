"""Vectors brought together on disk by where they belong, in bounded memory, and results brought back by query.

A group is a file of vectors with their indices and tags. What is found in a group becomes a run: candidates of its
queries, ordered by query, of which the merge maps only the slice that it needs.

Legend: E entries of a group, Q queries, R rows of a run, K candidates, D width.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbp_jax.artifacts.artifact import read_json
from sbp_jax.errors import SbpError
from sbp_jax.search.ranking import MISSING, ordered

MERGED = 1 << 20  # candidates that are merged at a time


def check_stamp(folder: Path, stamp: Mapping[str, object]) -> None:
    """Writes what a folder was made from, or refuses one that was made from something else.

    Raises:
      SbpError: it was.
    """
    file = folder / "made_from.json"
    text = json.dumps(stamp, indent=1, sort_keys=True)
    if read_json(file) is None:  # a kill may have cut it off
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        file.write_text(text)
    elif file.read_text() != text:
        raise SbpError(f"the index in {folder} was built from other vectors or settings; delete that folder")


def wait_for(marker: Path) -> dict[str, object]:
    """What a marker says, once another host has written it."""
    while not isinstance(record := read_json(marker), dict):
        time.sleep(0.2)
    return record


@dataclass(frozen=True)
class Group:
    """Entries of one group: the vectors are mapped, the rest is in memory."""

    indices_E: np.ndarray
    tags_E: np.ndarray
    vectors_ED: np.ndarray


class Shuffle:
    """The groups of one folder, which count once the marker `shuffled.json` is there."""

    def __init__(self, folder: Path, groups: int, width: int):
        self.folder, self.groups, self.width = folder, groups, width
        self.marker = folder / "shuffled.json"

    def start(self) -> None:
        """Drops what a killed run left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in self.folder.glob("group-*"):
            file.unlink()

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
                with self._file(int(group), name).open("ab") as stream:
                    values.tofile(stream)

    def finish(self) -> None:
        self.marker.write_text(json.dumps({"groups": self.groups}))

    def read(self, group: int) -> Group:
        if not self._file(group, "indices").exists():
            return Group(np.empty(0, np.int64), np.empty(0, np.int32), np.empty((0, self.width), np.float32))
        indices_E = np.fromfile(self._file(group, "indices"), np.int64)
        vectors_ED = np.memmap(self._file(group, "vectors"), np.float32, "r", shape=(len(indices_E), self.width))
        return Group(indices_E, np.fromfile(self._file(group, "tags"), np.int32), vectors_ED)

    def drop(self, group: int) -> None:
        """Frees the disk of a group that is done."""
        for name in ("indices", "tags", "vectors"):
            self._file(group, name).unlink(missing_ok=True)

    def _file(self, group: int, name: str) -> Path:
        return self.folder / f"group-{group:05d}.{name}"


def write_run(
    folder: Path, group: int, queries_R: np.ndarray, indices_RK: np.ndarray, similarities_RK: np.ndarray
) -> None:
    """Writes the candidates that were found in a group; they count once the marker is there."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.argsort(queries_R, kind="stable")
    np.save(_run(folder, group, "queries.npy"), queries_R[order])
    np.save(_run(folder, group, "indices.npy"), indices_RK[order].astype(np.int32))
    np.save(_run(folder, group, "similarities.npy"), similarities_RK[order].astype(np.float32))
    run_marker(folder, group).write_text(json.dumps({"rows": len(queries_R)}))


def run_marker(folder: Path, group: int) -> Path:
    return _run(folder, group, "json")


def merge(folder: Path, groups: Sequence[int], start: int, stop: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best candidates of queries `start` to `stop` over all runs; index -1 where they hold too few."""
    queries, indices, similarities = [], [], []
    for group in groups:
        queries_R = np.load(_run(folder, group, "queries.npy"), mmap_mode="r")
        part = slice(*np.searchsorted(queries_R, [start, stop]))
        queries.append(queries_R[part] - start)
        indices.append(np.load(_run(folder, group, "indices.npy"), mmap_mode="r")[part])
        similarities.append(np.load(_run(folder, group, "similarities.npy"), mmap_mode="r")[part])
    queries_R, indices_RK, similarities_RK = map(np.concatenate, (queries, indices, similarities))
    order = np.argsort(queries_R, kind="stable")
    queries_R = queries_R[order]
    places_R = np.arange(len(queries_R)) - np.searchsorted(queries_R, queries_R)
    most, kept = int(places_R.max(initial=0)) + 1, indices_RK.shape[1]
    found_indices = np.full((stop - start, top_k), MISSING, np.int64)
    found_similarities = np.full((stop - start, top_k), -np.inf, np.float32)
    step = max(MERGED // (most * kept), 1)
    for first in range(0, stop - start, step):
        size = min(step, stop - start - first)
        part = slice(*np.searchsorted(queries_R, [first, first + size]))
        all_indices = np.full((size, most, kept), MISSING, np.int64)
        all_similarities = np.full((size, most, kept), -np.inf, np.float32)
        all_indices[queries_R[part] - first, places_R[part]] = indices_RK[order[part]]
        all_similarities[queries_R[part] - first, places_R[part]] = similarities_RK[order[part]]
        best = ordered(all_indices.reshape(size, -1), all_similarities.reshape(size, -1), top_k)
        found_indices[first : first + size, : best[0].shape[1]] = best[0]
        found_similarities[first : first + size, : best[1].shape[1]] = best[1]
    return found_indices, found_similarities


def _run(folder: Path, group: int, name: str) -> Path:
    return folder / f"run-{group:05d}.{name}"
