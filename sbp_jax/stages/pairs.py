"""Stage `pairs`: neighbours become ordered pairs (d1, d2), each with the evidence for its verdict.

The rules, in this order; the first that a pair breaks is its verdict:

1. too_distant: similarity below `pairs.threshold`. The pairs of a band of 0.05 under it are kept, as evidence.
2. too_similar: similarity above `pairs.maximum`.
3. near_duplicate: containment of `pairs.near_duplicate` or more, boilerplate left out (`data/boilerplate.py`); where
   all of d1 or of d2 is boilerplate, nothing is left out.
4. contaminated: d1 or d2 holds an item of an evaluation set.
5. language: `pairs.same_language`, and the two are in different languages, both of which are known.
6. length: the shorter has fewer tokens than `pairs.length_ratio` of the longer.
7. not_mutual: `pairs.mutual`, and d1 is not among the neighbours of d2.
8. too_long: the pair does not fit into a row of the synthesizer.
9. same_source: past the first `pairs.same_source` of d1's pairs with its own source, by falling similarity.
10. hub: past the first `pairs.max_targets` pairs of d2, by falling similarity, ties by d1.

The two caps count only pairs that no earlier rule rejects.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Pairs
from sbp_jax.data import by_target
from sbp_jax.data.boilerplate import own_shingles
from sbp_jax.data.pair_evidence import overlap
from sbp_jax.data.screened import Shingles, columns, mapped, save
from sbp_jax.errors import SbpError
from sbp_jax.progress import progress
from sbp_jax.search.audit import ROUNDING
from sbp_jax.text import template

VERSION = 3
ACCEPTED = "accepted"
VERDICTS = (
    *("too_distant", "too_similar", "near_duplicate", "contaminated", "language", "length", "not_mutual"),
    *("too_long", "same_source", "hub"),
)
BAND = 0.05  # of similarity under the threshold in which pairs are kept as too distant
BIN = 5  # hundredths: width of the bins of the similarity histogram
SCHEMA = pa.schema(
    [
        ("d1", pa.int64()),
        ("d2", pa.int64()),
        ("similarity", pa.float32()),
        ("rank", pa.int32()),
        ("mutual", pa.bool_()),
        ("containment", pa.float32()),
        ("jaccard", pa.float32()),
        ("shared", pa.int32()),
        ("boilerplate", pa.int32()),
        ("tokens", pa.int32()),
        ("length_ratio", pa.float32()),
        ("same_source", pa.bool_()),
        ("same_language", pa.bool_()),
        ("target_rank", pa.int32()),
        ("verdict", pa.string()),
        ("rule_version", pa.int32()),
    ]
)
CANDIDATE = np.dtype([*by_target.PAIR.descr, ("rank", "<i4")])
TARGET = np.dtype([("row", "<i8"), ("target_rank", "<i4"), ("mutual", "?")])


def run(
    output: Output,
    *,
    neighbors: Artifact,
    screened: Artifact,
    tokens: Artifact,
    pairs: Pairs,
    context: int,
    window: bool = True,
    execution: Execution,
) -> Artifact:
    """Writes every neighbour in the window of similarity or just under it as a pair d1 = query, d2 = neighbour.

    Memory holds a few bytes for each document and one shard of pairs; the rest is mapped from a folder `scratch`, in
    which a killed run finds what it had done, and which is deleted at the end.

    Args:
      window: whether `pairs.threshold`, `pairs.maximum` and `pairs.mutual` apply; not to pairs drawn at random.

    Raises:
      SbpError: fewer accepted pairs than `pairs.minimum`, or a neighbour that was not screened or has no tokens.
    """
    count = len(neighbors.shards(".parquet"))
    scratch = Output(output.path / "scratch", output.recipe, output.label)
    if not all(output.has(_name("part", index, "parquet")) for index in range(count)):
        _judge_all(output, scratch, neighbors, screened, tokens, pairs, context, window)
    similarities = _offers(neighbors)
    stats = _counts(output, count)
    scratch.path.rmtree()
    if stats[ACCEPTED] < pairs.minimum:
        raise SbpError(_too_few(stats, similarities, pairs, context))
    return output.finish({"similarity_histogram": _histogram(similarities)} | stats)


def _name(kind: str, index: int, suffix: str = "npy") -> str:
    return f"{kind}-{index:05d}.{suffix}"


def _judge_all(
    output: Output,
    scratch: Output,
    neighbors: Artifact,
    screened: Artifact,
    tokens: Artifact,
    pairs: Pairs,
    context: int,
    window: bool,
) -> None:
    count = len(neighbors.shards(".parquet"))
    documents = columns(scratch, screened, tokens)
    least = pairs.threshold - BAND if window else -math.inf
    _save_candidates(scratch, neighbors, np.ascontiguousarray(documents["ordinal"]), least)
    targets = _targets(scratch, count, len(documents))
    own, own_counts = own_shingles(scratch, screened, pairs.common)
    shingles = Shingles(screened, own)
    # Without a cap on targets there is nothing to wait for: what is judged is final.
    capped = pairs.max_targets is not None
    where, kind = (scratch, "judged") if capped else (output, "part")
    total = sum(len(mapped(scratch.path / _name("candidates", index))) for index in range(count))
    with progress(output.label, total, "pairs") as counter:
        for index in range(count):
            candidates = mapped(scratch.path / _name("candidates", index))
            done = [where.has(_name(kind, index, "parquet"))]
            if capped:
                done.append(scratch.has(_name("passing", index)))
            if all(done):
                counter.skip(len(candidates))
                continue
            table = _evidence(candidates, targets, documents, shingles, own_counts)
            verdicts = _verdicts(table, documents, candidates, pairs, context, window)
            if capped:
                passing = candidates[verdicts == ACCEPTED][list(by_target.PAIR.names or ())]
                by_target.save_by_target(scratch, _name("passing", index), passing.astype(by_target.PAIR))
            _write(where, _name(kind, index, "parquet"), table, verdicts)
            counter.advance(len(candidates))
    if capped:
        _reject_hubs(output, scratch, count, len(documents), pairs)


def _save_candidates(scratch: Output, neighbors: Artifact, ordinals: np.ndarray, least: float) -> None:
    """Writes the neighbours of at least this similarity, by query and, again, by target."""
    row = 0
    for index, table in enumerate(parquet.tables(neighbors)):
        if not scratch.has(_name("targeted", index)):
            query, neighbor, similarity = (table[name].to_numpy() for name in ("query", "neighbor", "similarity"))
            if np.any(query[1:] < query[:-1]):
                raise ValueError(f"queries of {neighbors.path}, shard {index}, are not in ascending order")
            kept = similarity >= np.float32(least)
            candidates = np.empty(int(kept.sum()), CANDIDATE)
            candidates["row"] = np.arange(row, row + len(candidates))
            candidates["d1"] = _places(query[kept], ordinals, neighbors)
            candidates["d2"] = _places(neighbor[kept], ordinals, neighbors)
            candidates["similarity"] = similarity[kept]
            candidates["rank"] = by_target.rank(query)[kept]
            save(scratch, _name("candidates", index), candidates)
            pairs = candidates[list(by_target.PAIR.names or ())].astype(by_target.PAIR)
            by_target.save_by_target(scratch, _name("targeted", index), pairs)
        row += len(mapped(scratch.path / _name("candidates", index)))


def _places(wanted: np.ndarray, ordinals: np.ndarray, neighbors: Artifact) -> np.ndarray:
    """Places of documents among the screened ones."""
    places = np.minimum(np.searchsorted(ordinals, wanted), len(ordinals) - 1)
    missing = wanted[ordinals[places] != wanted]
    if len(missing):
        raise SbpError(
            f"{neighbors.path} names the document with ordinal {missing[0]}, which is no screened one; its vectors are"
            " of another corpus or another split: check embedding.vectors, run `sbp clean`, then `sbp run`"
        )
    return places


def _targets(scratch: Output, count: int, documents: int) -> list[np.ndarray]:
    """For each candidate its place among those of the same target, and whether the reverse is a candidate too."""

    def answer(pairs: np.ndarray, targets: slice) -> np.ndarray:
        candidates = (mapped(scratch.path / _name("candidates", index)) for index in range(count))
        parts = [np.array(by_target.between(part, "d1", targets)) for part in candidates]
        back = np.concatenate([np.empty(0, np.int64), *(part["d1"] * documents + part["d2"] for part in parts)])
        found = np.empty(len(pairs), TARGET)
        found["row"] = pairs["row"]
        found["target_rank"] = by_target.rank(pairs["d2"])
        found["mutual"] = np.isin(pairs["d2"] * documents + pairs["d1"], back)
        return found

    files = [_name("targeted", index) for index in range(count)]
    return by_target.answers(scratch, "targets", files, documents, answer)


def _evidence(
    candidates: np.ndarray,
    targets: list[np.ndarray],
    documents: np.ndarray,
    shingles: Shingles,
    own_counts: np.ndarray,
) -> dict[str, np.ndarray]:
    """The columns of some candidates, all but the verdict."""
    d1, d2 = candidates["d1"], candidates["d2"]
    first, second = documents[d1], documents[d2]
    rows = slice(int(candidates["row"][0]), int(candidates["row"][-1]) + 1) if len(candidates) else slice(0, 0)
    found = np.concatenate([np.empty(0, TARGET), *by_target.of_rows(targets, rows)])
    found = found[np.argsort(found["row"], kind="stable")]
    compared = overlap(shingles, own_counts, d1, d2)
    unknown = (first["language"] == 0) | (second["language"] == 0)
    lengths = first["tokens"], second["tokens"]
    return {
        "d1": first["ordinal"],
        "d2": second["ordinal"],
        "similarity": candidates["similarity"],
        "rank": candidates["rank"],
        "mutual": found["mutual"],
        "containment": compared.containment_P,
        "jaccard": compared.jaccard_P,
        "shared": compared.shared_P,
        "boilerplate": compared.boilerplate_P,
        "tokens": template.length(lengths[0] + lengths[1], 1),
        "length_ratio": (np.minimum(*lengths) / np.maximum(np.maximum(*lengths), 1)).astype(np.float32),
        "same_source": first["source"] == second["source"],
        "same_language": unknown | (first["language"] == second["language"]),
        "target_rank": found["target_rank"],
    }


def _verdicts(
    table: dict[str, np.ndarray],
    documents: np.ndarray,
    candidates: np.ndarray,
    pairs: Pairs,
    context: int,
    window: bool,
) -> np.ndarray:
    """The verdict on each candidate by every rule but that of hubs."""
    contaminated = documents["contaminated"]
    rules = {
        "too_distant": (table["similarity"] < np.float32(pairs.threshold)) & window,
        "too_similar": (table["similarity"] > np.float32(pairs.maximum + ROUNDING)) & window,
        "near_duplicate": table["containment"] >= np.float32(pairs.near_duplicate),
        "contaminated": contaminated[candidates["d1"]] | contaminated[candidates["d2"]],
        "language": ~table["same_language"] & pairs.same_language,
        "length": table["length_ratio"] < np.float32(pairs.length_ratio),
        "not_mutual": ~table["mutual"] & (pairs.mutual and window),
        "too_long": table["tokens"] > context + 1,
    }
    verdicts = np.select(list(rules.values()), list(rules), ACCEPTED).astype("<U16")
    if pairs.same_source is not None:
        own = np.flatnonzero((verdicts == ACCEPTED) & table["same_source"])  # by d1 and falling similarity already
        verdicts[own[by_target.rank(table["d1"][own]) >= pairs.same_source]] = "same_source"
    return verdicts


def _write(output: Output, name: str, table: dict[str, np.ndarray], verdicts: np.ndarray) -> None:
    if output.has(name):
        return
    whole = table | {"verdict": verdicts.tolist(), "rule_version": np.full(len(verdicts), VERSION)}
    with output.writing(name) as writing:
        parquet.write(writing, pa.table(whole, schema=SCHEMA))


def _reject_hubs(output: Output, scratch: Output, count: int, documents: int, pairs: Pairs) -> None:
    """Writes the judged pairs, each target's accepted ones past the cap rejected."""

    def answer(passing: np.ndarray, targets: slice) -> np.ndarray:
        return passing[["row"]][by_target.rank(passing["d2"]) >= pairs.max_targets]

    files = [_name("passing", index) for index in range(count)]
    hubs = by_target.answers(scratch, "hubs", files, documents, answer)
    first = 0
    for index in range(count):
        with (scratch.path / _name("judged", index, "parquet")).open("rb") as stream:
            table = pq.read_table(stream)
        rows = slice(first, first + table.num_rows)
        first = rows.stop

        def write(writing: Writing, table: pa.Table = table, rows: slice = rows) -> None:
            verdicts = table["verdict"].to_numpy(zero_copy_only=False).astype("<U16")
            for found in by_target.of_rows(hubs, rows):
                verdicts[found["row"] - rows.start] = "hub"
            column = pa.array(verdicts.tolist(), pa.string())
            parquet.write(writing, table.set_column(SCHEMA.get_field_index("verdict"), "verdict", column))

        output.shard(index, ".parquet", write)


def _counts(output: Output, shards: int) -> dict[str, int]:
    """Counts over all shards, read back from the files, since some may be an earlier run's."""
    counts = dict.fromkeys((ACCEPTED, *VERDICTS), 0)
    covered = np.zeros(0, bool)
    for index in range(shards):
        with (output.path / _name("part", index, "parquet")).open("rb") as stream:
            table = pq.read_table(stream, columns=["d1", "d2", "verdict"])
        for entry in table["verdict"].value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
        accepted = table.filter(pc.equal(table["verdict"], ACCEPTED))
        for name in ("d1", "d2"):
            ordinals = accepted[name].to_numpy()
            missing = int(ordinals.max(initial=-1)) + 1 - len(covered)
            covered = np.concatenate([covered, np.zeros(max(0, missing), bool)])
            covered[ordinals] = True
    candidates = sum(counts.values()) - counts["too_distant"]
    return {"candidates": candidates} | counts | {"documents_covered": int(covered.sum())}


def _offers(neighbors: Artifact) -> dict[int, int]:
    """Neighbours by similarity in hundredths, rounded down: what another threshold would offer."""
    edges = (np.arange(-100, 102) / 100).astype(np.float32)  # rounding may lift a similarity over 1
    counts = np.zeros(len(edges) + 1, np.int64)
    for table in parquet.tables(neighbors, ["similarity"]):
        found = np.searchsorted(edges, table["similarity"].to_numpy(), side="right")
        counts += np.bincount(found, minlength=len(counts))
    return {place - 101: int(count) for place, count in enumerate(counts) if count}


def _histogram(offers: dict[int, int]) -> dict[str, int]:
    """Neighbours by similarity, accepted or not."""
    bins: dict[int, int] = {}
    for hundredths, count in sorted(offers.items()):
        bins[hundredths // BIN] = bins.get(hundredths // BIN, 0) + count
    return {f"{place * BIN / 100:.2f}": count for place, count in bins.items()}


def _too_few(stats: dict[str, Any], offers: dict[int, int], pairs: Pairs, context: int) -> str:
    message = f"{stats[ACCEPTED]:,} pairs were accepted at pairs.threshold = {pairs.threshold:g}"
    rejected = {name: stats[name] for name in VERDICTS if stats[name] and name != "too_distant"}
    if rejected:
        message += f" (rejected: {', '.join(f'{name} {count:,}' for name, count in rejected.items())})"
    message += f", fewer than pairs.minimum = {pairs.minimum:,}"
    if stats["too_long"] + stats[ACCEPTED] >= pairs.minimum:
        return f"{message}; raise tuning.context above {context}"
    # As many may be rejected below the threshold as above it.
    kept = stats[ACCEPTED] / stats["candidates"] if stats[ACCEPTED] else 1.0
    needed = math.ceil(pairs.minimum / kept)
    offer = 0
    for hundredths, count in sorted(offers.items(), reverse=True):
        offer += count
        if offer >= needed:
            if 0 < hundredths < pairs.threshold * 100:
                lower = f"lower pairs.threshold to {hundredths / 100:.2f}, which {offer:,} reach"
                return f"{message}; {lower}, or raise splits.capped"
            break
    return f"{message}, and no lower threshold gives enough; raise splits.capped or neighbors.top_k"
