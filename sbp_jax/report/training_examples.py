"""From training examples to documents and back: packed rows, and the places where the runs read them.

Legend: L = context of a row.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbp_jax.artifacts import Artifact, arrayrecord
from sbp_jax.data.mixing import Plan, places
from sbp_jax.data.rows import SYNTHETIC, Row, RowSource
from sbp_jax.errors import SbpError
from sbp_jax.progress import progress
from sbp_jax.report.results import ledger
from sbp_jax.report.trail import REAL, Trail, matching, rows
from sbp_jax.text import tokenizer as text_tokenizer

_EXAMPLE = re.compile(r"([^:]+):(\d+)(?::(\d+))?(?::(\d+))?")
RUNS, ROWS = ("train", "tune"), ("pack", "pack_pairs", "window")


@dataclass(frozen=True)
class Example:
    """A row of a stream, or one position of it.

    Attributes:
      rows: the instance that holds the row.
      row: its number there.
      position: that predicts the token in question; None: the whole row is meant.
      run, step, place: the run that read it, the step, from 1, and the row of the batch; None where the row was named.
    """

    rows: str
    row: int
    position: int | None
    run: str | None = None
    step: int | None = None
    place: int | None = None


@dataclass(frozen=True)
class Piece:
    """A document in a row: the positions that predict its tokens and its end, and whether it was read, without loss."""

    instance: str
    ordinal: int
    start: int
    stop: int
    read: bool = False


def example(trail: Trail, asked: str) -> Example | None:
    """The training example that a name means: ROWS:ROW[:POSITION] or RUN:STEP:ROW[:POSITION]; None for other names.

    Raises:
      SbpError: the rows or the run are not complete, or there is no such step, row or position.
    """
    match = _EXAMPLE.fullmatch(asked)
    node = trail.nodes.get(match[1]) if match else None
    if match is None or node is None or node.stage not in (*RUNS, *ROWS):
        return None
    name, numbers = match[1], [int(number) for number in match.groups()[1:] if number is not None]
    if node.stage in ROWS:
        if len(numbers) > 2:
            raise SbpError(f"{asked}: a row is named {name}:ROW or {name}:ROW:POSITION")
        return _checked(trail, Example(name, numbers[0], numbers[1] if len(numbers) > 1 else None), asked)
    if len(numbers) < 2:
        raise SbpError(f"{asked}: an example of a run is named {name}:STEP:ROW or {name}:STEP:ROW:POSITION")
    (step, place), position = numbers[:2], numbers[2] if len(numbers) > 2 else None
    order, names, batch_rows = _order(trail, name)
    if not 1 <= step <= len(order) // batch_rows or place >= batch_rows:
        steps = f"{len(order) // batch_rows:,} steps, counted from 1, of {batch_rows:,} rows, counted from 0"
        raise SbpError(f"{asked}: {name} has {steps}")
    stream, row = order[(step - 1) * batch_rows + place]
    return _checked(trail, Example(names[stream], row, position, name, step, place), asked)


def pieces(trail: Trail, found: Example) -> list[Piece]:
    """The documents of an example, in their order."""
    row = RowSource(trail.artifact(found.rows))[found.row]
    if trail.nodes[found.rows].stage == "pack_pairs":
        told = _pieces_of_pairs(trail, found.rows, row)
    else:
        inputs = trail.nodes[found.rows].inputs
        bounds = np.flatnonzero(np.diff(row.documents, prepend=-2, append=-2)).tolist()
        told = [
            Piece(*_document(inputs, int(row.documents[start])), start, stop)
            for start, stop in zip(bounds, bounds[1:], strict=False)
            if row.documents[start] >= 0
        ]
    if found.position is None:
        return told
    segment = row.segments[found.position]
    if segment == 0:
        raise SbpError(f"{found.rows}:{found.row}:{found.position} is padding behind the last document of the stream")
    of_segment = [piece for piece in told if row.segments[piece.start] == segment]
    if trail.nodes[found.rows].stage == "pack_pairs":
        return of_segment  # what was read before the target, and the target
    return [piece for piece in of_segment if piece.start <= found.position < piece.stop]


def _document(inputs: Mapping[str, str], document: int) -> tuple[str, int]:
    """The instance that holds a document of packed rows, and its ordinal there."""
    if document >= SYNTHETIC:
        return inputs["synthetic"], document - SYNTHETIC
    return inputs["documents"], document


def _checked(trail: Trail, found: Example, asked: str) -> Example:
    source = RowSource(trail.artifact(found.rows))
    if found.row >= len(source):
        raise SbpError(f"{asked}: {found.rows} has {len(source):,} rows, counted from 0")
    context = len(source[found.row].segments)
    if found.position is not None and found.position >= context:
        raise SbpError(f"{asked}: a row of {found.rows} has {context:,} positions, counted from 0")
    return found


def _order(trail: Trail, run: str) -> tuple[Any, list[str], int]:
    """The places of a finished run (`mixing.places`), the instance of each stream, and rows a step."""
    node, read = trail.nodes[run], ledger(trail.artifact(run))
    names = [node.inputs[stream] for stream in read]
    held = [trail.artifact(name) for name in names]
    available = {
        stream: int(artifact.stats["full_rows"]) if node.stage == "train" else artifact.rows
        for stream, artifact in zip(read, held, strict=True)
    }
    planned = {stream: int(entry["rows"]) for stream, entry in read.items()}
    if "megadoc" in planned:  # cut to what is read, once
        available["megadoc"] = planned["megadoc"]
    plan = Plan(planned, available, order=node.config.get("order", "uniform"))
    settings = node.config["training" if node.stage == "train" else "tuning"]
    return places(plan, node.config.get("seed", 0)), names, settings.batch_rows


def times(trail: Trail, run: str, wanted: Mapping[str, Sequence[int]]) -> dict[str, dict[int, list[tuple[int, int]]]]:
    """When a finished run read some rows: by instance and row, the steps, from 1, and the places in their batches.

    Every place of the run is looked at: which row stands there is known only from the place.
    """
    order, names, batch_rows = _order(trail, run)
    sought = [set(wanted.get(name, ())) for name in names]
    found: dict[str, dict[int, list[tuple[int, int]]]] = {name: {} for name in names}
    if not any(sought):
        return found
    with progress(f"{run}: when it read them", len(order), "rows") as counter:
        for step in range(len(order) // batch_rows):
            for place in range(batch_rows):
                stream, row = order[step * batch_rows + place]
                if row in sought[stream]:
                    found[names[stream]].setdefault(row, []).append((step + 1, place))
            counter.advance(batch_rows)
    return found


def _pieces_of_pairs(trail: Trail, packed: str, row: Row) -> list[Piece]:
    """The documents of a row of groups; those that were read are known by their tokens among those that may be."""
    records, specials = _tokens(trail, packed)
    partners = _partners(trail, packed, np.unique(row.documents[row.documents >= 0]).tolist())
    told = []
    for start, stop, read in _split(row, specials):
        target, tokens = int(row.documents[start]), row.tokens[start:stop].tobytes()
        known = (ordinal for ordinal in sorted(partners[target]) if bytes(records[ordinal]) == tokens)
        ordinal = next(known, -1) if read else target
        if ordinal >= 0:
            told.append(Piece(REAL, ordinal, start - 1, stop, read))
    return told


def _partners(trail: Trail, packed: str, targets: list[int]) -> dict[int, set[int]]:
    """Documents that are read before each of the targets, in one group or another."""
    partners: dict[int, set[int]] = {target: set() for target in targets}
    groups = trail.artifact(trail.nodes[packed].inputs["groups"])
    for group in rows(matching(groups, "target", targets, ["target", "conditioning"])):
        partners[group["target"]].update(group["conditioning"])
    return partners


def _split(row: Row, specials: tuple[int, int]) -> Iterator[tuple[int, int, bool]]:
    """Where each document of a row of pairs begins and ends, and whether it is read: a separator follows it."""
    end_of_document, separator = specials
    breaks = np.flatnonzero((row.tokens == end_of_document) | (row.tokens == separator)).tolist()
    for before, after in zip(breaks, breaks[1:], strict=False):
        if after > before + 1:
            yield before + 1, after, bool(row.tokens[after] == separator)


def _tokens(trail: Trail, packed: str) -> tuple[Any, tuple[int, int]]:
    """The tokens of the real documents, and the two tokens that stand between documents."""
    inputs = trail.nodes[packed].inputs
    tokenizer: Artifact = trail.artifact(inputs["tokenizer"])
    loaded = text_tokenizer.load(tokenizer.file("tokenizer.json"), trail.nodes[packed].config["settings"])
    return arrayrecord.source(trail.artifact(inputs["tokens"])), (loaded.end_of_document, loaded.separator)
