"""What a report is made from: the artifacts of one experiment, and how to read them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from etils import epath

from sbp_jax.accounting.charges import Entry
from sbp_jax.artifacts import Artifact
from sbp_jax.config import Experiment
from sbp_jax.model.huggingface import CONFIG
from sbp_jax.training.export import FINAL, LEDGER
from sbp_jax.training.loop import METRICS

Runs = Mapping[str, Mapping[int, Artifact]]  # by arm and seed
RUNS = 256  # whose losses are kept
SAMPLE, SAMPLED_SHARDS = 512, 8  # real documents that synthetic ones are compared with, and shards read for them


@dataclass(frozen=True)
class Results:
    """The artifacts of one experiment.

    Attributes:
      trained, scored: by name of the arm, then by seed; those of the sweep are there too.
      synthesized, synthetic: None where no arm reads synthetic text.
      texts: scores on the text sets, by set, arm and seed.
      tasks: answers, by task, arm and seed.
      quality: of synthetic documents, by the suffix of their instances.
      copies: what of each text set stands in the training documents, by set.
      charges: what the first run of each arm is charged for, and `charged` the artifacts of that, by their roles.
    """

    experiment: Experiment
    documents: Artifact
    splits: Artifact
    neighbors: Artifact
    screened: Artifact
    pairs: Artifact
    synthesizer: Artifact
    synthesized: Artifact | None
    synthetic: Artifact | None
    trained: Runs
    scored: Runs
    texts: Mapping[str, Runs] = field(default_factory=dict)
    tasks: Mapping[str, Runs] = field(default_factory=dict)
    quality: Mapping[str, Artifact] = field(default_factory=dict)
    charges: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    charged: Mapping[str, Artifact] = field(default_factory=dict)
    tokenizer: Artifact | None = None
    copies: Mapping[str, Artifact] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """A file of an artifact: the place of its first row among those of all, how many it has, and its name."""

    first: int
    rows: int
    name: str


@dataclass(frozen=True)
class Curve:
    """Losses of one run, in nats per token, against the training tokens seen until then.

    Attributes:
      training: loss on each step's batch, before the step.
      validation: loss after the steps that end at `validated` tokens.
    """

    tokens: np.ndarray
    training: np.ndarray
    validated: np.ndarray
    validation: np.ndarray


def ledger(trained: Artifact) -> dict[str, dict[str, Any]]:
    """Planned and seen tokens, rows and epochs of a finished run, by stream."""
    return json.loads(trained.file(LEDGER).read_text())


def synthetic_tokens(seen: Mapping[str, Mapping[str, Any]]) -> int:
    """Synthetic tokens of a ledger; the rest of a stream of megadocs is real."""
    own = (entry.get("synthetic_tokens", entry["tokens"] if name == "synthetic" else 0) for name, entry in seen.items())
    return sum(own)


def real_epochs(seen: Mapping[str, Mapping[str, Any]]) -> float:
    """Passes over the real stream that the real tokens of a ledger make up, those in other streams included."""
    return sum(entry["epochs"] if name == "real" else entry.get("real_epochs", 0.0) for name, entry in seen.items())


def vocabulary(trained: Artifact) -> int:
    """Rows of a finished model's embedding table: the tokenizer's entries, rounded up."""
    return json.loads(trained.file(f"{FINAL}/{CONFIG}").read_text())["vocab_size"]


def curve(trained: Artifact) -> Curve:
    """The losses of a finished run; those of one run are read once."""
    return _curve(str(trained.file(METRICS)))


@lru_cache(maxsize=RUNS)
def _curve(path: str) -> Curve:
    schema = pa.schema([("targets", pa.int64()), ("loss", pa.float64()), ("validation", pa.float64())])
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    with epath.Path(path).open("rb") as stream:
        table = pyarrow.json.read_json(stream, parse_options=options)
    tokens = np.cumsum(table["targets"].to_numpy())
    validation = table["validation"].to_numpy()
    validated = np.flatnonzero(~np.isnan(validation))
    return Curve(tokens, table["loss"].to_numpy(), tokens[validated], validation[validated])


def rows_at(artifact: Artifact, ordinals: Sequence[int], columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows with these dense ordinals, in the order asked; only the shards that hold them are read."""
    found: dict[int, dict[str, Any]] = {}
    asked = np.unique(np.array(ordinals, np.int64))
    for shard in shards(artifact):
        wanted = asked[(asked >= shard.first) & (asked < shard.first + shard.rows)] - shard.first
        if len(wanted):
            rows = _table(artifact, shard.name, columns).take(wanted).to_pylist()
            found |= {shard.first + place: row for place, row in zip(wanted.tolist(), rows, strict=True)}
    return [found[ordinal] for ordinal in ordinals]


def sample_texts(documents: Artifact, splits: Artifact, split: str) -> Iterator[str]:
    """At most `SAMPLE` texts of one split, spread evenly over a few shards and within each: a sample without chance."""
    names = [shard.name for shard in shards(documents)]
    chosen = sorted({int(place) for place in np.linspace(0, len(names) - 1, SAMPLED_SHARDS)})
    for name in (names[place] for place in chosen):
        members = np.flatnonzero(_table(splits, name, ["split"])["split"].to_numpy() == split)
        places = np.unique(np.linspace(0, len(members) - 1, SAMPLE // len(chosen)).astype(int))
        if len(members):
            yield from _table(documents, name, ["text"]).take(members[places])["text"].to_pylist()


def shards(artifact: Artifact, prefix: str = "part") -> list[Shard]:
    """The Parquet shards of an artifact, in order."""
    found, first = [], 0
    for file in artifact.files:
        if file.name.startswith(f"{prefix}-") and file.name.endswith(".parquet"):
            found.append(Shard(first, file.rows, file.name))
            first += file.rows
    return found


def spread(held: Sequence[Shard], number: int) -> list[Shard]:
    """At most `number` shards, spread evenly over all of them."""
    return [held[place] for place in sorted({int(place) for place in np.linspace(0, len(held) - 1, number)})]


def within(inside: Sequence[Shard], ordinals: np.ndarray) -> np.ndarray:
    """Whether each place among all rows is in one of some shards, which rise."""
    starts = np.array([shard.first for shard in inside])
    stops = np.array([shard.first + shard.rows for shard in inside])
    place = np.searchsorted(starts, ordinals, side="right") - 1
    return (place >= 0) & (ordinals < stops[np.maximum(place, 0)])


def _table(artifact: Artifact, name: str, columns: list[str] | None = None) -> pa.Table:
    with artifact.file(name).open("rb") as stream:
        return pq.read_table(stream, columns=columns)
