"""The documents that are measured: of each kind some, spread evenly over all of them, the same ones at every run.

Memory holds the chosen documents and one shard.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.data.verdicts import ACCEPTED
from sbp_jax.text.shingles import mixed

CAPPED, HELD_OUT = ("capped",), ("validation", "test")  # splits of the two kinds of real documents
REAL, KEPT_OUT, TRUE, RANDOM = "real", "held_out", "true_pairs", "random"
GENERATED, KEPT, REJECTED = "generated", "accepted", "rejected"
SETS = (REAL, KEPT_OUT, GENERATED, KEPT, REJECTED)  # compared with the corpus, and each with all of its kind
PAIRED = (TRUE, RANDOM, GENERATED, KEPT, REJECTED)  # each of which has a seed
SCHEMA = pa.schema(
    {
        "group": pa.string(),
        "row": pa.int64(),  # place among all documents of its kind: ordinal of real ones, row of synthetic ones
        "ordinal": pa.int64(),
        "id": pa.string(),
        "text": pa.string(),
        "seed": pa.int64(),  # ordinal of the document that it is paired with: its seed, or d1 of a real pair
        "read": pa.list_(pa.int64()),  # all documents that were read before it was written
        "finish": pa.string(),
        "verdict": pa.string(),
    }
)
Columns = dict[str, Sequence[object]]


def spread(total: int, wanted: int) -> np.ndarray:
    """Places of at most so many of `total` things, evenly spread, rising."""
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).astype(np.int64)) if total else np.empty(0, np.int64)


def real(documents: Artifact, splits: Artifact, names: Sequence[str], group: str, wanted: int) -> pa.Table:
    """Documents of some splits."""

    def is_member(table: pa.Table) -> np.ndarray:
        return np.isin(table["split"].to_numpy(zero_copy_only=False).astype(str), names)

    ordinals = _chosen(splits, ["ordinal", "split"], is_member, wanted)["ordinal"].to_numpy()
    return _table(group, ordinals, rows_at(documents, ordinals, ["id", "text"]))


def true_pairs(documents: Artifact, pairs: Artifact, wanted: int) -> pa.Table:
    """The second documents of accepted pairs, each with the first one as its seed."""

    def is_accepted(table: pa.Table) -> np.ndarray:
        return pc.equal(table["verdict"], ACCEPTED).to_numpy(zero_copy_only=False)

    chosen = _chosen(pairs, ["d1", "d2", "verdict"], is_accepted, wanted)
    return paired(documents, TRUE, chosen["d1"].to_numpy(), chosen["d2"].to_numpy())


def random_pairs(documents: Artifact, seeds: np.ndarray, others: np.ndarray) -> pa.Table:
    """For each seed another document, drawn by a hash of its place."""
    if len(np.unique(others)) < 2:
        return SCHEMA.empty_table()
    places = (mixed(np.arange(len(seeds), dtype=np.uint64)) % np.uint64(len(others))).astype(np.int64)
    while np.any(same := others[places] == seeds):
        places[same] = (places[same] + 1) % len(others)
    return paired(documents, RANDOM, seeds, others[places])


def paired(documents: Artifact, group: str, seeds: np.ndarray, ordinals: np.ndarray) -> pa.Table:
    unique, where = np.unique(ordinals, return_inverse=True)
    found = rows_at(documents, unique, ["id", "text"]).take(pa.array(where))
    table = _table(group, ordinals, found)
    read = pa.array([[seed] for seed in seeds.tolist()], SCHEMA.field("read").type)
    for name, column in (("seed", pa.array(seeds, pa.int64())), ("read", read)):
        table = table.set_column(SCHEMA.get_field_index(name), name, column)
    return table


def synthetic(artifact: Artifact, group: str, wanted: int, prefix: str = "part") -> pa.Table:
    """Documents of `synthesized`, or of those that the filters kept (prefix "part") or rejected."""
    places = spread(sum(rows for _, rows in _files(artifact, prefix)), wanted)
    if len(places) == 0:
        return SCHEMA.empty_table()
    names = ["ordinal", "id", "text", "seed", "conditioning", "finish"]
    verdicts = ["verdict"] if group != GENERATED else []
    found = rows_at(artifact, places, [*names, *verdicts], prefix)
    columns = {name: found[name] for name in (*names, *verdicts)}
    columns |= {"group": pa.array([group] * len(places), pa.string()), "row": pa.array(places, pa.int64())}
    columns["read"] = columns.pop("conditioning")
    columns.setdefault("verdict", pa.nulls(len(places), pa.string()))
    return pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)


def rows_at(artifact: Artifact, places: np.ndarray, columns: list[str], prefix: str = "part") -> pa.Table:
    """The rows at rising places among those of all shards; only the shards that hold some are read."""
    tables: list[pa.Table] = []
    first = 0
    for name, rows in _files(artifact, prefix):
        wanted = places[(places >= first) & (places < first + rows)] - first
        if len(wanted) or not tables:
            tables.append(_read(artifact, name, columns).take(pa.array(wanted)))
        first += rows
    return pa.concat_tables(tables).combine_chunks()


def texts(artifact: Artifact, batch: int, prefix: str = "part") -> Iterator[tuple[int, list[str]]]:
    """All texts in order, some at a time, each batch with the row of its first."""
    first = 0
    for name, _ in _files(artifact, prefix):
        with artifact.file(name).open("rb") as stream:
            for part in pq.ParquetFile(stream).iter_batches(batch, columns=["text"]):
                yield first, part.column("text").to_pylist()
                first += part.num_rows


def _chosen(
    artifact: Artifact, columns: list[str], is_member: Callable[[pa.Table], np.ndarray], wanted: int
) -> pa.Table:
    """Some of the rows that are members, evenly spread: counted first, then taken."""
    counts = [int(np.count_nonzero(is_member(table))) for table in parquet.tables(artifact, columns)]
    places, first, taken = spread(sum(counts), wanted), 0, []
    for count, table in zip(counts, parquet.tables(artifact, columns), strict=True):
        own = places[(places >= first) & (places < first + count)] - first
        taken.append(table.take(pa.array(np.flatnonzero(is_member(table))[own])))
        first += count
    return pa.concat_tables(taken)


def _table(group: str, ordinals: np.ndarray, found: pa.Table) -> pa.Table:
    """Real documents, without a seed."""
    count = len(ordinals)
    columns = {
        "group": pa.array([group] * count, pa.string()),
        "row": pa.array(ordinals, pa.int64()),
        "ordinal": pa.array(ordinals, pa.int64()),
        "id": found["id"],
        "text": found["text"],
    }
    return pa.table({field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in SCHEMA}).cast(SCHEMA)


def _files(artifact: Artifact, prefix: str) -> list[tuple[str, int]]:
    return [
        (file.name, file.rows)
        for file in artifact.files
        if file.name.startswith(f"{prefix}-") and file.name.endswith(".parquet")
    ]


def _read(artifact: Artifact, name: str, columns: list[str]) -> pa.Table:
    with artifact.file(name).open("rb") as stream:
        return pq.read_table(stream, columns=columns)
