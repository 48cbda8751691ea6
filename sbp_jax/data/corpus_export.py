"""The documents that an arm reads, as Parquet or JSON Lines that `datasets` loads, with a data card."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from sbp_jax.arms import source, suffix
from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.config import Arm, Experiment
from sbp_jax.data.data_card import Counts, card
from sbp_jax.errors import SbpError

CARD = "README.md"
INTERNAL = ("ordinal", "seed", "conditioning", "copy_of", "verdict", "rule_version")  # ordinals mean nothing elsewhere
FIRST = [(name, pa.string()) for name in ("id", "text", "kind", "source")]

Find = Callable[[str], Artifact | None]


def arm_of(experiment: Experiment, name: str) -> Arm:
    """The arm whose corpus is meant.

    Raises:
      SbpError: there is none of that name, or it reads no synthetic text.
    """
    arms = {arm.name: arm for arm in experiment.arms if source(arm) is not None}
    if name not in arms:
        raise SbpError(f"no arm {name} reads synthetic text; those that do are {', '.join(arms) or 'none'}")
    return arms[name]


def export(experiment: Experiment, find: Find, options: Any) -> list[epath.Path]:
    """Writes the accepted synthetic documents of an arm, and its real ones.

    Each document once, however often the arm reads it: `id`, `text`, `kind` (real or synthetic), `source`, and of a
    synthetic one its lineage and its scores. The data card is written last.

    Args:
      find: the complete artifact of a stage instance.
      options: `corpus`, an arm's name; `to`, a folder that is empty or not there yet; `format`, parquet or jsonl;
        `kind`, mixed or, without the real documents, synthetic.

    Returns:
      The files.

    Raises:
      SbpError: there is no such arm, the folder holds something already, or an artifact is not complete.
    """
    arm, to = arm_of(experiment, options.corpus), epath.Path(options.to).expanduser()
    form, kind = options.format, options.kind
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise SbpError(f"{to} is not empty; name a new folder for the corpus")
    origin = source(arm)
    assert origin is not None
    synthetic = _needed(find, f"synthetic{suffix(*origin)}")
    schema = _schema(parquet.columns(synthetic), synthetic)
    counts = {"synthetic": Counts(), "real": Counts()}
    to.mkdir(parents=True, exist_ok=True)
    files = []
    for number, table in enumerate(parquet.tables(synthetic)):
        files.append(_write(to, f"synthetic-{number:05d}", _synthetic(table, schema), form, counts["synthetic"]))
    if kind == "mixed":
        documents, splits = _needed(find, "documents"), _needed(find, "splits")
        names = ("capped", "oracle") if arm.real == "oracle" else ("capped",)
        for number, table in enumerate(_real(documents, splits, names, schema)):
            files.append(_write(to, f"real-{number:05d}", table, form, counts["real"]))
    quality = find(f"quality{suffix(*origin)}")
    told = counts if kind == "mixed" else {"synthetic": counts["synthetic"]}
    (to / CARD).write_text(card(experiment, arm, synthetic, told, quality, form, schema))
    return [*files, to / CARD]


def _needed(find: Find, name: str) -> Artifact:
    found = find(name)
    if found is None:
        raise SbpError(f"{name} is not complete; run `sbp run ... --until {name}`")
    return found


def _schema(names: Sequence[str], synthetic: Artifact) -> pa.Schema:
    with synthetic.shards(".parquet")[0].open("rb") as stream:
        own = pq.read_schema(stream)
    known = dict(FIRST)
    rest = [own.field(name) for name in names if name not in known and name not in INTERNAL]
    return pa.schema([*FIRST, *rest])


def _synthetic(table: pa.Table, schema: pa.Schema) -> pa.Table:
    kinds = {"kind": ["synthetic"] * table.num_rows, "source": [None] * table.num_rows}
    return pa.table({name: kinds[name] if name in kinds else table[name] for name in schema.names}, schema=schema)


def _real(documents: Artifact, splits: Artifact, names: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
    shards = zip(parquet.tables(documents, ["id", "source", "text"]), parquet.tables(splits, ["split"]), strict=True)
    for table, split in shards:
        chosen = np.isin(split["split"].to_numpy(zero_copy_only=False).astype(str), names)
        table = table.filter(pa.array(chosen))
        own: Mapping[str, Any] = {name: table[name] for name in table.column_names} | {
            "kind": ["real"] * table.num_rows
        }
        rows = {name: own.get(name, [None] * table.num_rows) for name in schema.names}
        if table.num_rows:
            yield pa.table(rows, schema=schema)


def _write(to: epath.Path, name: str, table: pa.Table, form: str, counts: Counts) -> epath.Path:
    sizes = [len(text.encode()) for text in table["text"].to_pylist()]
    counts.add(table.num_rows, sum(sizes), Counter(filter(None, table["source"].to_pylist())))
    path = to / f"{name}.{form}"
    with path.open("wb") as stream:
        if form == "parquet":
            pq.write_table(table, stream, compression="zstd")
        else:
            for row in table.to_pylist():
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return path
