"""Why the pairs are what they are, in numbers: similarities, thresholds, verdicts, hubs, sources and the recall audit.

Everything is read shard by shard. What stays in memory is counts and, for the table of sources, one byte for each
document of the corpus.
"""

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.config import Pairs
from sbp_jax.report.results import rows_at

ACCEPTED, TOO_DISTANT = "accepted", "too_distant"
BIN = 0.025  # of the histograms
GRID = 0.05  # between thresholds of the sweep
HUBS, HUB_WORDS = 10, 12
SOURCES = 8  # named in the table of sources; the rest is one more
COUNTED = 100_000  # sources, languages and leaked items that are counted at a time; rarer ones are forgotten
RECALL = ("recall_at_1", "recall_at_10", "recall_at_k")
ABOVE = "recall_above_threshold"


def evidence(
    neighbors: Artifact, pairs: Artifact, screened: Artifact, documents: Artifact, settings: Pairs
) -> dict[str, Any]:
    """What a reader is told about the pairs, as JSON values.

    Documents are counted by the pairs that they begin. In the sweep, `accepted` and what follows it are None below the
    similarities that the pairs were kept for; where `certain` is false they count pairs that the threshold alone
    rejected, whatever another rule would have said of them.
    """
    return {
        "threshold": settings.threshold,
        "near_duplicate": settings.near_duplicate,
        "search": {name: neighbors.stats.get(name) for name in ("backend", "backend_reason", "audited_queries")},
        "recall": _recall(neighbors, settings.threshold),
        **_similarities(neighbors, pairs, settings),
        "hubs": _hubs(pairs, documents, settings),
        "sources": _sources(pairs, screened, documents.rows),
        "screened": _screened(screened),
    }


def _recall(neighbors: Artifact, threshold: float) -> dict[str, float]:
    """What the search's audit found; that above the threshold is told for the hundredth at or below it."""
    recall = {name: neighbors.stats[name] for name in RECALL if name in neighbors.stats}
    above = neighbors.stats.get("recall_above", {}).get(f"{math.floor(threshold * 100 + 1e-6) / 100:.2f}")
    return recall if above is None else recall | {ABOVE: above}


def _similarities(neighbors: Artifact, pairs: Artifact, settings: Pairs) -> dict[str, Any]:
    """Counts by similarity, from one pass over the neighbours and one over the pairs."""
    edges = np.linspace(-1, 1, round(2 / BIN) + 1)
    grid = _grid(settings.threshold)
    histogram = np.zeros(len(edges) - 1, np.int64)
    offered, asked = np.zeros(len(grid), np.int64), _Best(grid)
    for table in parquet.tables(neighbors, ["query", "similarity"]):
        similarity = table["similarity"].to_numpy()
        histogram += _binned(similarity, edges)
        offered += reaching(grid, similarity)
        asked.add(table["query"].to_numpy(), similarity)

    verdicts: Counter[str] = Counter()
    kept, copies = np.zeros_like(histogram), np.zeros_like(histogram)
    accepted, tokens = np.zeros(len(grid), np.int64), np.zeros(len(grid), np.int64)
    begun, least = _Best(grid), 1.0
    beginning = _Best(np.array([-np.inf], np.float32))
    for table in parquet.tables(pairs, ["d1", "similarity", "containment", "tokens", "verdict"]):
        verdict, similarity = table["verdict"], table["similarity"].to_numpy()
        verdicts += value_counts(verdict)
        kept += _binned(similarity, edges)
        copied = table["containment"].to_numpy() >= np.float32(settings.near_duplicate)
        copies += _binned(similarity[copied], edges)
        least = min(least, float(similarity.min(initial=1.0)))
        good = pc.equal(verdict, ACCEPTED).to_numpy()
        beginning.add(table["d1"].to_numpy()[good], similarity[good])
        good = good | pc.equal(verdict, TOO_DISTANT).to_numpy()
        accepted += reaching(grid, similarity[good])
        tokens += reaching(grid, similarity[good], table["tokens"].to_numpy()[good])
        begun.add(table["d1"].to_numpy()[good], similarity[good])

    sweep: list[dict[str, Any]] = [
        {
            "threshold": round(float(threshold), 6),
            "neighbors": int(offered[place]),
            "documents": int(asked.counts()[place]),
            "accepted": int(accepted[place]),
            "accepted_documents": int(begun.counts()[place]),
            "tokens": int(tokens[place]),
            "certain": bool(threshold >= np.float32(settings.threshold)),
        }
        for place, threshold in enumerate(grid)
    ]
    for row in sweep:
        if row["threshold"] < least - GRID / 100 and not row["certain"]:
            row |= dict.fromkeys(("accepted", "accepted_documents", "tokens"))
    first = max((place for place, row in enumerate(sweep) if row["neighbors"] == neighbors.rows), default=0)
    return {
        "neighbors": neighbors.rows,
        "verdicts": dict(verdicts.most_common()),
        "documents_with_pairs": int(beginning.counts()[0]),
        "histogram": _filled(edges, neighbors=histogram),
        "near_duplicates": _filled(edges, pairs=kept, near_duplicates=copies),
        "sweep": [row for row in sweep[first:] if row["neighbors"]],
    }


def _binned(similarity: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts between edges that are evenly spread from -1 to 1, which NumPy need not search for."""
    return np.histogram(np.clip(similarity, -1, 1), len(edges) - 1, (-1.0, 1.0))[0]


class _Best:
    """How many documents reach each threshold with the best of their pairs, which stand one after another."""

    def __init__(self, grid: np.ndarray):
        self._grid, self._counts = grid, np.zeros(len(grid), np.int64)
        self._last: tuple[int, float] | None = None  # a document whose pairs may go on in the next shard

    def add(self, document: np.ndarray, similarity: np.ndarray) -> None:
        """Counts the documents of a shard; `document` rises, and from shard to shard too."""
        if self._last is not None:
            document, similarity = np.append(self._last[0], document), np.append(self._last[1], similarity)
        if len(document) == 0:
            return
        starts = np.flatnonzero(np.append(True, document[1:] != document[:-1]))
        best = np.maximum.reduceat(similarity.astype(np.float32), starts)
        self._counts += reaching(self._grid, best[:-1])
        self._last = int(document[-1]), float(best[-1])

    def counts(self) -> np.ndarray:
        last = [] if self._last is None else [self._last[1]]
        return self._counts + reaching(self._grid, np.array(last, np.float32))


def reaching(grid: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """How many values, or what weight of them, is at least each entry of a rising grid; int64."""
    places = np.searchsorted(grid, values, side="right")
    sums = np.bincount(places, weights, len(grid) + 1).astype(np.int64)  # exact: below 2^53
    return sums[::-1].cumsum()[::-1][1:]


def _grid(threshold: float) -> np.ndarray:
    """The thresholds of the sweep, the experiment's own among them; float32, as similarities are."""
    even = np.arange(round(-1 / GRID), round(1 / GRID) + 1) * GRID
    even = even[np.abs(even - threshold) > GRID / 100]
    return np.sort(np.append(even, threshold)).astype(np.float32)


def _filled(edges: np.ndarray, **counts: np.ndarray) -> dict[str, list[Any]]:
    """Histograms over the same bins, from the first bin that holds anything in the first of them to the last one."""
    filled = np.flatnonzero(next(iter(counts.values())))
    first, stop = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
    bins = {name: entries[first:stop].tolist() for name, entries in counts.items()}
    return {"edges": edges[first : stop + 1].round(6).tolist() if stop else []} | bins


def _hubs(pairs: Artifact, documents: Artifact, settings: Pairs) -> list[dict[str, Any]]:
    """The documents that are most often a neighbour above the threshold, most often first.

    A document's greatest `target_rank`, which counts from 0, tells how often, so no count for each document is kept.
    """
    top: dict[int, int] = {}
    for table in parquet.tables(pairs, ["d2", "similarity", "target_rank"]):
        near = table.filter(pc.greater_equal(table["similarity"], pa.scalar(settings.threshold, pa.float32())))
        least = min(top.values()) - 1 if len(top) == HUBS else 0
        near = near.filter(pc.greater_equal(near["target_rank"], least))  # of the others none gets among the first
        targets = near.group_by("d2").aggregate([("target_rank", "max")])
        order = [("target_rank_max", "descending"), ("d2", "ascending")]
        for row in targets.sort_by(order).slice(0, HUBS).to_pylist():
            top[row["d2"]] = max(top.get(row["d2"], 0), row["target_rank_max"] + 1)
        top = dict(sorted(top.items(), key=lambda item: (-item[1], item[0]))[:HUBS])
    accepted: Counter[int] = Counter()
    wanted = pa.array(list(top), pa.int64())
    for table in parquet.tables(pairs, ["d2", "verdict"]):
        found = pc.and_(pc.equal(table["verdict"], ACCEPTED), pc.is_in(table["d2"], wanted))
        accepted += value_counts(table["d2"].filter(found))
    rows = rows_at(documents, list(top), ["id", "text"])
    return [
        {
            "ordinal": ordinal,
            "id": row["id"],
            "targeted": number,
            "accepted": accepted[ordinal],
            "words": " ".join(row["text"][:2000].split()[:HUB_WORDS]),
        }
        for (ordinal, number), row in zip(top.items(), rows, strict=True)
    ]


def _sources(pairs: Artifact, screened: Artifact, ordinals: int) -> dict[str, Any]:
    """Accepted pairs by the sources of their documents, the largest sources by name."""
    names = list(_most_common(screened, "source"))
    named, other = names[:SOURCES], min(SOURCES, len(names))
    code_of = np.full(ordinals, other, np.uint8)
    for table in parquet.tables(screened, ["ordinal", "source"]):
        codes = pc.fill_null(pc.index_in(table["source"], pa.array(named, pa.string())), other)
        code_of[table["ordinal"].to_numpy()] = codes.to_numpy()
    matrix = np.zeros((other + 1) ** 2, np.int64)
    for table in parquet.tables(pairs, ["d1", "d2", "verdict"]):
        accepted = table.filter(pc.equal(table["verdict"], ACCEPTED))
        first, second = (code_of[accepted[name].to_numpy()].astype(np.int64) for name in ("d1", "d2"))
        matrix += np.bincount(first * (other + 1) + second, minlength=len(matrix))
    square, size = matrix.reshape(other + 1, other + 1), other + (len(names) > other)
    return {"names": named, "others": len(names) - other, "pairs": square[:size, :size].tolist()}


def _screened(screened: Artifact) -> dict[str, Any]:
    """What the documents are, of which the pairs are made."""
    contaminated = _most_common(screened, "contaminated_by")
    contaminated.pop("", None)
    languages = _most_common(screened, "language")
    return {"documents": screened.rows, "languages": dict(languages), "contaminated": dict(contaminated)}


def _most_common(artifact: Artifact, column: str) -> Counter[str]:
    """Values of a column with how often each occurs, most often first, then by name."""
    held = pa.table({"value": pa.array([], pa.string()), "number": pa.array([], pa.int64())})
    for table in parquet.tables(artifact, [column]):
        counts = pc.value_counts(table[column])
        own = pa.table({"value": counts.field("values"), "number": counts.field("counts")})
        held = pa.concat_tables([held, own])
        if held.num_rows > 20 * COUNTED:
            held = _summed(held)
            held = held.slice(0, COUNTED) if held.num_rows > 10 * COUNTED else held
    first = _summed(held).slice(0, COUNTED)
    return Counter(dict(zip(first["value"].to_pylist(), first["number"].to_pylist(), strict=True)))


def _summed(counts: pa.Table) -> pa.Table:
    """Each value once, with the sum of its numbers, greatest first."""
    summed = counts.group_by("value").aggregate([("number", "sum")]).rename_columns(["value", "number"])
    return summed.sort_by([("number", "descending"), ("value", "ascending")])


def value_counts(column: pa.ChunkedArray) -> Counter[Any]:
    """How often each value of a column occurs."""
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()})
