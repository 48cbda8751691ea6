"""Stage `group`: each accepted pair (d1, t) becomes a group, the documents that are read before t.

With `tuning.conditioning` = 1 they are d1 alone. With k, up to k - 1 further partners of d1 are read before it, the
nearest, unless one is

1. t itself;
2. held out, and the pair is of the training part;
3. a near-duplicate of t, by the rule of the stage `pairs`: the pairs vouch for (d1, t) and (d1, x), not for (x, t);
4. too long for the room that d1, t and those before it leave in the context.

The next partner takes the place of one left out by 1 to 3, none that of one too long. All pairs of a seed lie in one
shard, so a shard is grouped by itself.
"""

import numpy as np
import pyarrow as pa
import xxhash

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution
from sbp_jax.data import groups
from sbp_jax.data.boilerplate import own_shingles
from sbp_jax.data.pair_evidence import overlap
from sbp_jax.data.screened import Shingles, columns
from sbp_jax.progress import progress

VERSION = 1
TRAIN, VALIDATION = "train", "validation"
SCHEMA = pa.schema(
    [
        ("seed", pa.int64()),
        ("target", pa.int64()),
        ("conditioning", pa.list_(pa.int64())),  # in the order in which they are read, the seed last
        ("similarity", pa.float32()),  # of seed and target
        ("tokens", pa.int32()),  # of the whole template
        ("part", pa.string()),
        ("rule_version", pa.int32()),
    ]
)


def run(
    output: Output,
    *,
    pairs: Artifact,
    screened: Artifact,
    tokens: Artifact,
    conditioning: int,
    near_duplicate: float,
    common: int,
    validation: float,
    context: int,
    seed: int = 0,
    execution: Execution,
) -> Artifact:
    """Writes the groups of each shard of pairs, with the part that they belong to, "train" or "validation".

    The held-out documents are chosen by a seeded hash of their ordinals, among those that pairs start from. Groups that
    start from one are validation, and training groups have none on either side: the held-out loss is on seeds that
    tuning has never read or written. Pairs that are of neither part make no group.

    Memory holds a few bytes for each document and one shard of pairs. What more than one conditioning document needs is
    mapped from a folder `scratch`, which is deleted at the end.

    Args:
      conditioning: k, documents that are read at most.
      near_duplicate: containment of own shingles from which on a document is a copy of the target.
      common: documents with a shingle past which it is boilerplate.
      validation: fraction of the seeds that are held out.
      context: positions of a row, which holds one token more.
    """
    count = len(pairs.shards(".parquet"))
    scratch = Output(output.path / "scratch", output.recipe, output.label)
    if not all(output.has(f"part-{index:05d}.parquet") for index in range(count)):
        held_out = _held_out(pairs, validation, seed)
        rule = _Copies(scratch, screened, tokens, near_duplicate, common) if conditioning > 1 else None
        with progress(output.label, pairs.stats["accepted"], "pairs") as counter:
            tables = groups.accepted(pairs, ["d1", "d2", "similarity", "tokens"])
            for index, table in enumerate(tables):

                def write(writing: Writing, table: pa.Table = table) -> None:
                    grouped, stats = _group(table, held_out, conditioning, context, rule)
                    parquet.write(writing, grouped)
                    writing.stats = stats

                output.shard(index, ".parquet", write)
                counter.advance(table.num_rows)
    scratch.path.rmtree()
    return output.finish({"conditioning": conditioning})


def _held_out(pairs: Artifact, validation: float, seed: int) -> np.ndarray:
    """Ordinals of the held-out seeds, ascending."""
    tables = groups.accepted(pairs, ["d1", "d2", "similarity"])
    seeds = np.unique(np.concatenate([np.empty(0, np.int64), *(np.unique(table["d1"].to_numpy()) for table in tables)]))
    key = xxhash.xxh3_64_intdigest(f"held out {seed}".encode())
    hashes = (xxhash.xxh3_64_intdigest(row.tobytes(), key) for row in seeds.astype("<i8"))
    return seeds[np.fromiter(hashes, np.uint64, len(seeds)) / 2.0**64 < validation]


class _Copies:
    """Which documents are near-duplicates of one another, and their tokens; documents by their ordinals."""

    def __init__(self, scratch: Output, screened: Artifact, tokens: Artifact, near_duplicate: float, common: int):
        documents = columns(scratch, screened, tokens)
        self._ordinals, self._tokens = np.ascontiguousarray(documents["ordinal"]), documents["tokens"]
        own, self._own_counts = own_shingles(scratch, screened, common)
        self._shingles, self._least = Shingles(screened, own), np.float32(near_duplicate)

    def copies(self, first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
        places = (np.searchsorted(self._ordinals, ordinals) for ordinals in (first_P, second_P))
        return overlap(self._shingles, self._own_counts, *places).containment_P >= self._least

    def tokens(self, ordinals: np.ndarray) -> np.ndarray:
        return self._tokens[np.searchsorted(self._ordinals, ordinals)].astype(np.int64)


def _group(
    pairs: pa.Table, held_out: np.ndarray, conditioning: int, context: int, rule: _Copies | None
) -> tuple[pa.Table, dict[str, int]]:
    """The groups of some accepted pairs, all those of their seeds, and how many there are of each kind."""
    d1, d2, tokens = (pairs[name].to_numpy() for name in ("d1", "d2", "tokens"))
    seeds_held_out, held_out_too = np.isin(d1, held_out), np.isin(d2, held_out)
    of_part = seeds_held_out | ~held_out_too
    read = np.full((len(d1), 1), groups.MISSING)  # in reverse, without the seed
    copies = 0
    if rule is not None:

        def admits(places: np.ndarray, candidates: np.ndarray) -> np.ndarray:
            nonlocal copies
            good = seeds_held_out[places] | ~held_out_too[candidates]
            copied = rule.copies(d2[candidates[good]], d2[places[good]])
            copies += int(np.count_nonzero(copied))
            good[good] = ~copied
            return good

        chosen_PF = groups.others(d1, np.where(of_part, groups.wanted(d1, d2, conditioning), 0), admits)
        read = np.where(chosen_PF >= 0, d2[chosen_PF], groups.MISSING)
        sizes = np.where(chosen_PF >= 0, rule.tokens(read), 0)
        fits = groups.fitting(sizes, context + 1 - tokens) & (chosen_PF >= 0)
        read = np.where(fits, read, groups.MISSING)
        tokens = tokens + np.sum((sizes + 1) * fits, axis=1)
    whole = np.concatenate([read[:, ::-1], d1[:, None]], axis=1)[of_part]
    kept = whole >= 0
    counts = kept.sum(axis=1)
    documents = pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), whole[kept])
    part = np.where(seeds_held_out, VALIDATION, TRAIN)[of_part]
    table = {
        "seed": d1[of_part],
        "target": d2[of_part],
        "conditioning": documents,
        "similarity": pairs["similarity"].to_numpy()[of_part],
        "tokens": tokens[of_part],
        "part": part.tolist(),
        "rule_version": np.full(len(part), VERSION),
    }
    stats = {"pairs": len(d1), "groups": len(part), "copies": copies}
    stats |= {name: int(np.count_nonzero(part == name)) for name in (TRAIN, VALIDATION)}
    stats |= {f"reads_{size}": int(np.count_nonzero(counts == size)) for size in range(1, conditioning + 1)}
    return pa.table(table, schema=SCHEMA), stats
