"""Pairs for a reader: a sample of each verdict, side by side, with the shingles marked that both texts have."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.report.examples import SHOWN, marked
from sbp_jax.report.excerpts import READ, Piece, windowed
from sbp_jax.report.results import rows_at, shards, spread, within
from sbp_jax.text.shingles import WORDS, mixed

SHARDS = 4  # of the corpus


def sample(pairs: Artifact, documents: Artifact, number: int, wanted: list[str] | None = None) -> dict[str, Any]:
    """At most `number` pairs of each verdict, or of the wanted ones, with the texts of both sides.

    Which pairs is decided by a hash of their two ordinals: chance without a seed. So that little is read, both
    documents are of the same few shards of the corpus, where it has more than `SHARDS`.

    Returns:
      Lists of rows by verdict, the verdict with most pairs in the sample first where `wanted` says nothing; each row
      has the columns of the pair and `d1_id`, `d1_text`, `d2_id` and `d2_text`.
    """
    best: dict[str, pa.Table] = {}
    inside = spread(shards(documents), SHARDS)
    for shard in shards(pairs):
        table = parquet.table(pairs.file(shard.name), ["d1", "d2", "verdict"])
        places = np.arange(shard.first, shard.first + table.num_rows)
        columns = {"place": places, "hash": hashes(table["d1"].to_numpy(), table["d2"].to_numpy())}
        near = within(inside, table["d1"].to_numpy()) & within(inside, table["d2"].to_numpy())
        table = pa.table({"verdict": table["verdict"], **columns}).filter(pa.array(near))
        for verdict in pc.unique(table["verdict"]).to_pylist():
            if wanted is None or verdict in wanted:
                found = table.filter(pc.equal(table["verdict"], verdict))
                found = pa.concat_tables([best[verdict], found]) if verdict in best else found
                first = pc.select_k_unstable(found, number, [("hash", "ascending")])
                best[verdict] = found.take(first).combine_chunks()
    order = sorted(best, key=lambda verdict: (verdict != "accepted", verdict))
    rows = rows_at(pairs, [place for verdict in order for place in best[verdict]["place"].to_pylist()])
    for side in ("d1", "d2"):
        texts = rows_at(documents, [row[side] for row in rows], ["id", "text"])
        for row, document in zip(rows, texts, strict=True):
            row |= {f"{side}_id": document["id"], f"{side}_text": document["text"]}
    return {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in order}


def hashes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A well-mixed uint64 for each pair of ordinals (the finaliser of SplitMix64, applied to both)."""
    return mixed(mixed(first.astype(np.uint64)) + second.astype(np.uint64))


def excerpt(text: str, other: str, limit: int = SHOWN) -> list[Piece]:
    """About `limit` characters of a text, in pieces by what the other one has too, those of a shingle's length marked.

    They are its beginning, and, where the first shared run lies beyond that, the text around the run.
    """
    pieces = marked(text[:READ], other, WORDS)
    return windowed([*pieces, (text[READ:], "")] if len(text) > READ else pieces, limit, "run")
