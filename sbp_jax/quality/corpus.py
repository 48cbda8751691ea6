"""Measured documents against all real ones: novel n-grams, copied passages, held-out text, near-duplicates.

Every capped, validation and test document is read once, in batches. Of the corpus only what measured documents have is
remembered, so memory does not grow with it. Nothing is approximate but for collisions of 64-bit hashes, and the
longest run: it is looked for in the capped documents that share most shingles with a document, `NEAREST` at most.
A real document that is measured is left out of what it is compared with.

Shapes: T measured documents, G n-grams of them (each one once a document), K distinct n-grams, P candidates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sbp_jax.artifacts import Artifact
from sbp_jax.data.by_target import rank
from sbp_jax.progress import progress
from sbp_jax.quality.duplicates import Degrees
from sbp_jax.quality.grams import SEEN, Seen, distinct_grams, grams
from sbp_jax.quality.samples import CAPPED, HELD_OUT, rows_at
from sbp_jax.text.common_runs import Sequences, common
from sbp_jax.text.shingles import Words, containment, shingle_sets, words

BATCH = 256  # documents whose words are hashed at a time
NOVEL = (1, 2, 3, 4, 5, 8)  # words of the n-grams whose novelty is told
NEAREST = 3  # capped documents that are compared with each measured one, run by run


@dataclass(frozen=True)
class Measured:
    """Texts that are measured, hashed.

    Attributes:
      words: of the texts, in batches.
      shingles, counts: 13-word shingles, those of each text sorted and unique, and how many each has.
    """

    words: Sequence[Words]
    shingles: np.ndarray
    counts: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        return np.cumsum(self.counts) - self.counts

    def of(self, text: int) -> np.ndarray:
        """The shingles of one text."""
        start = int(self.starts[text])
        return self.shingles[start : start + int(self.counts[text])]


def hashed(texts: Sequence[str]) -> Measured:
    """Hashes texts, `BATCH` at a time."""
    found = [words(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    sets = [shingle_sets(some) for some in found]
    shingles = np.concatenate([np.empty(0, np.uint64), *(some for some, _ in sets)])
    return Measured(found, shingles, np.concatenate([np.empty(0, np.int64), *(counts for _, counts in sets)]))


@dataclass(frozen=True)
class Against:
    """What the corpus says of T measured documents.

    Attributes:
      grams: distinct n-grams of each document, and how many of them no capped document has, by words an n-gram.
      copied_T: share of distinct 13-word shingles that capped documents have, 0 without shingles.
      held_out_T: share that validation or test documents have and no capped one.
      nearest_T: ordinal of the capped document that has most of it, by containment of shingles; -1 where none has any.
      containment_T: of the two.
      run_T: words of the longest run in common with one of the nearest documents; 0 where it is below 13.
    """

    grams: Mapping[int, tuple[np.ndarray, np.ndarray]]
    copied_T: np.ndarray
    held_out_T: np.ndarray
    nearest_T: np.ndarray
    containment_T: np.ndarray
    run_T: np.ndarray


def compare(
    measured: Measured,
    ordinals_T: np.ndarray,
    is_capped_T: np.ndarray,
    is_held_out_T: np.ndarray,
    documents: Artifact,
    splits: Artifact,
    degrees: Mapping[tuple[str, ...], Degrees],
    label: str,
) -> Against:
    """Reads the corpus once.

    Args:
      ordinals_T: of real documents; what it is of others makes no difference.
      is_capped_T, is_held_out_T: whether a document is itself one of those.
      degrees: by splits, what counts near-duplicates among their documents.
    """
    novel = {length: Seen(*distinct_grams(measured.words, length)) for length in NOVEL}
    owners_G = np.repeat(np.arange(len(measured.counts)), measured.counts)
    capped, held_out = Seen(owners_G, measured.shingles, names=True), Seen(owners_G, measured.shingles)
    with progress(label, documents.rows, "documents") as counter:
        for rows, ordinals, split, texts in _batches(documents, splits):
            for names in (CAPPED, HELD_OUT):
                chosen = np.isin(split, names)
                some, own = [text for text, is_in in zip(texts, chosen, strict=True) if is_in], ordinals[chosen]
                if not some:
                    continue
                found = words(some)
                shingles, counts = shingle_sets(found)
                numbers = np.repeat(np.arange(len(counts)), counts)
                if names == CAPPED:
                    for length, seen in novel.items():
                        seen.add(*grams(found, length), own)
                (capped if names == CAPPED else held_out).add(numbers, shingles, own)
                if names in degrees:
                    degrees[names].add(own, shingles, counts)
            counter.advance(rows)
    known_G = capped.others_G(is_capped_T)
    most_T = np.maximum(measured.counts, 1)
    kept_out_G = held_out.others_G(is_held_out_T) & ~known_G

    def share(chosen_G: np.ndarray) -> np.ndarray:
        return np.bincount(owners_G[chosen_G], minlength=len(most_T)) / most_T

    nearest_T, containment_T, run_T = _nearest(measured, capped, np.where(is_capped_T, ordinals_T, -1), documents)
    totals = {}
    for length, seen in novel.items():
        new_G = ~seen.others_G(is_capped_T)
        every_T = np.bincount(seen.owners_G, minlength=len(most_T))
        totals[length] = every_T, np.bincount(seen.owners_G[new_G], minlength=len(most_T))
    return Against(totals, share(known_G), share(kept_out_G), nearest_T, containment_T, run_T)


def _batches(documents: Artifact, splits: Artifact) -> Iterator[tuple[int, np.ndarray, np.ndarray, list[str]]]:
    """Rows that were read, and of those in the capped set or held out: ordinals, splits and texts."""
    for path, split_path in zip(documents.shards(".parquet"), splits.shards(".parquet"), strict=True):
        with split_path.open("rb") as stream:
            split = pq.read_table(stream, columns=["split"])["split"].to_numpy(zero_copy_only=False).astype(str)
        first = 0
        with path.open("rb") as stream:
            for part in pq.ParquetFile(stream).iter_batches(BATCH, columns=["ordinal", "text"]):
                own = split[first : first + part.num_rows]
                first += part.num_rows
                places = np.flatnonzero(np.isin(own, (*CAPPED, *HELD_OUT)))
                chosen = part.take(pa.array(places))
                yield part.num_rows, chosen.column("ordinal").to_numpy(), own[places], chosen.column("text").to_pylist()


def _nearest(
    measured: Measured, capped: Seen, own_T: np.ndarray, documents: Artifact
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The capped document nearest to each measured one, by containment, and the longest run in any of the candidates.

    Candidates are those named for most of its shingles; each is then compared whole.
    """
    texts = len(measured.counts)
    assert capped.first_KS is not None
    named = capped.first_KS[capped.keys_G].ravel()
    owners = np.repeat(capped.owners_G, SEEN).astype(np.int64)
    found = np.flatnonzero((named >= 0) & (named != own_T[owners]))
    pairs, counts = np.unique(owners[found] * documents.rows + named[found], return_counts=True)
    owners_P, ordinals_P = pairs // documents.rows, pairs % documents.rows
    order = np.lexsort((ordinals_P, -counts, owners_P))
    order = order[rank(owners_P[order]) < NEAREST]
    owners_P, ordinals_P = owners_P[order], ordinals_P[order]
    nearest_T, containment_T = np.full(texts, -1, np.int64), np.zeros(texts)
    run_T = np.zeros(texts, np.int64)
    for start in range(0, texts, BATCH):  # the words of so many texts are one batch of `measured`
        here = (owners_P >= start) & (owners_P < start + BATCH)
        if not np.any(here):
            continue
        wanted, which = np.unique(ordinals_P[here], return_inverse=True)
        others = words(rows_at(documents, wanted, ["text"])["text"].to_pylist())
        shingles, sizes = shingle_sets(others)
        parts = np.split(shingles, np.cumsum(sizes)[:-1])
        own = measured.words[start // BATCH]
        pieces = [others.hashes_W[others.text(place)] for place in which]
        b = Sequences(np.concatenate(pieces), np.array(list(map(len, pieces)), np.int64), owners_P[here] - start)
        a = Sequences(own.hashes_W, np.diff(own.offsets), np.arange(len(own.offsets) - 1))
        run_T[start : start + len(a.lengths)] = common(a, b, len(a.lengths)).longest_T
        for owner, ordinal, place in zip(owners_P[here].tolist(), ordinals_P[here].tolist(), which, strict=True):
            shared = containment(measured.of(owner), parts[place])
            if shared > containment_T[owner]:
                nearest_T[owner], containment_T[owner] = ordinal, shared
    return nearest_T, containment_T, run_T
