"""The scores of synthetic documents, each by itself: what they repeat, what they copy, what they must not hold."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sbp_jax.data.references import References
from sbp_jax.text import contamination
from sbp_jax.text.common_runs import Common, Sequences, common
from sbp_jax.text.language import UNDETERMINED, language
from sbp_jax.text.repetition import LENGTH, repetition
from sbp_jax.text.sentences import last_end
from sbp_jax.text.shingles import Words, shingle_sets, words

BATCH = 256  # documents whose words are hashed at a time
LENGTHS = {"repetition_2": 2, "repetition": LENGTH, "repetition_8": 8}  # words of the n-grams
SCHEMA = pa.schema(
    [
        ("words", pa.int32()),
        *((name, pa.float32()) for name in LENGTHS),
        ("seed_common", pa.int32()),  # null where nothing was read, as the next two
        ("seed_overlap", pa.float32()),
        ("seed_language", pa.string()),
        ("copied", pa.float32()),
        ("held_out", pa.float32()),
        ("contaminated_by", pa.string()),
        ("contaminated_item", pa.string()),
        ("language", pa.string()),
    ]
)


@dataclass(frozen=True)
class Scored:
    """Some documents.

    Attributes:
      rows: the scores, by `SCHEMA`.
      shingles: of all documents one after another, those of each sorted and unique.
      counts: shingles of each document.
    """

    rows: pa.Table
    shingles: np.ndarray
    counts: np.ndarray


def score(
    texts: list[str],
    seeds: list[int | None],
    conditioning: list[list[int] | None],
    references: References,
    items: contamination.Items,
) -> Scored:
    """Scores documents.

    Args:
      texts: as they are to be kept.
      seeds: ordinal of the seed of each; None where there is none.
      conditioning: ordinals of the real documents that were read for each; None or empty where nothing was.
      items: of evaluation sets.
    """
    tables, shingles, counts = [SCHEMA.empty_table()], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        found = words(some)
        sets = shingle_sets(found)
        columns = _columns(some, found, sets, [read or [] for read in conditioning[start : start + BATCH]], references)
        columns["seed_language"] = [
            None if seed is None else references.language_names[references.languages[seed]]
            for seed in seeds[start : start + BATCH]
        ]
        hits = items.search(found)
        held = [hits.get(number) for number in range(len(some))]
        columns["contaminated_by"] = [item.file if item else "" for item in held]
        columns["contaminated_item"] = [
            f"line {item.line}: {item.text[: contamination.SHOWN]}" if item else "" for item in held
        ]
        tables.append(pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA))
        shingles.append(sets[0])
        counts.append(sets[1])
    return Scored(pa.concat_tables(tables).combine_chunks(), np.concatenate(shingles), np.concatenate(counts))


def trim(text: str, finish: str, policy: str) -> tuple[str, str]:
    """A document as it is to be kept, and what was cut off: of one cut by length, what follows its last sentence."""
    end = last_end(text) if finish == "length" and policy == "trim" else len(text)
    return text[:end], text[end:]


def _columns(
    texts: list[str],
    found: Words,
    sets: tuple[np.ndarray, np.ndarray],
    conditioning: list[list[int]],
    references: References,
) -> dict[str, object]:
    shingles, counts = sets
    owners = np.repeat(np.arange(len(texts)), counts)
    known = references.capped.holds(shingles)
    held_out = references.held_out.holds(shingles) & ~known
    most = np.maximum(counts, 1)
    seeded = np.array([bool(read) for read in conditioning], bool)
    shared = in_common_with_seeds(found, conditioning, references)
    return {
        "words": np.diff(found.offsets),
        **{name: repetition(found, length) for name, length in LENGTHS.items()},
        "seed_common": pa.array(shared.longest_T, pa.int32(), mask=~seeded),
        "seed_overlap": pa.array((shared.shingles_T / most).astype(np.float32), mask=~seeded),
        "copied": (np.bincount(owners[known], minlength=len(texts)) / most).astype(np.float32),
        "held_out": (np.bincount(owners[held_out], minlength=len(texts)) / most).astype(np.float32),
        "language": list(map(language, texts)),
    }


def in_common_with_seeds(found: Words, conditioning: list[list[int]], references: References) -> Common:
    """What each document has in common with the documents that were read for it."""
    owners = np.repeat(np.arange(len(conditioning)), [len(read) for read in conditioning])
    stored = references.words.gather(np.array([ordinal for read in conditioning for ordinal in read], np.int64))
    own = Sequences(found.hashes_W, np.diff(found.offsets), np.arange(len(conditioning)))
    return common(own, Sequences(stored.hashes, stored.lengths_T, owners), len(conditioning))


def other_language(rows: pa.Table) -> np.ndarray:
    """Whether each document is in another language than its seed, both of which are known."""
    seed, own = (np.array(rows[name].to_pylist(), object) for name in ("seed_language", "language"))
    return (seed != own) & (seed != None) & (seed != UNDETERMINED) & (own != UNDETERMINED)  # noqa: E711
