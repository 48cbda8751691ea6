"""Near-duplicates among very many documents, of which the first one stays.

A document is a copy where it or an earlier one holds enough of the other's 13-word shingles, and the earlier one stays.
Candidates come from sketches: the least of a document's hashes. All hashes are brought together by value, on disk, and
each document is compared with the first ones that have some hash of its sketch; so no chain of near-copies is merged,
and a licence in all documents makes one candidate each. Two documents of like length share about as much of their
sketches as of their shingles; where one is many times longer, its sketch is sparse, and a short copy may be missed.

Candidates are then compared by all their shingles. Memory holds a few bytes for each document.

Shapes: R documents of a shard, M shared shingles.
"""

from dataclasses import dataclass

import numpy as np

from sbp_jax.artifacts import Output
from sbp_jax.data.by_hash import by_hash
from sbp_jax.data.by_target import between, rank
from sbp_jax.data.pair_evidence import batches
from sbp_jax.data.screened import Ragged, save
from sbp_jax.text.shared_shingles import shared

LEAST, SPARSITY = 32, 16  # hashes of a sketch at least, and of so many shingles one
FIRST = 3  # documents with a hash, that later ones with it may be compared with
CANDIDATES = 4  # earlier documents at most that a document is compared with
SKETCHED = np.dtype([("hash", "<u8"), ("row", "<i8"), ("stays", "?")])
CANDIDATE = np.dtype([("row", "<i8"), ("earlier", "<i8"), ("hashes", "<i4")])
COPY = np.dtype([("row", "<i8"), ("earlier", "<i8"), ("containment", "<f4")])


@dataclass(frozen=True)
class Earlier:
    """What the documents of a shard share with earlier ones that stay.

    Attributes:
      sibling_R: greatest containment among those with the same seed, float32.
      duplicate_R: among the others.
      of_R: row of the document that this one is a copy of, -1 where it is none.
    """

    sibling_R: np.ndarray
    duplicate_R: np.ndarray
    of_R: np.ndarray


def save_sketches(
    scratch: Output, name: str, first: int, shingles: np.ndarray, counts: np.ndarray, stays: np.ndarray
) -> None:
    """Writes the sketches of some documents, in the order of their hashes.

    Args:
      first: row of the first of them.
      shingles: of all of them, sorted for each document.
      counts: shingles of each.
      stays: whether no other rule rejects it; the others are compared with those that stay, and nothing with them.
    """
    sizes = np.minimum(counts, np.maximum(LEAST, -(-counts // SPARSITY)))
    rows = np.repeat(np.arange(len(counts)), sizes)
    places = np.repeat(np.cumsum(counts) - counts, sizes) + rank(rows)
    sketched = np.empty(len(rows), SKETCHED)
    sketched["hash"], sketched["row"], sketched["stays"] = shingles[places], first + rows, stays[rows]
    save(scratch, name, sketched[np.argsort(sketched["hash"], kind="stable")])


def save_copies(scratch: Output, sketches: list[str], stored: Ragged, bounds: np.ndarray) -> list[str]:
    """Writes for each shard its documents that have shingles in common with an earlier one, and how many.

    Args:
      sketches: names of the shards' sketches.
      stored: the shingles of all documents.
      bounds: int64 [shards + 1], the row with which each shard begins.

    Returns:
      The names of the files, each an array of COPY by row.
    """
    names = [f"copies-{shard:05d}.npy" for shard in range(len(sketches))]
    if all(map(scratch.has, names)):
        return names
    candidates = by_hash(scratch, "candidates", [scratch.path / name for name in sketches], _candidates, "hash")
    for name, start, stop in zip(names, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if not scratch.has(name):
            parts = [between(part, "row", slice(start, stop)) for part in candidates]
            save(scratch, name, _verified(_most_alike(np.concatenate(parts)), stored))
    return names


def judge(copies: np.ndarray, rows: slice, seeds: np.ndarray, stays: np.ndarray, least: tuple[float, float]) -> Earlier:
    """Which documents of a shard are copies of earlier ones that stay; shards are judged in order.

    Args:
      copies: of the shard, by row.
      rows: of the shard.
      seeds: of all documents so far, -1 where there is none.
      stays: whether each document so far is rejected by no rule; copies are entered.
      least: containment of a copy of a document with the same seed, and of any other.
    """
    same = (seeds[copies["row"]] == seeds[copies["earlier"]]) & (seeds[copies["row"]] >= 0)
    is_copy = copies["containment"] >= np.where(same, np.float32(least[0]), np.float32(least[1]))
    for row, earlier in copies[["row", "earlier"]][is_copy].tolist():
        if stays[row] and stays[earlier]:
            stays[row] = False
    # Those that no longer stay are no reason to reject another.
    valid = stays[copies["earlier"]]
    scores = np.zeros((2, rows.stop - rows.start), np.float32)
    for score, chosen in zip(scores, (same & valid, ~same & valid), strict=True):
        np.maximum.at(score, copies["row"][chosen] - rows.start, copies["containment"][chosen])
    of = np.full(rows.stop - rows.start, -1, np.int64)
    found = copies[is_copy & valid]
    found = found[np.lexsort((found["earlier"], -found["containment"], found["row"]))]
    found = found[rank(found["row"]) == 0]
    of[found["row"] - rows.start] = found["earlier"]
    return Earlier(scores[0], scores[1], of)


def _candidates(sketched: np.ndarray) -> np.ndarray:
    """Each document with the first ones that have the same hash and stay, and the number of such hashes.

    More than one, because the first may turn out to be a copy itself, and then goes.
    """
    new = np.ones(len(sketched), bool)
    new[1:] = sketched["hash"][1:] != sketched["hash"][:-1]
    groups = np.cumsum(new) - 1
    staying = np.flatnonzero(sketched["stays"])
    ranks = rank(groups[staying])
    found = [np.empty(0, CANDIDATE)]
    for place in range(FIRST):
        owners = np.full(len(sketched), len(sketched), np.int64)
        own = staying[ranks == place]
        owners[groups[own]] = own
        owners = owners[groups]
        later = np.flatnonzero(owners < np.arange(len(sketched)))
        pairs = np.empty(len(later), CANDIDATE)
        pairs["row"], pairs["earlier"] = sketched["row"][later], sketched["row"][owners[later]]
        pairs["hashes"] = 1
        found.append(pairs)
    return _summed(np.concatenate(found))


def _summed(found: np.ndarray) -> np.ndarray:
    """One candidate for each pair of documents, by row and then earlier document."""
    found = found[np.lexsort((found["earlier"], found["row"]))]
    new = np.ones(len(found), bool)
    new[1:] = (found["row"][1:] != found["row"][:-1]) | (found["earlier"][1:] != found["earlier"][:-1])
    starts = np.flatnonzero(new)
    summed = found[starts]
    summed["hashes"] = np.add.reduceat(found["hashes"], starts) if len(starts) else 0
    return summed


def _most_alike(found: np.ndarray) -> np.ndarray:
    """Of each document the candidates with the most hashes in common, the earlier ones first."""
    found = _summed(found)
    found = found[np.lexsort((found["earlier"], -found["hashes"], found["row"]))]
    return found[rank(found["row"]) < CANDIDATES]


def _verified(found: np.ndarray, stored: Ragged) -> np.ndarray:
    """Compares the candidates by all their shingles."""
    counts = np.diff(stored.offsets)
    copies = np.empty(len(found), COPY)
    copies["row"], copies["earlier"] = found["row"], found["earlier"]
    for some in batches(counts[found["row"]] + counts[found["earlier"]]):
        first, which = np.unique(found["row"][some], return_inverse=True)
        pairs_M, _, _ = shared(stored.gather(first), which, stored.gather(found["earlier"][some]))
        in_both = np.bincount(pairs_M, minlength=len(which))
        smaller = np.minimum(counts[found["row"][some]], counts[found["earlier"][some]])
        copies["containment"][some] = in_both / np.maximum(smaller, 1)
    return copies
