"""Triples to browse: a synthetic document, the seed that was read for it, and the true pair nearest to that seed.

They are a sample by a hash of the ordinals. So that the report of a large run reads little, the sample is of the
documents whose seed and whose true pair lie in a few shards of the corpus; which shard a document is in says nothing
about it. In a corpus of at most `SHARDS` shards every document may be chosen.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sbp_jax.artifacts import Artifact
from sbp_jax.report.pair_samples import hashes
from sbp_jax.report.pairs import ACCEPTED
from sbp_jax.report.results import Shard, rows_at, shards, spread, within

NUMBER = 240  # of which at least a third are rejected documents, where there are so many
SHARDS = 12  # of the corpus
WRITTEN = 192  # of accepted documents, and as many of rejected ones
SCORES = ("words", "copied", "repetition", "seed_overlap", "seed_common", "held_out", "similarity", "logprob")
LINEAGE = ("sample", "key", "synthesizer", "step", "engine", "temperature", "top_p", "new_tokens", "conditioning_ids")


def triples(synthetic: Artifact, pairs: Artifact, documents: Artifact, number: int = NUMBER) -> list[dict[str, Any]]:
    """At most `number` triples, accepted documents and rejected ones by turns.

    Returns:
      `id`, `text`, `verdict`, `finish`, and, None where there is none, `seed_id`, `seed_text`, `source`, `target_id`,
      `target_text`, `pair_similarity`, and what the row says of scores and lineage.
    """
    inside = spread(shards(documents), SHARDS)
    candidates = _candidates(synthetic, inside)
    seeds = np.unique(candidates["seed"].drop_null().to_numpy())
    nearest = {row["d1"]: row for row in _nearest(pairs, seeds)}
    if len(inside) < len(shards(documents)):
        both = within(inside, np.array([pair["d2"] for pair in nearest.values()], np.int64))
        nearest = {seed: pair for (seed, pair), there in zip(nearest.items(), both, strict=True) if there}
        seedless = pc.is_null(candidates["seed"])
        candidates = candidates.filter(pc.or_(seedless, pc.is_in(candidates["seed"], pa.array([*nearest], pa.int64()))))
    rows = _by_turns(candidates, number)
    found = _texts(synthetic, rows)
    real = sorted({ordinal for row in found for ordinal in (row["seed"], _target(nearest, row)) if ordinal is not None})
    texts = dict(zip(real, rows_at(documents, real, _columns(documents, ("id", "source", "text"))), strict=True))
    return [_triple(row, texts, nearest.get(row["seed"])) for row in found]


def _triple(row: dict[str, Any], texts: dict[int, dict[str, Any]], pair: dict[str, Any] | None) -> dict[str, Any]:
    seed = texts.get(row["seed"], {})
    target = texts.get(pair["d2"], {}) if pair else {}
    return {
        "id": row["id"],
        "text": row["text"],
        "verdict": row["verdict"],
        "finish": row["finish"],
        "seed_id": seed.get("id"),
        "seed_text": seed.get("text"),
        "source": seed.get("source"),
        "target_id": target.get("id"),
        "target_text": target.get("text"),
        "pair_similarity": pair["similarity"] if target and pair else None,
    } | {name: row.get(name) for name in (*SCORES, *LINEAGE)}


def _target(nearest: dict[int, dict[str, Any]], row: dict[str, Any]) -> int | None:
    pair = nearest.get(row["seed"])
    return pair["d2"] if pair else None


def _candidates(synthetic: Artifact, inside: list[Shard]) -> pa.Table:
    """Rows of synthetic documents, without their texts, whose seed lies in some shards of the corpus, or is none."""
    found = []
    for prefix in ("part", "rejected"):
        for shard in spread(shards(synthetic, prefix), WRITTEN):
            if not shard.rows:
                continue
            with synthetic.file(shard.name).open("rb") as stream:
                file = pq.ParquetFile(stream)
                names = [name for name in ("seed", "sample", "verdict") if name in file.schema_arrow.names]
                table = file.read(names)
            if "verdict" not in names:
                table = table.append_column("verdict", pa.array([ACCEPTED] * table.num_rows))
            table = table.append_column("file", pa.array([shard.name] * table.num_rows))
            table = table.append_column("row", pa.array(np.arange(table.num_rows)))
            table = table.append_column("hash", pa.array(_hashes(table, shard.first)))
            seed = table["seed"].fill_null(-1).to_numpy()
            found.append(table.filter(pa.array((seed < 0) | within(inside, seed))))
    return pa.concat_tables(found)


def _hashes(table: pa.Table, first: int) -> np.ndarray:
    """Of the seed and the sample number, which are a document's own whatever the shards are."""
    seed = table["seed"].fill_null(-1).to_numpy()
    own = np.where(seed < 0, first + np.arange(len(seed)), table["sample"].to_numpy())
    return hashes(seed, own)


def _nearest(pairs: Artifact, seeds: np.ndarray) -> Iterator[dict[str, Any]]:
    """The accepted pair of greatest similarity of each seed that begins one; shards without any are not read."""
    for shard in shards(pairs):
        with pairs.file(shard.name).open("rb") as stream:
            file = pq.ParquetFile(stream)
            low, high = _range(file, "d1")
            sought = seeds[(seeds >= low) & (seeds <= high)]
            if len(sought) == 0:
                continue
            table = file.read(["d1", "d2", "similarity", "rank", "verdict"])
        good = pc.and_(pc.is_in(table["d1"], pa.array(sought)), pc.equal(table["verdict"], ACCEPTED))
        table = table.filter(good).sort_by([("d1", "ascending"), ("rank", "ascending")])
        _, first = np.unique(table["d1"].to_numpy(), return_index=True)
        yield from table.take(first).to_pylist()


def _range(file: pq.ParquetFile, column: str) -> tuple[int, int]:
    """Least and greatest value of a column, by the statistics of the file."""
    place = file.schema_arrow.names.index(column)
    groups = [file.metadata.row_group(index).column(place).statistics for index in range(file.num_row_groups)]
    if not groups or any(group is None or not group.has_min_max for group in groups):
        return np.iinfo(np.int64).min, np.iinfo(np.int64).max
    return min(group.min for group in groups), max(group.max for group in groups)


def _by_turns(candidates: pa.Table, number: int) -> list[dict[str, Any]]:
    """The first by hash of each verdict, two accepted documents for each other one while both last."""
    accepted = pc.equal(candidates["verdict"], ACCEPTED)
    kept, out = candidates.filter(accepted), candidates.filter(pc.invert(accepted))
    others = _spread(out, min(out.num_rows, max(number // 3, number - kept.num_rows)))
    chosen = kept.sort_by("hash").slice(0, number - len(others)).to_pylist()
    return sorted(chosen + others, key=lambda row: row["hash"])


def _spread(rejected: pa.Table, number: int) -> list[dict[str, Any]]:
    """Some rejected documents, by turns over the verdicts, so that rare ones are there too."""
    ranked: list[tuple[int, int, dict[str, Any]]] = []
    for verdict in pc.unique(rejected["verdict"]).to_pylist():
        rows = rejected.filter(pc.equal(rejected["verdict"], verdict)).sort_by("hash").slice(0, number).to_pylist()
        ranked += [(place, row["hash"], row) for place, row in enumerate(rows)]
    return [row for *_, row in sorted(ranked, key=lambda entry: entry[:2])[:number]]


def _texts(synthetic: Artifact, chosen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The whole rows of chosen documents, in the order given."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for name in sorted({row["file"] for row in chosen}):
        with synthetic.file(name).open("rb") as stream:
            table = pq.read_table(stream)
        places = [row["row"] for row in chosen if row["file"] == name]
        found |= {(name, place): row for place, row in zip(places, table.take(places).to_pylist(), strict=True)}
    return [found[row["file"], row["row"]] | {"verdict": row["verdict"]} for row in chosen]


def _columns(artifact: Artifact, wanted: tuple[str, ...]) -> list[str]:
    with artifact.file(shards(artifact)[0].name).open("rb") as stream:
        there = pq.ParquetFile(stream).schema_arrow.names
    return [name for name in wanted if name in there]
