"""Whether it helps to read: losses of held-out documents behind their own seed, behind nothing, behind another seed.

The documents are targets of validation groups. Their own documents are read before them, none are, or those of another
group that is not related to the target, of about the same length. All are scored by the synthesizer; alone, where its
template has no separator, by the base model too.

Legend: G groups.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.data.groups import accepted
from sbp_jax.data.packing import pack_groups
from sbp_jax.errors import SbpError
from sbp_jax.model.parameters import Parameters
from sbp_jax.progress import progress
from sbp_jax.scoring.ratio import ratio
from sbp_jax.text.shingles import among, mixed
from sbp_jax.text.template import length
from sbp_jax.text.tokenizer import TextTokenizer
from sbp_jax.training.evaluation import target_losses
from sbp_jax.training.step import Setup

COLUMNS = ("seed", "target", "conditioning", "similarity", "part")
BUCKET = 0.05  # of similarity
LEAST = 8  # groups below which nothing is said
ALIKE = 8  # other groups whose length is nearest, of which one is taken
OWN, ALONE, OTHER, BASE = "d2_given_d1", "d2", "d2_given_random", "d2_of_base"
SALT = np.uint64(0x63616C6962726174)  # keeps these hashes apart from those that other choices are made by


@dataclass(frozen=True)
class Groups:
    """Some validation groups.

    Attributes:
      seeds_G, targets_G: int64, ordinals.
      similarity_G: float32, of seed and target.
      read: ordinals of the documents that are read before each target, the seed last.
      other: those of another group.
      available: validation groups in all.
    """

    seeds_G: np.ndarray
    targets_G: np.ndarray
    similarity_G: np.ndarray
    read: list[list[int]]
    other: list[list[int]]
    available: int


def choose(groups: Artifact, pairs: Artifact, sizes: Callable[[int], int], context: int, count: int) -> Groups:
    """Chooses validation groups by a hash, and for each of them another group whose documents are read instead.

    Memory holds the chosen groups and one shard, of the groups or of the pairs that these were made from.

    Args:
      sizes: gives the tokens of a document.
      context: positions that a rendered group may take.
      count: groups at most.

    Raises:
      SbpError: there are too few groups.
    """
    table, available = _least_hashes(groups, count)
    read = table["conditioning"].to_pylist()
    targets_G = table["target"].to_numpy()
    other = _others(
        table["hash"].to_numpy(), targets_G.tolist(), read, _related(pairs, targets_G, read), sizes, context
    )
    kept = [place for place, found in enumerate(other) if found is not None]
    if len(kept) < LEAST:
        raise SbpError(
            f"of the {available:,} validation groups {len(kept)} can be compared with another one, and a loss needs"
            f" {LEAST} of them; raise --groups or tuning.validation, or accept more pairs"
        )
    seeds_G, targets_G, similarity_G = (table[name].to_numpy()[kept] for name in ("seed", "target", "similarity"))
    read, others = [read[place] for place in kept], [found for found in other if found is not None]
    return Groups(seeds_G, targets_G, similarity_G, read, others, available)


def losses(
    setup: Setup,
    parameters: Parameters,
    cases: Sequence[Sequence[list[int]]],
    targets_G: np.ndarray,
    tokens: Callable[[int], np.ndarray],
    tokenizer: TextTokenizer,
    label: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Nats of each target with its end in each case, float64 [cases, G], and the tokens they are summed over, [G].

    Args:
      cases: for each, the documents that are read before each target.
      tokens: gives those of a document.
      label: for the progress.
    """
    count = len(targets_G)

    def rendered() -> Iterator[tuple[int, list[np.ndarray], np.ndarray]]:
        for number, read in enumerate(read for case in cases for read in case):
            yield number, [tokens(ordinal) for ordinal in read], tokens(int(targets_G[number % count]))

    ends = tokenizer.end_of_document, tokenizer.separator
    rows = list(pack_groups(rendered(), setup.optimization.context, *ends))
    nats, targets = np.zeros((2, len(cases) * count))
    with progress(label, len(rows), "rows") as counter:
        for batch, batch_nats in target_losses(setup, parameters, rows):
            owners = batch.documents[batch.mask]
            nats += np.bincount(owners, batch_nats[batch.mask].astype(np.float64), len(nats))
            targets += np.bincount(owners, minlength=len(targets))
            counter.advance(len(batch.mask))
    return nats.reshape(len(cases), count), targets[:count]


def compared(groups: Groups, nats: dict[str, np.ndarray], targets_G: np.ndarray) -> dict[str, Any]:
    """The losses in bits a token and what reading saves of them, over all groups and by similarity.

    Args:
      nats: of each target, by case.
      targets_G: tokens of each target, its end among them.
    """
    lows_G = np.floor(groups.similarity_G / BUCKET + 1e-4).astype(int)
    buckets = []
    for low in np.unique(lows_G).tolist():
        bounds = {"from": round(low * BUCKET, 6), "to": round((low + 1) * BUCKET, 6)}
        buckets.append(bounds | _part(groups, nats, targets_G, lows_G == low))
    everything = _part(groups, nats, targets_G, np.ones(len(targets_G), bool))
    return {"groups_available": groups.available, "all": everything, "buckets": buckets}


def _part(groups: Groups, nats: dict[str, np.ndarray], targets_G: np.ndarray, part_G: np.ndarray) -> dict[str, Any]:
    bits = targets_G[part_G] * math.log(2)
    told: dict[str, Any] = {
        "groups": int(np.count_nonzero(part_G)),
        "seeds": len(np.unique(groups.seeds_G[part_G])),
        "tokens": int(targets_G[part_G].sum()),
        "bits_per_token": {name: float(nats_G[part_G].sum() / bits.sum()) for name, nats_G in nats.items()},
        "saved": {},
    }
    for name in nats:
        if name != OWN:
            saved = ratio((nats[name] - nats[OWN])[part_G], bits, groups.seeds_G[part_G])
            told["saved"][name] = [saved.value, saved.low, saved.high]
    return told


def _least_hashes(groups: Artifact, count: int) -> tuple[pa.Table, int]:
    """The validation groups of least hashes, in their order, and how many there are in all."""
    least, available = None, 0
    for table in parquet.tables(groups, COLUMNS):
        table = table.filter(pc.equal(table["part"], "validation"))
        available += table.num_rows
        seeds, targets = (table[name].to_numpy().astype(np.uint64) for name in ("seed", "target"))
        table = table.append_column("hash", pa.array(mixed(mixed(seeds ^ SALT) ^ targets)))
        least = table if least is None else pa.concat_tables([least, table])
        least = least.take(np.argsort(least["hash"].to_numpy(), kind="stable")[:count]).combine_chunks()
    if least is None or available < LEAST:
        raise SbpError(
            f"there are {available} validation groups, and a loss needs {LEAST}; raise tuning.validation, or accept"
            " more pairs"
        )
    return least, available


def _related(pairs: Artifact, targets: np.ndarray, read: list[list[int]]) -> set[tuple[int, int]]:
    """The accepted pairs, either way round, of a document that is read and a target: (read, target)."""
    firsts, seconds = np.unique([ordinal for some in read for ordinal in some]), np.unique(targets)
    found: set[tuple[int, int]] = set()
    for table in accepted(pairs, ["d1", "d2", "similarity"]):
        d1, d2 = table["d1"].to_numpy(), table["d2"].to_numpy()
        for one, other in ((d1, d2), (d2, d1)):
            chosen = among(one, firsts) & among(other, seconds)
            found |= set(zip(one[chosen].tolist(), other[chosen].tolist(), strict=True))
    return found


def _others(
    hashes_G: np.ndarray,
    targets: list[int],
    read: list[list[int]],
    related: set[tuple[int, int]],
    sizes: Callable[[int], int],
    context: int,
) -> list[list[int] | None]:
    """What another group reads, for each group; None where no other fits that is not related."""
    candidates = [list(some) for some in sorted(set(map(tuple, read)))]
    tokens = {ordinal: sizes(ordinal) for ordinal in {*targets, *(one for some in read for one in some)}}
    totals = np.array([sum(tokens[ordinal] for ordinal in some) for some in candidates])
    found: list[list[int] | None] = []
    for number, (target, own) in enumerate(zip(targets, read, strict=True)):
        nearest = np.argsort(np.abs(totals - sum(tokens[ordinal] for ordinal in own)), kind="stable")
        alike = []
        for place in nearest.tolist():
            some = candidates[place]
            fits = length(int(totals[place]) + tokens[target], len(some)) <= context + 1
            strange = not any(ordinal in (target, *own) or (ordinal, target) in related for ordinal in some)
            if fits and strange:
                alike.append(some)
            if len(alike) == ALIKE:
                break
        found.append(alike[int(hashes_G[number] % np.uint64(len(alike)))] if alike else None)
    return found
